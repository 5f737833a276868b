"""analyze.py from a checkpoint of each task to its folder."""

import numpy as np
import pytest

from conftest import SMALL
from lstmlab.runs import train

SETS = ["data.train_size=64", "data.val_size=40", "data.test_size=10"]
TASKS = {
    "charlm": ["data=textfile", "data.batch_size=4", "data.sequence_length=20"],
    "charlm with gru": ["data=textfile", "data.batch_size=4", "data.sequence_length=20", "cell.kind=gru"],
    "copytask with rnn": ["data.val_size=40", "cell.kind=rnn"],
    "sentiment": ["data=reviews", *SETS],
    "seq2seq": ["data=dates", *SETS],
}
EVERYWHERE = {"report.md", "page.html", "traces.npz", "gates.png", "gradient_flow.png"}
MORE = {
    "charlm": {"half_life.png", "saturation.png", "probes.png", "writing.png"},
    "charlm with gru": {"half_life.png", "saturation.png", "probes.png", "writing.png"},
    "copytask with rnn": {"probes.png"},
    "sentiment": {"half_life.png", "saturation.png", "probes.png"},
    "seq2seq": {"half_life.png", "saturation.png", "probes.png", "attention.png"},
}


@pytest.fixture
def trained(config, text_file, tmp_path):
    """trained("sentiment") → the folder of a run of one batch."""

    def run(task: str) -> str:
        name = task.split()[0]
        overrides = [f"model={name}", *TASKS[task], *SMALL, "debug=one_batch"]
        if name == "charlm":
            overrides += [f"data.path={text_file}", f"data.cache={tmp_path}/cache"]
        settings = config(*overrides)
        train(settings)
        return settings["run_dir"]

    return run


@pytest.mark.parametrize("task", TASKS)
def test_each_task(task, trained, command, tmp_path):
    run = trained(task)
    arguments = ["page_steps=200", "probe_steps=400", f"ckpt={run}/checkpoints/last.ckpt"]
    if task.startswith("charlm"):
        arguments.append(f"data.cache={tmp_path}/cache")
    code, out, error = command("analyze", *arguments)
    assert (code, error) == (0, "")
    folder = tmp_path / run / "analysis"
    assert {path.name for path in folder.iterdir()} == EVERYWHERE | MORE[task]
    assert "## Gradient flow" in out and ("## What the units know" in out)
    with np.load(folder / "traces.npz") as arrays:
        steps = len(arrays["tokens"])
        assert 0 < steps <= 200
        assert arrays["h"].shape[2:] == (steps, 8)
        if task == "charlm":
            assert set(arrays) == set("ifgoch") | {"tokens"}
            assert "position in word" in out


def test_a_typed_text_needs_no_data(trained, command, tmp_path, text_file):
    run = trained("charlm")
    text_file.unlink()
    arguments = [
        f"ckpt={run}/checkpoints/last.ckpt",
        "probe_steps=0",
        "page_values=[c,f]",
        f"folder={tmp_path}/x",
    ]
    code, out, error = command("analyze", *arguments, 'text=line 1: "é", isn\'t it?\n')
    assert (code, error) == (0, "")
    assert "## What the units know" not in out and "## What it writes\n\nLeft out: " in out
    page = (tmp_path / "x/page.html").read_text(encoding="utf-8")
    assert 'id="f-0-0"' in page and 'id="h-0-0"' not in page


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("text=", "text= is empty"),
        ("page_values=[z]", "page_values holds z"),
        ("page_steps=0", "page_steps"),
        ("language=latin", "language"),
    ],
)
def test_mistakes(trained, command, argument, message):
    ckpt = f"ckpt={trained('charlm')}/checkpoints/last.ckpt"
    code, _, error = command("analyze", ckpt, "probe_steps=0", "text=line", argument)
    assert code == 1 and error.count("\n") == 1 and message in error
