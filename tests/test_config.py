import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from lstmlab.config import PROJECT, quote_raw

TEXTS = [
    "Not bad, isn't it?",
    "ä",
    "电影",
    "123",
    "null",
    "",
    "a=b (c) [d] {e}: %",
    'say "no"',
    "${model.name} costs $5",
    "\\${x} \\\\${y}",
    "back\\slash\\",
    "it\\'s",
    "\\\\'",
    "'",
    " two\nlines\t",
    "true,false",
    "#!~@",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["text", "ckpt"])
def test_raw_values_arrive_as_typed(key, text):
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        arguments = ["ckpt=x", "text=x", f"{key}={text}"]
        composed = compose("predict", [quote_raw(argument) for argument in arguments])
    assert composed[key] == text


def test_other_values_are_left_to_hydra():
    assert quote_raw("cell.hidden_size=1,2") == "cell.hidden_size=1,2"
    assert quote_raw("--help") == "--help"


# What is typed, and what the one sentence names: key, value and what is allowed
WRONG = [
    ("train", ["cell.dropout=1.5"], ["cell.dropout=1.5", "less than 1"]),
    ("train", ["cell.hidden_size=0"], ["cell.hidden_size=0", "greater than 0"]),
    ("train", ["cell.hidden_size=many"], ["cell.hidden_size=many", "integer"]),
    ("train", ["cell.size=3"], ["cell.size", "hidden_size"]),
    ("train", ["cell=cudnn"], ["cudnn", "scratch", "torch"]),
    ("train", ["model=lm"], ["lm", "charlm"]),
    ("train", ["cell=torch", "cell.kind=peephole"], ["peephole", "scratch", "fused"]),
    ("train", ["cell.bidirectional=true"], ["cell.bidirectional=true", "charlm"]),
    ("train", ["cell.init=chrono"], ["cell.init=chrono", "cell.chrono_steps"]),
    ("train", ["optimizer.lr=-1"], ["optimizer.lr=-1", "greater than 0"]),
    ("train", ["scheduler=plateau", "scheduler.final_lr=0"], ["scheduler.final_lr", "patience"]),
    ("train", ["clipping=value", "clipping.max_norm=1"], ["clipping.max_norm", "max_value"]),
    ("train", ["precision=fp16"], ["precision=fp16", "trainer=gpu"]),
    ("train", ["trainer.max_epochs=null"], ["trainer.max_epochs=null", "trainer.max_steps"]),
    ("train", ["data=textfile"], ["data.path is required"]),
    ("train", ["data=textfile", "data.path=/no/such/file"], ["data.path=/no/such/file", "no such file"]),
    ("train", ["data=textfile", "data.path=/"], ["data.path=/", "a folder"]),
    ("train", ["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
    ("train", ["+sead=1"], ["sead=1", "no such key"]),
    ("predict", ["text=a"], ["ckpt is required"]),
    ("predict", ["ckpt=nowhere.ckpt", "text=a"], ["ckpt=nowhere.ckpt", "no such file"]),
    ("predict", ["ckpt=x", "text=a", "temperature=-1"], ["temperature=-1"]),
    ("evaluate", ["ckpt=x", "backend=cudnn"], ["backend=cudnn", "'torch'"]),
]


@pytest.mark.parametrize(("name", "arguments", "named"), WRONG, ids=lambda v: " ".join(v) if v else "")
def test_a_mistake_ends_in_one_sentence(command, name, arguments, named):
    code, _, error = command(name, *arguments)
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in named:
        assert part in error


def test_a_mistake_is_found_before_torch_is_imported(tmp_path):
    program = (
        "import sys, train; sys.argv[1:] = ['cell.dropout=2']\n"
        "try: train.main()\n"
        "except SystemExit as stop: assert 'cell.dropout=2' in stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(PROJECT / "src"), "PATH": ""}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60)


def test_help_lists_choices_and_settings():
    done = subprocess.run(
        [sys.executable, str(PROJECT / "src/train.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "optimizer: adam, adamw, rmsprop, sgd" in done.stdout
    assert "hidden_size: 256" in done.stdout


def test_a_traceback_is_there_for_who_asks(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROJECT / "src/train.py"), "cell.dropout=2", "hydra.run.dir=."],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HYDRA_FULL_ERROR": "1", "PATH": ""},
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
