"""curves.png, and the mean training loss before the best step."""

from pathlib import Path

import pytest
from PIL import Image

from conftest import SMALL, TINY
from lstmlab.callbacks import curves
from lstmlab.callbacks.curves import mean_train_loss, read_points, smooth
from lstmlab.runs.train import train

TASK = ["model=copytask", *TINY["copytask"], *SMALL, "data.train_batches=6", "trainer.max_epochs=2"]
TASK += ["trainer.log_every_n_steps=1", "trainer.val_check_interval=3"]
DRAWN = ["callbacks.curves={_target_: lstmlab.callbacks.curves.Curves}"]


def test_a_run_draws_its_curves(config):
    settings = config(*TASK, *DRAWN)
    metrics = train(settings)
    points = read_points(settings.run_dir)
    assert points["train/loss"][0] == [*range(1, 13)] and points["val/loss"][0] == [3, 6, 9, 12]
    with Image.open(Path(settings.run_dir) / "curves.png") as image:
        assert image.size[0] > 900 and len(set(image.convert("L").tobytes())) > 20
    best = points["val/loss"][0][points["val/loss"][1].index(metrics["val/loss"])]
    before = points["train/loss"][1][best - 3 : best]
    assert metrics["train/loss"] == pytest.approx(sum(before) / 3)


def test_a_picture_that_fails_is_told_and_does_not_fail_the_run(config, monkeypatch):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(curves, "draw_curves", fail)
    with pytest.warns(UserWarning, match="no curves.png: RuntimeError"):
        assert train(config(*TASK, *DRAWN))["train/seconds"] > 0


def test_the_mean_loss_needs_a_recorded_step():
    points = {"train/loss": ([10, 20], [3.0, 1.0]), "val/loss": ([5, 9, 25], [2.0, 1.0, 0.5])}
    assert mean_train_loss(points, 9) is None
    assert mean_train_loss(points, 25) == 2.0


def test_smoothing_is_a_mean_of_the_latest_values():
    assert smooth([1.0, 2.0, 3.0, 6.0], 2).tolist() == [1.0, 1.5, 2.5, 4.5]
    assert smooth([], 1).tolist() == []
