import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from conftest import SMALL
from lstmlab.benchmarks import speedrun
from lstmlab.callbacks.examples import Examples
from lstmlab.config import PROJECT, to_plain
from lstmlab.models.charlm import CharLM
from lstmlab.schema import check


def test_a_run_ends_when_it_is_below_the_target(tmp_path, text_file, monkeypatch):
    """By a clock that training, validations and callbacks advance: only training is counted."""
    overrides = [f"run_dir={tmp_path}/bench", "rounds=2", "seed=3", *SMALL, "callbacks.gates=null"]
    overrides += ["data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}", "data.batch_size=4"]
    overrides += [
        "data.sequence_length=10",
        "trainer.max_steps=9",
        "trainer.val_check_interval=3",
        "optimizer.lr=0.01",
    ]
    overrides += ["trainer.log_every_n_steps=1", "scheduler=constant"]
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        settings = check("bench", to_plain(compose("bench", overrides)))

    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 2 * now[0])
    monkeypatch.setattr(speedrun, "time", clock)

    def wait(owner: Any, name: str, seconds: float) -> None:
        """Let the clock run on when this is called."""
        original = getattr(owner, name)

        def slow(*arguments):
            now[0] += seconds
            return original(*arguments)

        monkeypatch.setattr(owner, name, slow)

    wait(CharLM, "training_step", 1)
    wait(CharLM, "on_validation_epoch_end", 100)
    wait(Examples, "on_validation_end", 100)
    wait(CharLM, "on_train_start", 100)
    monkeypatch.setattr(speedrun, "TARGET", 0.0)
    printed = speedrun.measure_speedrun(settings)
    assert "not below 0.0: seed 3, 4." in printed
    attempts = json.loads((tmp_path / "bench/bench.json").read_text())["rows"]
    assert [attempt["seed"] for attempt in attempts] == [3, 4]
    for attempt in attempts:
        assert (attempt["steps"], attempt["tokens"]) == (9, 9 * 4 * 10)
        assert (attempt["seconds"], attempt["processor_seconds"]) == (9, 18)

    with Path(tmp_path / "bench/3/metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss_cold"]) for row in csv.DictReader(file) if row["val/loss_cold"]]
    assert attempts[0]["loss"] == pytest.approx(losses[2]) and losses[0] > losses[1] > losses[2]
    monkeypatch.setattr(speedrun, "TARGET", (losses[1] + losses[0]) / 2)
    again = speedrun.run_seed(settings.replace({"run_dir": f"{tmp_path}/again"}), 3)
    assert again.steps == 6 and again.loss == pytest.approx(losses[1])
