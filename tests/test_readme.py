"""Every command line that the README and the studies show is one that its entry point accepts."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir

from lstmlab.config import PROJECT, plain, quote_raw
from lstmlab.schema import check

README = (PROJECT / "README.md").read_text(encoding="utf-8")
# The command ends where its explanation begins, two blanks further on
SHOWN = README + (PROJECT / "notebooks/studies.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip() for line in re.findall(r"python src/(\w+\.py.*?)(?:  .*|`.*)?$", SHOWN, re.MULTILINE)
]
MEANT_WRONG = {"train.py cell=torch cell.kind=peephole"}


@pytest.mark.parametrize("line", sorted(set(COMMANDS) - MEANT_WRONG))
def test_command_composes(line, tmp_path):
    file, *arguments = shlex.split(line)
    name = file.removesuffix(".py")
    arguments = [quote_raw(argument) for argument in arguments if argument not in ("-m", "--help")]
    if "-m" in shlex.split(line):  # a sweep: its first job
        arguments = [re.sub(r"=([^,\[]+),.*", r"=\1", argument) for argument in arguments]
    if "sweep=optuna" in arguments:
        arguments.append("callbacks.pruning=null")  # where its study is, a sweep knows
    if name in ("train", "bench"):
        arguments.append(f"run_dir={tmp_path}")
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        check(name, plain(compose(name, arguments)))


def test_both_setup_commands_stand_at_the_top():
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert commands[0] == "pip install -e . && python src/train.py model=charlm"
    assert commands[1] == "pip install -e '.[dev]' && pytest"
