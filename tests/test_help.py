"""`--help` shows the choices, and the settings with the comments of conf/ beside them."""

import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lstmlab.help import CONF, WIDTH, find_package, format_help, read_comments
from lstmlab.schema import COMMANDS

FILES = sorted(CONF.glob("*.yaml"))


def find_settings_part(text: str) -> str:
    """The part of a help text that is YAML."""
    return text.partition("Settings, written key=value")[2].partition(":\n")[2].partition("\nExample")[0]


def test_each_command_has_a_file():
    assert {file.stem for file in FILES} == COMMANDS.keys() - {"checkpoint"}


@pytest.mark.parametrize("command", [file.stem for file in FILES])
def test_help_shows_the_composed_settings(command):
    text = format_help(command, [])
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = compose(command)
    assert yaml.safe_load(find_settings_part(text)) == yaml.safe_load(OmegaConf.to_yaml(composed))
    assert "$" not in text.replace("${", "")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_help_shows_every_comment_of_the_composed_files():
    shown = " ".join(line.partition("# ")[2] for line in format_help("bench", ["model=seq2seq"]).splitlines())
    files = [
        "bench",
        "train",
        "model/seq2seq",
        "data/multi30k",
        "base/cell",
        "cell/fused",
        "callbacks/default",
    ]
    for comments in (read_comments(CONF / f"{file}.yaml") for file in files):
        missing = {key for key, comment in comments.items() if comment not in " ".join(shown.split())}
        assert not {
            key for key in missing if not key.startswith(("conf", "base", "hydra", "defaults.override"))
        }


def test_help_follows_the_choices():
    text = format_help("train", ["cell=scratch", "data=copy", "model=copytask", "data.delay=7"])
    assert "  delay: 7                                    # blank steps; with [low, high] each batch" in text
    assert "backend: scratch" in text and "symbols: 2" in text and "sequence_length" not in text


def test_help_lists_the_options_of_each_choice():
    choices = format_help("train", []).partition("Settings")[0]
    assert "\ncell: fused, scratch, torch\n" in choices
    assert "\noptimizer: adam, adamw, muon, rmsprop, sgd\n" in choices
    assert "\ncallbacks: averaging, default, keep\n" in choices
    assert "\nlogger: csv, tensorboard, trackio, wandb      # several at once" in choices
    assert not any(f"\n{group}" in choices for group in ("base", "hydra", "schemas"))


def test_comments_are_read_by_key(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmlab.help.CONF", tmp_path)
    written = """\
# @package _global_
# yaml-language-server: $schema=x.json
# About the group,
# in two lines.
defaults:
  - override /data: copy # a choice

model:
  name: a#b # why: "this"
  recommends: # several
    # keys
    lr: 1e-3

  text: '# no comment'
  # a heading
  size: 3 # behind
  # above,
  # in two lines
  list: [1, 2,
    3] # of numbers
long: | # not this
  # nor that
metrics: null # one
#               and two
# three
last: 1
"""
    (tmp_path / "model").mkdir()
    file = tmp_path / "model/a.yaml"
    file.write_text(written)
    assert find_package(file) == ""
    assert read_comments(file) == {
        "model": "About the group, in two lines.",
        "defaults.override /data": "a choice",
        "model.name": 'why: "this"',
        "model.recommends": "several keys",
        "model.size": "behind",
        "model.list": "of numbers",
        "metrics": "one and two",
        "last": "three",
    }
    file.write_text("# Header\na: 1 # one\nb:\n  c: 2 # two\n# four\nd: 4\n")
    assert read_comments(file) == {"model": "Header", "model.a": "one", "model.b.c": "two", "model.d": "four"}


def test_base_files_belong_to_their_group():
    assert find_package(CONF / "base/cell.yaml") == "cell"
    assert read_comments(CONF / "base/cell.yaml")["cell.variational"].startswith("true: one dropout mask")
    assert find_package(CONF / "hydra/sweeper/optuna.yaml") == "hydra.sweeper"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_imports_no_torch(flag):
    program = (
        "import sys, train; sys.argv[1:] = ['cell=fused', sys.argv[1]]\n"
        "train.main()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, flag],
        env={"PYTHONPATH": str(CONF.parent / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Train a recurrent network.") and "backend: fused" in done.stdout


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("cell=cudnn", "error: In 'train': Could not find 'cell/cudnn' Available options in 'cell': fused"),
        ("cell.size=3", "error: Could not override 'cell.size'. Did you mean cell.hidden_size?"),
        ("cell.size=[3", "error: cell.size=[3: no viable alternative"),
    ],
)
def test_a_mistake_beside_help_ends_in_one_sentence(command, typed, message):
    code, shown, error = command("train", typed, "--help")
    assert (code, shown) == (1, "")
    assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--hydra-help",), ("--cfg", "job")])
def test_hydras_other_flags_still_work(command, arguments):
    code, shown, error = command("train", *arguments)
    assert (code, error) == (0, "") and shown
