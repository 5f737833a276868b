"""callbacks=keep, and the mean of what it keeps: average=N."""

from pathlib import Path

import pytest
import torch

from conftest import SMALL
from lstmlab.checkpoint import load_checkpoint
from lstmlab.runs.train import train
from same_end import resume

COPY = ["model=copytask", "data.delay=3", "data.train_batches=12", "data.batch_size=4", "data.val_size=30"]
RUN = [
    *COPY,
    *SMALL,
    "data.test_size=30",
    "trainer.max_epochs=1",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=2",
    "optimizer.lr=0.1",
]
KEEP = ["callbacks=keep", "callbacks.keep.save_top_k=3", "callbacks.examples=null", "callbacks.gates=null"]


def read_metrics(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in map(str.split, printed.splitlines())}


def test_the_mean_of_the_latest_checkpoints(config, command, tmp_path):
    settings = config(*RUN, *KEEP)
    train(settings)
    run, kept = settings.run_dir, Path(settings.run_dir, "checkpoints")
    assert {file.name for file in kept.glob("step*")} == {"step_8.ckpt", "step_10.ckpt", "step_12.ckpt"}

    # The two latest by number, not by name, averaged in double precision
    states = [load_checkpoint(f"{kept}/step_{step}.ckpt")["state_dict"] for step in (10, 12)]
    mean = {name: ((states[0][name].double() + states[1][name].double()) / 2).float() for name in states[0]}
    torch.save(load_checkpoint(f"{kept}/best.ckpt") | {"state_dict": mean}, tmp_path / "mean.ckpt")
    expected = read_metrics(command("evaluate", f"ckpt={tmp_path}/mean.ckpt")[1])
    code, out, error = command("evaluate", f"ckpt={run}", "average=2")
    assert code == 0, error
    assert read_metrics(out) == pytest.approx(expected, abs=2e-6)
    last = read_metrics(command("evaluate", f"ckpt={kept}/last.ckpt")[1])
    assert abs(expected["val/loss"] - last["val/loss"]) > 1e-4

    # As a file, which every command opens
    code, _, error = command("export", f"ckpt={run}", "average=2", "format=safetensors")
    assert code == 0, error
    exported = load_checkpoint(f"{run}/export/model.safetensors")["state_dict"]
    torch.testing.assert_close(exported, mean, rtol=0, atol=1e-7)

    for arguments, said in [
        (["average=4"], f"average=4, but ckpt={run} has kept the checkpoints of 3 validations; train with"),
        (["average=1"], "average=1: input should be greater than or equal to 2"),
        (
            [f"ckpt={kept}/best.ckpt", "average=2"],
            f"average=2 takes a run's folder, which ckpt={kept}/best.ckpt is not",
        ),
    ]:
        code, _, error = command("evaluate", f"ckpt={run}", *arguments)
        assert code == 1 and said in error and error.count("\n") == 1, error


def test_an_interrupted_run_keeps_the_same(config, train_until_killed):
    whole, interrupted = config(*RUN, *KEEP), config(*RUN, *KEEP)
    train(whole)
    train_until_killed(interrupted, 7)
    resume(interrupted)
    found, expected = (sorted(Path(s.run_dir, "checkpoints").glob("step*")) for s in (interrupted, whole))
    assert [file.name for file in found] == [file.name for file in expected] and len(found) == 3
    for file, same in zip(found, expected, strict=True):
        states = [load_checkpoint(str(path))["state_dict"] for path in (file, same)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
