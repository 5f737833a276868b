import csv
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lstmlab.callbacks import throughput
from lstmlab.data import build_data
from lstmlab.runs.train import train
from same_end import HARD, TASKS, overrides


@pytest.fixture
def seconds(monkeypatch):
    """A clock that advances by one second each time it is read."""
    clock = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))


def characters(batch: Any) -> int:
    return 4 * 20


def symbols_and_blanks(batch: Any) -> int:
    return sum(map(len, batch.tokens.tolist()))


def words(batch: Any) -> int:
    return sum(batch.lengths.tolist())


def of_the_target(batch: Any) -> int:
    return sum(map(len, batch.target.tolist()))


COUNTED = dict(zip(TASKS, (characters, symbols_and_blanks, words, of_the_target), strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_counted(name, config, text_file, seconds):
    """Each rate covers two batches, and a validation starts a new interval; the sum covers all batches."""
    given = [o for o in overrides(name, text_file) if o not in HARD]
    settings = config(
        *given,
        "trainer.log_every_n_steps=2",
        "trainer.val_check_interval=5",
        "trainer.limit_train_batches=6",
        "trainer.max_epochs=1",
        "callbacks.examples=null",
    )
    train(settings)
    module = build_data(settings.data, settings.seed)
    module.prepare_data()
    module.setup("fit")
    counts = [COUNTED[name](batch) for batch in itertools.islice(module.train_dataloader(), 6)]
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [sum(counts[:2]), sum(counts[2:4]), counts[5]]
    rates = [row["train/tokens_per_second"] for row in rows]
    assert [float(rate) for rate in rates if rate] == pytest.approx(expected)
    seen = [float(row["train/tokens"]) for row in rows if row["train/tokens"]]
    assert seen == [sum(counts[:number]) for number in (2, 4, 5, 6, 6)]
