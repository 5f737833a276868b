"""The progress of real runs, as lines."""

import re

import pytest

from conftest import SMALL, TINY, ask
from lstmlab import progress
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train

TASK = [
    "model=copytask",
    *TINY["copytask"],
    *SMALL,
    "trainer.enable_progress_bar=true",
    "data.train_batches=6",
]
TASK += ["trainer.max_epochs=3", "trainer.log_every_n_steps=1"]


@pytest.fixture
def lines(monkeypatch, capsys):
    """What was shown, at each batch."""
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    pattern = re.compile(r"^((?:training|val \d+%|validation|test): .*)$", re.MULTILINE)
    return lambda: pattern.findall("".join(capsys.readouterr()))


def test_the_steps_of_the_whole_run_are_counted(config, lines):
    train(config(*TASK, "trainer.accumulate_grad_batches=2"))
    shown = lines()
    steps = [line.split()[1] for line in shown if line.startswith("training")]
    assert list(dict.fromkeys(steps)) == ["0/9", *(f"{step}/9" for step in range(1, 10))]
    assert "loss" in shown[0] and "val" not in shown[0] and "val 0." in shown[-3]
    assert any(line.startswith("val 50%: 3/9 (33%), ") for line in shown)
    assert any(line.startswith("test: 1/2 (50%), ") for line in shown)


@pytest.mark.parametrize(
    ("limit", "total"), [("trainer.max_steps=7", 7), ("trainer.limit_train_batches=4", 12)]
)
def test_each_limit_gives_the_total(config, lines, limit, total):
    train(config(*TASK, limit))
    assert f"training: {total}/{total} (100%), in 0:00:" in "\n".join(lines())


def test_a_resumed_run_starts_at_the_step_that_it_reached(config, lines):
    settings = config(*TASK, "trainer.max_steps=8")
    train(settings)
    lines()
    train(config("trainer.max_steps=12", "exact=false", f"resume={settings.run_dir}", *TASK))
    assert lines()[0].startswith("training: 9/12 (75%), ")


def test_no_progress_bar_means_none(config, lines):
    train(config(*TASK, "trainer.enable_progress_bar=false"))
    assert lines() == []


def test_an_evaluation_says_how_far_it_is(trained, lines):
    evaluate(ask(str(trained("copytask"))))
    assert [line.split(":")[0] for line in lines()] == ["validation"] * 2 + ["test"] * 2
