"""A run that is broken off, at any place and as often as one likes, ends as one that never was."""

import csv
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.callbacks.throughput import Throughput
from lstmlab.runs import train

TASKS = {
    "charlm": ["data=textfile", "data.batch_size=4", "data.sequence_length=20", "data.val_fraction=0.3"],
    "copytask": ["data.delay=5", "data.train_batches=10", "data.batch_size=4", "data.val_size=12"],
    "sentiment": ["data=reviews", "data.train_size=80", "data.batch_size=8", "data.val_size=24"],
    "seq2seq": ["data=dates", "data.train_size=80", "data.batch_size=8", "data.val_size=24"],
}
HARD = [  # all that has a state: dropout, a schedule, steps of two batches with a validation within
    "cell.num_layers=2",
    "cell.dropout=0.3",
    "cell.weight_drop=0.1",
    "scheduler.warmup_steps=2",
    "scheduler.patience=1",
    "optimizer.lr=0.05",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=9",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture
def task(config, text_file):
    def build(name: str, *overrides: str) -> dict:
        given = [f"model={name}", *TASKS[name], *SMALL, *HARD]
        if name != "copytask":
            given += ["model.embedding_size=6", "model.dropout=0.3", f"data.cache={text_file.parent}/cache"]
        if name == "charlm":
            given.append(f"data.path={text_file}")
        return config(*given, *overrides)

    return build


@pytest.fixture
def stop(monkeypatch):
    """stop("on_train_batch_end", n): SIGTERM comes in the n-th such hook from now on."""

    def at(hook: str, count: int) -> None:
        original = getattr(Throughput, hook)

        def interrupt(*arguments, **named) -> None:
            nonlocal count
            count -= 1
            if count == 0:
                signal.raise_signal(signal.SIGTERM)
                monkeypatch.undo()
            original(*arguments, **named)

        monkeypatch.setattr(Throughput, hook, interrupt)

    return at


def go_on(settings: dict) -> None:
    """As resume=RUN does: with the settings that the run wrote down."""
    folder = Path(settings["run_dir"])
    train(yaml.safe_load((folder / "config.yaml").read_text()) | {"resume": str(folder)})


def rows(settings: dict) -> list[dict]:
    with (Path(settings["run_dir"]) / "metrics.csv").open(newline="") as file:
        return [
            # the epoch is one less in the row of a test that is all there was left to do
            {key: value for key, value in row.items() if key not in ("train/tokens_per_second", "epoch")}
            for row in csv.DictReader(file)
        ]


def assert_same(found, expected, place="") -> None:
    """The same containers with the same numbers, bit for bit."""
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


def assert_same_end(broken: dict, whole: dict) -> None:
    for name in ("best", "last"):
        found, expected = (
            checkpoint.load(f"{settings['run_dir']}/checkpoints/{name}.ckpt") for settings in (broken, whole)
        )
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert_same(found[part], expected[part], f"{name}.{part}")
        assert found["resume"]["rows"] == expected["resume"]["rows"]
        assert_same(found["resume"]["random_states"], expected["resume"]["random_states"])
        for part in ("plateau", "train_state"):
            assert_same(found.get(part), expected.get(part), f"{name}.{part}")
    assert rows(broken) == rows(whole)
    tables = [(Path(settings["run_dir"]) / "examples.md").read_text() for settings in (broken, whole)]
    assert tables[0] == tables[1]
    ends = [json.loads((Path(s["run_dir"]) / "metrics.json").read_text()) for s in (broken, whole)]
    assert ends[0] | {"train/seconds": 0, "train/tokens_per_second": 0} == ends[1] | {
        "train/seconds": 0,
        "train/tokens_per_second": 0,
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_end_is_the_same(name, task, stop):
    workers = ["data.num_workers=2"] if name == "sentiment" else []
    whole, broken = task(name, *workers), task(name, *workers)
    train(whole)
    run: Callable[[dict], object] = train
    # within a step of two batches; as a validation is due; at an epoch's end; within two validations
    for hook, count in [
        ("on_train_batch_end", 1),
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 1),
        ("on_train_batch_end", 3),
        ("on_validation_batch_end", 2),
        ("on_validation_batch_end", 14),
    ]:
        stop(hook, count)
        with pytest.raises(SystemExit) as ended:
            run(broken)
        assert ended.value.code == 128 + signal.SIGTERM
        run = go_on
    go_on(broken)
    assert_same_end(broken, whole)


def test_early_stopping_goes_on_counting(task, stop):
    limits = ["callbacks.early_stopping.patience=3", "optimizer.lr=1e-30", "trainer.max_epochs=9"]
    whole, broken = task("copytask", *limits), task("copytask", *limits)
    train(whole)
    stop("on_train_batch_end", 12)
    with pytest.raises(SystemExit):
        train(broken)
    go_on(broken)
    assert_same_end(broken, whole)
    (Path(broken["run_dir"]) / "metrics.json").unlink()  # as if it had been killed in the test that follows
    go_on(broken)
    assert_same_end(broken, whole)


def test_a_run_that_was_moved_goes_on(task, stop, tmp_path):
    """Its best score too, which Lightning forgets when it finds another folder."""
    whole, broken = task("copytask"), task("copytask")
    train(whole)
    stop("on_train_batch_end", 16)
    with pytest.raises(SystemExit):
        train(broken)
    elsewhere = broken | {"run_dir": str(tmp_path / "elsewhere")}
    shutil.move(broken["run_dir"], elsewhere["run_dir"])
    go_on(elsewhere)
    assert_same_end(elsewhere, whole)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [(["callbacks.last.every_n_steps=3"], 6), (["callbacks.last.every_n_minutes=1e-9"], 7)],
)
def test_a_checkpoint_every_so_often(overrides, steps, task, monkeypatch):
    """Whoever is killed without a word goes on from there."""
    settings = task("copytask", *overrides, "trainer.val_check_interval=100")
    killed = RuntimeError("killed")

    def kill(_, trainer, *__) -> None:
        if trainer.global_step == 8:
            raise killed

    monkeypatch.setattr(Throughput, "on_train_batch_end", kill)
    with pytest.raises(RuntimeError, match="killed"):
        train(settings)
    assert checkpoint.load(f"{settings['run_dir']}/checkpoints/last.ckpt")["global_step"] == steps
