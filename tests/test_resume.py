"""resume= on the command line: which run, with which settings."""

import shutil

import pytest
import yaml

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.resume import changed
from lstmlab.runs import train

COPY = [
    "model=copytask",
    "data.delay=3",
    "data.train_batches=6",
    "data.batch_size=2",
    "data.val_size=4",
    "data.test_size=4",
    "trainer.max_epochs=2",
    "scheduler.warmup_steps=0",
    "trainer.log_every_n_steps=3",
    "callbacks.examples=null",
    *SMALL,
]


@pytest.fixture
def run(config, tmp_path):
    """A run of 12 steps, as if it had been killed in the test after training."""
    folder = tmp_path / "a run, 'quoted' (=1)"
    train(config(*COPY) | {"run_dir": str(folder)})
    (folder / "metrics.json").unlink()
    return folder


def test_settings_come_from_the_run(command, run):
    written = yaml.safe_load((run / "config.yaml").read_text())
    code, out, error = command("train", f"resume={run}", "trainer.max_epochs=3", "exact=false")
    assert code == 0, error
    assert "going on after step 12" in out
    last = checkpoint.load(f"{run}/checkpoints/last.ckpt")
    assert last["global_step"] == 18
    now = yaml.safe_load((run / "config.yaml").read_text())
    differences = {"trainer.max_epochs": (2, 3), "trainer.max_steps": (12, 18)}
    assert changed(written, now) == differences
    assert last["hyper_parameters"]["config"] == now


WRONG = [
    ([], "resume={run}: this run has ended"),
    (["trainer.max_epochs=3"], "trainer.max_epochs=3 in place of 2 would not end as a run that was never"),
    (["trainer.max_epochs=1", "exact=false"], "trainer.max_steps=6, but the run is at step 12"),
    (["clipping.max_norm=2"], "clipping.max_norm=2 in place of 1.0"),
    (["cell.hidden_size=9", "exact=false"], "cell.hidden_size=9 cannot be changed within a run"),
    (["optimizer=sgd"], "optimizer=sgd"),
    (["data.seed=3"], "data.seed"),
    (["-m"], "leave out -m"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_what_cannot_be(command, run, overrides, message):
    if not overrides:
        (run / "metrics.json").touch()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, _, error = command("train", f"resume={run}", *overrides)
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format(run=run) in error
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_there_is_no_such_run(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.ckpt").touch()
    for name in ("nowhere", "empty", "a.ckpt", ""):
        code, _, error = command("train", f"resume={name}")
        assert (code, error.count("\n")) == (1, 1) and error.startswith(f"error: resume={name}: ")


def test_a_checkpoint_by_its_name(command, run):
    """The best one, though it is not the last, and with a clock that may not run."""
    (best,) = (run / "checkpoints").glob("best.ckpt")
    step = checkpoint.load(str(best))["global_step"]
    shutil.copy(best, run / "checkpoints/mine.ckpt")
    code, out, error = command(
        "train", f"resume={run}/checkpoints/mine.ckpt", "callbacks.last.every_n_minutes=null"
    )
    assert code == 0, error
    assert f"going on after step {step}" in out


def test_a_run_without_a_checkpoint_begins_again(command, run):
    lines = (run / "metrics.csv").read_text().count("\n")
    shutil.rmtree(run / "checkpoints")
    code, out, error = command("train", f"resume={run}")
    assert code == 0, error
    assert "going on" not in out
    assert (run / "metrics.csv").read_text().count("\n") == lines
    assert checkpoint.load(f"{run}/checkpoints/last.ckpt")["global_step"] == 12


def test_a_strangers_settings_run_no_code(command, run, tmp_path):
    made = tmp_path / "made"
    code = {"bad": {"()": "os.mkdir", "path": str(made)}}
    (run / "hydra/job_logging").mkdir(parents=True)
    (run / "hydra/job_logging/disabled.yaml").write_text(yaml.safe_dump({"version": 1, "formatters": code}))
    command("train", f"resume={run}", "trainer.max_epochs=3", "exact=false")
    assert not made.exists()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["hydra"] = {"callbacks": {"bad": {"_target_": "os.mkdir", "path": str(made)}}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    status, _, error = command("train", f"resume={run}")
    assert (status, made.exists()) == (1, False)
    assert error == f"error: resume={run}: its config.yaml is not one that train.py wrote\n"
