"""Small runs in which every part has state, processes to run them, and a check that two ended the same."""

import csv
import importlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.config import PROJECT
from lstmlab.models.base import Task
from lstmlab.runs.launch import run_worker
from lstmlab.runs.train import train
from lstmlab.schema import TrainConfig, check

TASKS = {
    "charlm": ["data=textfile", "data.batch_size=4", "data.sequence_length=20", "data.val_fraction=0.3"],
    "copytask": ["data.delay=5", "data.train_batches=10", "data.batch_size=4", "data.val_size=12"],
    "sentiment": ["data=reviews", "data.train_size=80", "data.batch_size=8", "data.val_size=24"],
    "seq2seq": ["data=dates", "data.train_size=80", "data.batch_size=8", "data.val_size=24"],
}
HARD = [  # every part with state: dropout, a schedule, steps of two batches with a validation between them
    "cell.num_layers=2",
    "cell.dropout=0.3",
    "cell.weight_drop=0.1",
    "scheduler.warmup_steps=2",
    "scheduler=plateau",
    "scheduler.patience=1",
    "optimizer.lr=0.05",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=9",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=1",
]


# Imports torch, Lightning and the tasks once for all runs
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["lstmlab.runs.train", *(f"lstmlab.models.{name}" for name in TASKS), "lstmlab.data.dates"]
)


def fork(function: Callable, *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Run `function(*arguments)` in its own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT / "src"), prepend=os.pathsep)
        process = SERVER.Process(target=function, args=arguments)
        process.start()
    return process


def start(settings: TrainConfig) -> multiprocessing.process.BaseProcess:
    """Start a run and wait until it has written config.yaml."""
    process = fork(train, settings)
    while process.is_alive() and not (Path(settings.run_dir) / "config.yaml").exists():
        time.sleep(0.001)
    return process


def run_worker_until(batch: int, rank: int, settings: TrainConfig, port: int, results: Any) -> None:
    """`run_worker`, with SIGTERM to the second process at this batch of the first epoch."""

    def begin_batch(_: Task, __: Any, batch_idx: int) -> None:
        if (rank, batch_idx) == (1, batch):
            os.kill(os.getpid(), signal.SIGTERM)

    module, name = settings.model.module.split(".")
    getattr(importlib.import_module(f"lstmlab.models.{module}"), name).on_train_batch_start = begin_batch
    run_worker(rank, settings.to_plain(), port, results)


def overrides(name: str, text_file: Path) -> list[str]:
    given = [f"model={name}", *TASKS[name], *SMALL, *HARD]
    if name != "copytask":
        given += ["model.embedding_size=6", "model.dropout=0.3", f"data.cache={text_file.parent}/cache"]
    if name == "charlm":
        given.append(f"data.path={text_file}")
    return given


def resumed(settings: TrainConfig) -> TrainConfig:
    """The settings of `resume=RUN`, which come from config.yaml."""
    folder = Path(settings.run_dir)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    return check("train", written | {"resume": str(folder)})


def resume(settings: TrainConfig) -> None:
    train(resumed(settings))


def rows(settings: TrainConfig) -> list[dict]:
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        return [
            # A run resumed for its test alone logs that row with the epoch before
            {key: value for key, value in row.items() if key not in ("train/tokens_per_second", "epoch")}
            for row in csv.DictReader(file)
        ]


def assert_same(found, expected, place="") -> None:
    """Assert that both are the same containers with the same numbers, bit for bit."""
    assert type(found) is type(expected), place
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), place
        for key in found:
            assert_same(found[key], expected[key], f"{place}.{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{place}.{number}")
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


def assert_same_end(interrupted: TrainConfig, whole: TrainConfig) -> None:
    for name in ("best", "last"):
        found, expected = (
            checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/{name}.ckpt")
            for settings in (interrupted, whole)
        )
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert_same(found[part], expected[part], f"{name}.{part}")
        assert found["resume"]["rows"] == expected["resume"]["rows"]
        assert_same(found["resume"]["processes"], expected["resume"]["processes"])
        for part in ("plateau", "train_state", "current_model_state", "averaging_state"):
            assert_same(found.get(part), expected.get(part), f"{name}.{part}")
    assert rows(interrupted) == rows(whole)
    tables = [(Path(settings.run_dir) / "examples.md").read_text() for settings in (interrupted, whole)]
    assert tables[0] == tables[1]
    ends = [json.loads((Path(s.run_dir) / "metrics.json").read_text()) for s in (interrupted, whole)]
    assert ends[0] | {"train/seconds": 0, "train/tokens_per_second": 0} == ends[1] | {
        "train/seconds": 0,
        "train/tokens_per_second": 0,
    }
