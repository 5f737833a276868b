"""Every Markdown file: its commands compose, its examples run, its links and pictures exist."""

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.lstmlab_study import list_jobs
from lstmlab.checkpoint import load_model
from lstmlab.config import PROJECT, quote_raw, to_plain
from lstmlab.schema import PredictConfig, check

NOT_OURS = {"logs", "multirun", "wandb", "build"}  # folders that runs and tools create
WRITTEN_BY_RUNS = {"config.yaml", "model.html", "multirun.yaml"}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[(.*?)\]\((.*?)\)")


def read_documents() -> dict[str, str]:
    """{path from the project's root: text} of every Markdown file that belongs to the project."""
    texts = {}
    for parent, below, files in os.walk(PROJECT):
        folder = Path(parent)
        below[:] = sorted(b for b in below if not (b.startswith(".") or (folder / b / "pyvenv.cfg").exists()))
        if folder == PROJECT:
            below[:] = [name for name in below if name not in NOT_OURS]
        # Beside its README, data/ holds the cache and files of the user
        if folder == PROJECT / "data":
            below.clear()
        for name in sorted(files):
            if name.endswith(".md"):
                path = folder / name
                texts[path.relative_to(PROJECT).as_posix()] = path.read_text(encoding="utf-8")
    return texts


DOCUMENTS = read_documents()


def shown_commands(text: str) -> Iterator[str]:
    """The commands in indented blocks, without prompt and comment, and those in inline code."""
    text = FENCED.sub("", text).replace("\\\n", " ")
    for line in re.findall(r"^ {4}(.+)|`([^`\n]+)`", text, re.MULTILINE):
        command = re.split(r"  +#", "".join(line).strip().removeprefix("$ "))[0].strip()
        if re.match(r"(python|pip|pytest|marimo|torchrun|lstmlab|/usr/bin/time) ", command):
            yield command


COMMANDS = sorted({command for text in DOCUMENTS.values() for command in shown_commands(text)})
REFUSED = [  # the command, and what it prints
    (command, " ".join(printed.split()))
    for text in DOCUMENTS.values()
    for command, printed in re.findall(r"^ {4}\$ python (src/.+)\n((?: {4}.+\n)+)", text, re.MULTILINE)
]


def split_command(command: str) -> tuple[str, list[str]] | None:
    """("train", arguments) of a command that starts an entry point of this project."""
    words = shlex.split(command)
    if words[0] == "lstmlab":
        return words[1], words[2:]
    for number, word in enumerate(words):
        if entry := re.fullmatch(r"src/(\w+)\.py", word):
            return entry[1], words[number + 1 :]
    return None


def test_the_documents_are_found():
    expected = {"README.md", "conf/README.md", "data/README.md", "notebooks/studies.md", "tests/README.md"}
    assert expected <= DOCUMENTS.keys()
    assert not [name for name in DOCUMENTS if "cache" in name or "site-packages" in name]
    assert len(COMMANDS) > 80 and len(REFUSED) >= 1


def test_both_setup_commands_stand_at_the_top():
    commands = [line.strip() for line in DOCUMENTS["README.md"].splitlines() if line.startswith("    ")]
    assert commands[0] == "pip install -e . && python src/train.py model=charlm"
    assert commands[1] == "pip install -e '.[dev]' && pytest"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {f"python {refused}" for refused, _ in REFUSED}))
def test_a_command_composes(command, tmp_path):
    """With the configuration of its entry point; for a sweep, each of its jobs."""
    if (started := split_command(command)) is None:
        return
    name, arguments = started
    sweep = "-m" in arguments
    arguments = [quote_raw(argument) for argument in arguments if argument not in ("-m", "--help")]
    if "sweep=optuna" in arguments:
        arguments.append("callbacks.pruning=null")  # only a sweep knows the folder of its study
    jobs = list_jobs([""], arguments, OverridesParser.create()) if sweep else [arguments]
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        for job in jobs:
            run_dir = [f"run_dir={tmp_path}"] if name in ("train", "bench") else []
            check(name, to_plain(compose(name, job + run_dir)))


@pytest.mark.parametrize(("line", "printed"), REFUSED)
def test_a_refused_command_prints_what_is_shown(line, printed, command):
    name, arguments = split_command(line)  # type: ignore[misc]  # REFUSED holds entry points only
    code, _, error = command(name, *arguments)
    assert code == 1
    assert " ".join(error.split()) == printed


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_pasted_into_any_shell(command):
    """zsh refuses an unquoted [ or *, and every shell replaces $ and ` within double quotes."""
    outside = re.sub(r"'[^']*'|\"[^\"]*\"", "", command).replace(" && ", " ")
    assert not set("[]*?(){}~$<>|;&!`\"'") & set(outside)
    assert not any(set("$`!\\") & set(quoted) for quoted in re.findall(r"'[^']*'|\"([^\"]*)\"", command))


def test_commands_name_existing_extras_options_and_files(pytestconfig):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in COMMANDS:
        tool, *arguments = shlex.split(command.partition(" && ")[0])
        for extras in re.findall(r"\.\[(.*?)\]", " ".join(arguments)) if tool == "pip" else []:
            assert set(extras.split(",")) <= project["optional-dependencies"].keys(), command
        for option in arguments if tool == "pytest" else []:
            if option.startswith("--"):
                pytestconfig.getoption(option.partition("=")[0])  # ValueError: there is none
        for path in arguments:
            if re.match(r"(src|tests|notebooks)/", path):
                assert (PROJECT / path).is_file(), command


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document):
    """Also by the end of their path: cells/scratch.py is src/lstmlab/cells/scratch.py."""
    sources = [
        path.as_posix()
        for folder in ("src", "conf", "tests", "notebooks")
        for path in (PROJECT / folder).rglob("*.*")
    ]
    named = set(re.findall(r"[\w./]*\w\.(?:py|cpp|yaml|html)\b", DOCUMENTS[document])) - WRITTEN_BY_RUNS
    for name in named:
        assert "NAME" in name or any(path.endswith(f"/{name}") for path in sources), name


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_have_a_target(document):
    for link in re.findall(r"\]\((?!https?:)(.*?)\)", FENCED.sub("", DOCUMENTS[document])):
        path, _, anchor = link.partition("#")
        target = ((PROJECT / document).parent / path).resolve() if path else PROJECT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(DOCUMENTS[target.relative_to(PROJECT).as_posix()]), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_picture_is_small_described_and_beside_its_command(document):
    for section in re.split(r"^#+ ", FENCED.sub("", DOCUMENTS[document]), flags=re.MULTILINE):
        for description, link in PICTURE.findall(section):
            assert len(description) > 10, link
            assert ((PROJECT / document).parent / link).stat().st_size < 150_000, link
            assert any(command.startswith("python src/") for command in shown_commands(section)), link


def test_every_stored_picture_is_shown():
    shown = {
        ((PROJECT / document).parent / link).resolve()
        for document, text in DOCUMENTS.items()
        for _, link in PICTURE.findall(text)
    }
    assert shown == {path.resolve() for path in (PROJECT / "notebooks").rglob("*.png")}


def test_the_equations_of_the_readme_are_those_of_the_scratch_cell():
    [(_, excerpt)] = FENCED.findall(DOCUMENTS["README.md"])[:1]
    scratch = (PROJECT / "src/lstmlab/cells/scratch.py").read_text(encoding="utf-8")
    shown, source = ([line.strip() for line in text.splitlines() if line] for text in (excerpt, scratch))
    start = source.index(shown[0])
    assert len(shown) >= 10 and source[start : start + len(shown)] == shown


def test_the_doctor_reports_as_shown(command, tmp_path):
    """In the same words; the numbers depend on the version of Python, whose library is the text."""
    text = DOCUMENTS["src/lstmlab/callbacks/README.md"]
    [line] = [each for each in shown_commands(text) if "optimizer.lr=1e-6" in each]
    name, arguments = split_command(line)  # type: ignore[misc]
    code, printed, _ = command(
        name, *arguments, f"data.cache={tmp_path}", "threads=1", "trainer.enable_progress_bar=false"
    )
    printed, shown = (
        [re.sub(r"\d[\d.e-]*", "N", line.strip()) for line in part.partition("Doctor, ")[2].splitlines()[:5]]
        for part in (printed, text)
    )
    assert code == 0 and printed == shown and shown[-1].startswith("- Try: ")


def test_the_onnx_example_runs(command, trained, tmp_path, capsys):
    ckpt = str(trained("sentiment"))
    _, printed, _ = command("export", f"ckpt={ckpt}", f"folder={tmp_path}")
    [(_, example)] = FENCED.findall(DOCUMENTS["src/lstmlab/runs/README.md"])
    exec(example.replace("RUN/export/model.onnx", printed.strip()), {})
    [answer] = load_model(ckpt).respond("not bad at all", PredictConfig.model_construct())
    assert answer.startswith(capsys.readouterr().out.strip() + ", probability")
