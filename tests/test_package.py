"""lstmlab as a user installs it: from a wheel, outside the repository, beside files of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from conftest import SMALL, write_text
from lstmlab import __main__ as commands
from lstmlab.config import PROJECT

MINE = "# Of the user\n_target_: torch.optim.Adagrad\nlr: 0.01 # how fast\n"
CELLS = """
import sys
import lstmlab.cells
for backend in lstmlab.cells.BACKENDS:
    lstmlab.cells.build_cell(backend, 2, 3)
print(lstmlab.__file__)
dependencies = "torch lightning hydra omegaconf pydantic torchmetrics torchdata datasets tokenizers babel"
dependencies += " sacrebleu matplotlib PIL wandb safetensors numpy tqdm pandas yaml"
print(*(name for name in dependencies.split() if name in sys.modules))
"""
OFFLINE = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
PIP = [sys.executable, "-m", "pip"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("src", "conf"):
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, folder)
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", folder, folder], check=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_the_settings(wheel):
    ours = ("lstmlab/", "hydra_plugins/")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(ours)}
    code = {path.relative_to(PROJECT / "src").as_posix() for path in (PROJECT / "src").rglob("*.*")}
    settings = {f"lstmlab/{path.relative_to(PROJECT).as_posix()}" for path in PROJECT.glob("conf/**/*.yaml")}
    left_out = (".md", ".pyc")
    assert held == settings | {path for path in code if path.startswith(ours) and not path.endswith(left_out)}


def test_a_wheel_trains(wheel, tmp_path):
    """In an environment that has the dependencies of this one, but not this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    found = [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run([python, *found[1:]], check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, wheel], check=True)
    user = tmp_path / "user"
    (user / "conf/optimizer").mkdir(parents=True)
    (user / "conf/optimizer/mine.yaml").write_text(MINE)
    text = write_text(tmp_path / "text.txt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    file, *imported = run(python, "-c", CELLS).split()
    assert file == f"{site}/lstmlab/__init__.py"
    assert {"torch", "numpy"} <= set(imported) <= {"torch", "numpy", "tqdm"}  # of torch
    printed = run(
        tmp_path / "venv/bin/lstmlab", "train", *SMALL, "data=textfile", f"data.path={text}",
        "optimizer=mine", "data.batch_size=4", "data.sequence_length=20", "trainer.max_steps=2", "threads=1",
    )  # fmt: skip
    assert "lstmlab evaluate ckpt=" in printed and "python src/" not in printed
    [metrics] = user.glob("logs/charlm/*/metrics.json")
    assert "val/loss_stateful" in json.loads(metrics.read_text())
    assert "Adagrad" in (metrics.parent / "config.yaml").read_text()
    assert sorted(path.name for path in user.iterdir()) == ["conf", "data", "logs"]
    assert list((user / "data/cache").iterdir())


@pytest.fixture
def lstmlab(monkeypatch, tmp_path, capsys):
    """lstmlab("train", …): what the command prints, or the message with which it ends; in process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # each command sets it
        monkeypatch.setattr(sys, "argv", ["lstmlab", *arguments])
        try:
            commands.main()
        except SystemExit as stop:
            return str(stop.code)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_commands_are_listed(lstmlab, arguments):
    printed = lstmlab(*arguments)
    assert [line.split()[0] for line in printed.splitlines()[2:]] == list(commands.COMMANDS)
    assert "  train     Train a recurrent network.\n" in printed
    assert {path.stem for path in (PROJECT / "src").glob("*.py")} == commands.COMMANDS.keys()


def test_an_unknown_command_is_refused(lstmlab):
    start, end = "error: there is no command ", "There are train, evaluate, predict, "
    assert lstmlab("trian").startswith(f"{start}trian. Did you mean lstmlab train? {end}")
    assert lstmlab("seed=1").startswith(f"{start}seed=1. {end}")


def test_commands_are_shown_as_they_were_typed(lstmlab, command):
    assert "\n  lstmlab train model=charlm  " in lstmlab("train", "--help")
    assert lstmlab("train", "sweep=optuna") == "error: sweep=optuna needs -m: lstmlab train -m sweep=optuna"
    assert "python src/train.py -m sweep=optuna" in command("train", "sweep=optuna")[2]
    torchrun = lstmlab("train", "trainer=ddp", "trainer.num_nodes=2")
    assert "HOST:29500 -m lstmlab train trainer=ddp …" in torchrun


def test_settings_may_stand_on_both_sides_of_an_option(lstmlab):
    assert "cell.dropout=2: " in lstmlab("train", "cell.dropout=2", "-m", "seed=0")


def test_own_files_join_the_choices(lstmlab, tmp_path):
    folder = tmp_path / "conf/optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(MINE)
    printed = lstmlab("train", "--help", "optimizer=mine")
    assert "\noptimizer: adam, adamw, mine, muon, rmsprop," in printed
    assert "# how fast" in printed and "# Of the user" in printed
    (folder / "adam.yaml").touch()
    refused = f"error: {folder}/adam.yaml: lstmlab has a file of this name; give yours another name"
    assert lstmlab("train") == lstmlab("train", "--help") == refused
