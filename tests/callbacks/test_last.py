"""A run that is interrupted, at any point and any number of times, ends as if it had never been."""

import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lstmlab import checkpoint
from lstmlab.callbacks.last import LastCheckpoint
from lstmlab.callbacks.throughput import Throughput
from lstmlab.runs.train import train
from lstmlab.schema import TrainConfig
from same_end import assert_same_end, overrides, resume


@pytest.fixture
def task(config, text_file):
    return lambda name, *more: config(*overrides(name, text_file), *more)


@pytest.fixture
def stop(monkeypatch):
    """stop("on_train_batch_end", n): raise SIGTERM, or other signals, in the n-th call of that hook."""

    def at(hook: str, count: int, signals: Sequence[int] = (signal.SIGTERM,)) -> None:
        original = getattr(Throughput, hook)

        def interrupt(*arguments, **named) -> None:
            nonlocal count
            count -= 1
            if count == 0:
                monkeypatch.setattr(Throughput, hook, original)
                for number in signals:
                    signal.raise_signal(number)
            original(*arguments, **named)

        monkeypatch.setattr(Throughput, hook, interrupt)

    return at


AVERAGING = ["callbacks=averaging", "callbacks.averaging.decay=0.9", "model.tie_weights=true"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("charlm", []),
        ("copytask", []),
        ("sentiment", ["data.num_workers=2"]),
        ("seq2seq", []),
        ("charlm", AVERAGING),
    ],
)
def test_an_interrupted_run_ends_the_same(name, more, task, stop):
    whole, interrupted = task(name, *more), task(name, *more)
    train(whole)
    run: Callable[[TrainConfig], object] = train
    # Within a step of two batches, before a validation, at the end of an epoch, within two validations
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
            run(interrupted)
        assert ended.value.code == 128 + signal.SIGTERM
        run = resume
    resume(interrupted)
    assert_same_end(interrupted, whole)


@pytest.mark.parametrize("kind", ["mogrifier", "mingru", "minlstm", "slstm"])
def test_a_run_interrupted_within_an_epoch_continues_with_the_state_of_its_kind(kind, task, stop):
    more = [
        f"cell.kind={kind}",
        "cell.weight_drop=0",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=6",
    ]
    whole, interrupted = task("charlm", *more), task("charlm", *more)
    train(whole)
    stop("on_train_batch_end", 4)
    with pytest.raises(SystemExit):
        train(interrupted)
    resume(interrupted)
    assert_same_end(interrupted, whole)


def test_early_stopping_continues_counting(task, stop):
    limits = ["callbacks.early_stopping.patience=3", "optimizer.lr=1e-30", "trainer.max_epochs=9"]
    whole, interrupted = task("copytask", *limits), task("copytask", *limits)
    train(whole)
    stop("on_train_batch_end", 12)
    with pytest.raises(SystemExit):
        train(interrupted)
    resume(interrupted)
    assert_same_end(interrupted, whole)
    (Path(interrupted.run_dir) / "metrics.json").unlink()  # as if it had been killed during the test
    resume(interrupted)
    assert_same_end(interrupted, whole)


def test_a_run_that_was_moved_resumes(task, stop, tmp_path):
    """With its best score, which Lightning drops if the folder has changed."""
    whole, interrupted = task("copytask"), task("copytask")
    train(whole)
    stop("on_train_batch_end", 16)
    with pytest.raises(SystemExit):
        train(interrupted)
    elsewhere = interrupted.replace({"run_dir": str(tmp_path / "elsewhere")})
    shutil.move(interrupted.run_dir, elsewhere.run_dir)
    resume(elsewhere)
    assert_same_end(elsewhere, whole)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["callbacks.last.every_n_steps=3"], 6),
        (["callbacks.last.every_n_steps=5"], 5),
        (["callbacks.last.every_n_minutes=1e-9"], 7),
        (["callbacks.last.every_n_steps=6", "callbacks.last.every_n_minutes=60"], 6),
    ],
)
def test_checkpoint_intervals(overrides, steps, task, monkeypatch):
    """A run killed at step 8 has a checkpoint of an earlier step."""
    settings = task("copytask", *overrides, "trainer.val_check_interval=100")
    killed = RuntimeError("killed")

    def kill(_, trainer, *__) -> None:
        if trainer.global_step == 8:
            raise killed

    monkeypatch.setattr(Throughput, "on_train_batch_end", kill)
    with pytest.raises(RuntimeError, match="killed"):
        train(settings)
    assert checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")["global_step"] == steps


def test_minutes_have_sixty_seconds():
    assert LastCheckpoint(every_n_minutes=2.5, every_n_steps=None).seconds == 150


def test_a_resumed_run_keeps_earlier_metrics(task, stop):
    """Checkpoints before its first validation hold them too."""
    settings = task("copytask")
    run: Callable[[TrainConfig], object] = train
    found = []
    for count in (7, 1):  # a validation comes after 5 batches
        stop("on_train_batch_end", count)
        with pytest.raises(SystemExit):
            run(settings)
        found.append(checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")["metrics"])
        run = resume
    names = ("val/loss", "val/sequence_accuracy")
    assert [found[0][name] for name in names] == [found[1][name] for name in names]


def test_ctrl_c_finishes_the_step_and_a_second_one_does_not(task, stop, capsys):
    settings = task("copytask")
    handler = signal.getsignal(signal.SIGINT)
    stop("on_train_batch_end", 3, [signal.SIGINT])
    with pytest.raises(SystemExit) as ended:
        train(settings)
    assert ended.value.code == 130
    assert f"python src/train.py resume={settings.run_dir}" in capsys.readouterr().out
    last = f"{settings.run_dir}/checkpoints/last.ckpt"
    assert (
        checkpoint.load_checkpoint(last)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"][
            "completed"
        ]
        == 3
    )
    assert signal.getsignal(signal.SIGINT) == handler
    stop("on_train_batch_end", 2, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(SystemExit) as ended:
        resume(settings)
    assert ended.value.code == 130
    assert (
        checkpoint.load_checkpoint(last)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"][
            "completed"
        ]
        == 3
    )
    assert signal.getsignal(signal.SIGINT) == handler


def test_slurm_requeues_and_the_same_command_resumes(task, stop, monkeypatch, tmp_path):
    """SLURM sends SIGUSR1 before the time is up, which Lightning handles, and SIGTERM when it requeues."""
    whole, interrupted = task("copytask"), task("copytask")
    train(whole)
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = {"JOB_ID": "7", "JOB_NAME": "x", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NODELIST": "localhost"}
    job |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    stop("on_train_batch_end", 7, [signal.SIGUSR1, signal.SIGTERM])
    with pytest.raises(SystemExit) as ended:
        train(interrupted)
    assert ended.value.code == 143
    assert asked.read_text() == "requeue 7\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(interrupted)
    assert_same_end(interrupted, whole)


def test_a_deleted_folder_is_named(task, monkeypatch):
    settings = task("copytask")

    def delete(_, trainer, *__) -> None:
        shutil.rmtree(settings.run_dir)

    monkeypatch.setattr(Throughput, "on_train_batch_end", delete)
    with pytest.raises(FileNotFoundError, match=f"{settings.run_dir} was deleted while"):
        train(settings)
    assert not Path(settings.run_dir).exists()
