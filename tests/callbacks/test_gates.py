from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.analysis.traces import trace
from lstmlab.callbacks.gates import paint_gates
from lstmlab.runs.train import train

QUICK = [
    *SMALL,
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=1",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
]
SETS = ["data.train_size=60", "data.val_size=20", "data.test_size=20", "data.batch_size=4"]


def test_the_gates_of_one_text_at_each_validation_in_every_logger(config, text_file):
    settings = config(
        *QUICK, "data=textfile", f"data.path={text_file}", f"data.cache={text_file.parent}/cache",
        "data.batch_size=4", "data.sequence_length=20", "cell.num_layers=2", "callbacks.gates.units=3",
        "callbacks.gates.steps=30", "logger=[tensorboard,wandb]", "logger.wandb.offline=true",
    )  # fmt: skip
    train(settings)
    folder = Path(settings.run_dir)
    first, second = (np.load(folder / f"gates/step_{step}.npz") for step in (1, 2))
    assert set(first) == {"tokens", "units", *"ifgoch"}
    assert first["units"].tolist() == [0, 3, 7]
    assert "".join(first["tokens"]) == "".join(second["tokens"])
    assert len(first["tokens"]) == 30

    # The gates of the checkpoint that was saved at the same step
    model = checkpoint.load_model(str(folder / "checkpoints/last.ckpt"), "scratch")
    expected = trace(model, model.read_text("".join(second["tokens"])))
    for name, values in expected.items():
        np.testing.assert_allclose(second[name], values[..., [0, 3, 7]], atol=1e-6)
        assert not np.array_equal(first[name], second[name])

    with Image.open(folder / "gates.png") as image:
        blocks = {name: second[name][-1, 0].T for name in second.files if name not in ("tokens", "units")}
        assert_shown(image, blocks, 36)  # the last layer
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/gates*.png"))) == 2
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Images("gates")] == [1, 2]


def assert_shown(image: Image.Image, blocks: dict[str, np.ndarray], top: int) -> None:
    """Each value is a square of 9 pixels, below `top` pixels of text, with an empty row after each block.

    Right of each block is its colour scale, from the highest value to the lowest.
    """
    units, steps = next(iter(blocks.values())).shape
    assert image.size[0] >= 9 * (steps + 11)
    assert image.size[1] == top + len(blocks) * 9 * (units + 1)
    for k, (name, values) in enumerate(blocks.items()):
        limit = max(1, np.quantile(abs(values), 0.99))
        for unit, step in np.ndindex(units, steps):
            value = values[unit, step]
            if name in "ifozr":
                colour = colormaps["viridis"](float(value))
            else:
                colour = colormaps["RdBu_r"](float((value + limit) / (2 * limit)))
            x, y = 9 * (step + 5), top + 9 * (k * (units + 1) + unit)
            for corner in ((x, y), (x + 8, y + 8)):
                pixel = np.array(image.getpixel(corner))
                assert abs(pixel - 255 * np.array(colour[:3])).max() < 2, (name, unit, step)
        for end, row in ((1.0, 0), (0.0, 9 * units - 1)):
            colour = colormaps["viridis" if name in "ifozr" else "RdBu_r"](end)
            pixel = np.array(image.getpixel((9 * (steps + 6) + 4, top + 9 * k * (units + 1) + row)))
            assert abs(pixel - 255 * np.array(colour[:3])).max() < 2, (name, end)


@pytest.mark.parametrize(("tokens", "top"), [([*"a \n"], 36), (["one ", "tw", "o"], 90)])
def test_the_picture_shows_each_value(tokens, top):
    f, h = np.array([[0.0, 1.0, 0.3], [0.5, 0.7, 0.2]]), np.array([[0.0, -1.0, 1.0], [0.5, -0.5, 0.25]])
    for values in ({"f": f, "c": 4 * h, "h": h}, {"c": h / 4}, {"h": 7 * h}):
        assert_shown(paint_gates(values, tokens, [0, 255], "a title"), values, top)


@pytest.mark.parametrize(
    ("overrides", "names", "layout"),
    [
        (["model=copytask", "cell.kind=rnn", "data.val_size=20"], "h", (1, 1)),
        (["model=sentiment", "data=reviews", "cell.kind=gru", *SETS], "rznh", (1, 2)),
        (["model=seq2seq", "data=dates", *SETS], "ifgoch", (1, 2)),
        (["model=seq2seq", "data=dates", *SETS, "cell=fused", "cell.recompute=true"], "ifgoch", (1, 2)),
    ],
    ids=["copytask", "sentiment", "seq2seq", "gates computed again"],
)
def test_each_task_and_cell(config, tmp_path, overrides, names, layout):
    cache = [] if overrides[0] == "model=copytask" else [f"data.cache={tmp_path}/cache"]
    settings = config(*QUICK, *overrides, *cache, "trainer.limit_test_batches=1")
    train(settings)
    traced = np.load(Path(settings.run_dir) / "gates/step_2.npz")
    assert set(traced) == {"tokens", "units", *names}
    for name in names:
        assert traced[name].shape == (*layout, len(traced["tokens"]), 8)


def test_gates_do_not_change_the_run(config, text_file):
    """With dropout: the callback does not advance the random state of the run."""
    losses = []
    for extra in ([], ["callbacks.gates=null"]):
        settings = config(
            *QUICK, "data=textfile", f"data.path={text_file}", f"data.cache={text_file.parent}/cache",
            "data.batch_size=4", "data.sequence_length=20", "callbacks.examples=null", *extra,
        )  # fmt: skip
        train(settings)
        saved = checkpoint.load_checkpoint(settings.run_dir + "/checkpoints/last.ckpt")
        losses.append(saved["state_dict"])
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
