"""resume=: which run it resumes, and which settings may change."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.callbacks.throughput import Throughput
from lstmlab.runs.resume import find_changes, refuse_changes
from lstmlab.runs.train import train

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
    """A run of 12 steps, as if it had been killed during the test after training."""
    folder = tmp_path / "a run, 'quoted' (=1)"
    train(config(*COPY).replace({"run_dir": str(folder)}))
    (folder / "metrics.json").unlink()
    return folder


@pytest.fixture
def interrupted(config, train_until_killed):
    """interrupted(…): the folder of a run of 12 steps, killed at step 8, with last.ckpt of step 6."""

    def build(*overrides: str) -> Path:
        settings = config(*COPY, *overrides)
        train_until_killed(settings, 8)
        assert last(settings.run_dir)["global_step"] == 6
        return Path(settings.run_dir)

    return build


def last(folder: Path | str) -> dict[str, Any]:
    return checkpoint.load_checkpoint(f"{folder}/checkpoints/last.ckpt")


def test_resume_takes_its_settings_from_the_run(command, run):
    written = yaml.safe_load((run / "config.yaml").read_text())
    code, out, error = command("train", f"resume={run}", "trainer.max_epochs=3", "exact=false")
    assert code == 0, error
    assert "Resuming after step 12" in out
    last = checkpoint.load_checkpoint(f"{run}/checkpoints/last.ckpt")
    assert last["global_step"] == 18
    now = yaml.safe_load((run / "config.yaml").read_text())
    differences = {"trainer.max_epochs": (2, 3), "trainer.max_steps": (12, 18)}
    assert find_changes(written, now) == differences
    assert last["hyper_parameters"]["config"] == now


WRONG = [
    ([], "resume={run}: this run has finished"),
    (
        ["trainer.max_epochs=3"],
        "trainer.max_epochs=3 instead of 2 would change the result of the run",
    ),
    (["trainer.max_epochs=1", "exact=false"], "trainer.max_steps=6, but the run is already at step 12"),
    (["clipping.max_norm=2"], "clipping.max_norm=2.0 instead of 1.0"),
    (["cell.hidden_size=9", "exact=false"], "cell.hidden_size=9 cannot change within a run"),
    (["optimizer=sgd"], "optimizer=sgd"),
    (["data.seed=3"], "data.seed"),
    (["-m"], "leave out -m"),
    (["--multirun"], "leave out -m"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_resume_refuses(command, run, overrides, message):
    if not overrides:
        (run / "metrics.json").touch()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, _, error = command("train", f"resume={run}", *overrides)
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format(run=run) in error
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


HARMLESS: dict[str, dict[str, Any]] = {
    "charlm": {
        "run_dir": "/elsewhere",
        "logger.tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"},
        "data.path": "/elsewhere/text.txt",
        "data.cache": "/elsewhere",
        "trainer.enable_progress_bar": True,
        "trainer.log_every_n_steps": 7,
        "trainer.limit_test_batches": 3,
        "trainer.profiler": "simple",
        "callbacks.last.every_n_steps": 5,
        "callbacks.examples": None,
        "callbacks.throughput": None,
        "callbacks.doctor.patience": 3,
        "callbacks.gates": None,
    }
}
CHANGEABLE: dict[str, dict[str, Any]] = {
    "charlm": {
        "trainer.max_epochs": 9,
        "trainer.max_steps": 9,
        "trainer.strategy": "ddp",
        "trainer.devices": 2,
        "trainer.num_nodes": 2,
        "trainer.accelerator": "gpu",
        "trainer.val_check_interval": 3,
        "trainer.limit_val_batches": 2,
        "precision.name": "bf16-mixed",
        "clipping": {"name": "none"},
        "callbacks.early_stopping": None,
        "callbacks.early_stopping.patience": 2,
        "cell.backend": "scratch",
        "cell.dropout": 0.5,
        "model.dropout": 0.5,
        "deterministic": True,
        "threads": 3,
    },
    "sentiment": {"model.word_dropout": 0.5},
}
NEVER: dict[str, dict[str, Any]] = {
    "charlm": {
        "seed": 3,
        "data.batch_size": 2,
        "data.sequence_length": 10,
        "data.val_fraction": 0.5,
        "data.max_val_chars": 400,
        "model.embedding_size": 9,
        "model.tie_weights": True,
        "model.init_from": "/elsewhere",
        "model.unfreeze_after": 0.5,
        "model.layer_rate_decay": 0.5,
        "model.adaptive_cutoffs": [9],
        "model.monitor": "val/loss_cold",
        "cell.hidden_size": 9,
        "cell.num_layers": 3,
        "cell.kind": "gru",
        "cell.init": "torch",
        "cell.forget_bias": 2.0,
        "cell.variational": True,
        "cell.weight_drop": 0.5,
        "optimizer.lr": 0.5,
        "optimizer.weight_decay": 0.5,
        "scheduler.name": "constant",
        "scheduler.warmup_steps": 3,
        "scheduler.patience": 3,
        "trainer.accumulate_grad_batches": 2,
        "trainer.limit_train_batches": 2,
        "trainer.overfit_batches": 1,
        "callbacks.averaging": {"decay": 0.5, "from_step": 0},
    },
    "copytask": {"data.delay": 6, "data.symbols": 3, "data.train_batches": 9, "data.val_size": 9},
    "sentiment": {"model.pooling": "last", "model.adversarial": 0.5, "data.max_length": 50},
    "seq2seq": {"model.label_smoothing": 0.5, "model.r_drop": 0.5, "model.beam_size": 3},
}


def allowed(ckpt: Path, key: str, value: Any, exact: bool) -> bool:
    loaded = checkpoint.load_checkpoint(str(ckpt))
    before = loaded["hyper_parameters"]["config"]
    settings = copy.deepcopy(before)
    *groups, name = key.split(".")
    node = settings
    for group in groups:
        node = node[group]
    assert node.get(name) != value
    node[name] = value
    try:
        refuse_changes(before, find_changes(before, settings), loaded["global_step"], exact)
    except ValueError as error:
        assert str(error).startswith(key)
        assert ("exact=false" in str(error)) == (not str(error).count("cannot change within a run"))
        return False
    return True


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(HARMLESS, (True, True)), (CHANGEABLE, (False, True)), (NEVER, (False, False))],
    ids=["harmless", "changeable", "never"],
)
def test_settings_that_may_change(trained, settings, expected):
    """exact=true allows harmless changes only; exact=false also allows those that change the result."""
    for model, changes in settings.items():
        for key, value in changes.items():
            found = tuple(allowed(trained(model), key, value, exact) for exact in (True, False))
            assert found == expected, key


def test_harmless_changes_leave_the_result_unchanged(config, interrupted, command, tmp_path):
    whole = config(*COPY)
    metrics = train(whole)
    folder = interrupted()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    changes = ["trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=1", "callbacks.gates=null"]
    code, out, error = command("train", f"resume={elsewhere}", *changes, "callbacks.doctor.patience=9")
    assert code == 0, error
    assert "Resuming after step 6" in out and not folder.exists()
    assert equal(last(elsewhere)["state_dict"], last(whole.run_dir)["state_dict"])
    ended = json.loads((elsewhere / "metrics.json").read_text())
    names = [name for name in metrics if not name.startswith("train/")]
    assert {name: ended[name] for name in names} == {name: metrics[name] for name in names}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_can_be_extended_before_its_end(config, interrupted, command):
    """The result is that of a run that was started with the new length."""
    whole = config(*COPY, "trainer.max_epochs=3")
    train(whole)
    folder = interrupted()
    code, _, error = command("train", f"resume={folder}", "trainer.max_epochs=3")
    assert code == 0, error
    assert last(folder)["global_step"] == 18
    assert equal(last(folder)["state_dict"], last(whole.run_dir)["state_dict"])


def test_a_cosine_schedule_cannot_be_extended_exactly(interrupted, command):
    folder = interrupted("scheduler=cosine", "scheduler.warmup_steps=0")
    code, _, error = command("train", f"resume={folder}", "trainer.max_epochs=3")
    assert code == 1 and "trainer.max_epochs=3 instead of 2 would change the result" in error


def test_resume_with_another_patience(interrupted, command):
    """The learning rate is so low that the first validation, after 6 steps, stays the best."""
    folder = interrupted("optimizer=sgd", "optimizer.lr=1e-30", "trainer.max_epochs=9")
    changes = ["callbacks.early_stopping.patience=2", "exact=false"]
    code, _, error = command("train", f"resume={folder}", *changes)
    assert code == 0, error
    assert last(folder)["global_step"] == 18


def test_training_time_accumulates_over_resumes(interrupted, command):
    """The time before the interruption comes from the checkpoint."""
    folder = interrupted()
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert 0 < content["resume"]["seconds"] < 100
    content["resume"]["seconds"] = 5000.0
    torch.save(content, folder / "checkpoints/last.ckpt")
    code, _, error = command("train", f"resume={folder}")
    assert code == 0, error
    assert 5000 < json.loads((folder / "metrics.json").read_text())["train/seconds"] < 5100
    assert 5000 < last(folder)["resume"]["seconds"] < 5100


def test_an_interrupted_extension_is_unfinished(config, command, monkeypatch):
    """metrics.json would hold the metrics of fewer steps."""
    settings = config(*COPY)
    train(settings)
    ended = Path(settings.run_dir) / "metrics.json"
    assert ended.exists()

    def kill(*_) -> None:
        raise FloatingPointError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", kill)
        code, _, error = command("train", f"resume={ended.parent}", "trainer.max_epochs=3", "exact=false")
    assert (code, error) == (1, "error: killed\n")
    assert not ended.exists()
    code, _, error = command("train", f"resume={ended.parent}", "exact=false")
    assert code == 0 and ended.exists(), error


def test_resume_refuses_other_data(config, command, text_file, tmp_path):
    """A copy of the same text is accepted."""
    small = [
        "data.batch_size=4",
        "data.sequence_length=20",
        "data.max_val_chars=300",
        f"data.cache={tmp_path}",
    ]
    limits = ["trainer.max_steps=2", "trainer.log_every_n_steps=1", "callbacks.examples=null"]
    settings = config(*SMALL, "data=textfile", f"data.path={text_file}", *small, *limits)
    train(settings)
    folder = Path(settings.run_dir)
    (folder / "metrics.json").unlink()
    text = text_file.read_text(encoding="utf-8")
    (tmp_path / "same.txt").write_text(text, encoding="utf-8")
    text_file.write_text(text.replace("line 7:", "line 8:"), encoding="utf-8")
    code, _, error = command("train", f"resume={folder}")
    assert code == 1 and "data=textfile has changed since the run began" in error
    code, _, error = command("train", f"resume={folder}", f"data.path={tmp_path}/same.txt")
    assert code == 0, error
    assert (folder / "metrics.json").exists()


def test_resume_names_a_missing_run(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.ckpt").touch()
    for name in ("nowhere", "empty", "a.ckpt", ""):
        code, _, error = command("train", f"resume={name}")
        assert (code, error.count("\n")) == (1, 1) and error.startswith(f"error: resume={name}: ")


def test_resume_from_a_named_checkpoint(command, run):
    """Also one that is not the latest, and with every_n_minutes=null."""
    (best,) = (run / "checkpoints").glob("best.ckpt")
    step = checkpoint.load_checkpoint(str(best))["global_step"]
    shutil.copy(best, run / "checkpoints/mine.ckpt")
    code, out, error = command(
        "train", f"resume={run}/checkpoints/mine.ckpt", "callbacks.last.every_n_minutes=null"
    )
    assert code == 0, error
    assert f"Resuming after step {step}" in out


def test_resume_without_a_checkpoint_starts_over(command, run):
    lines = (run / "metrics.csv").read_text().count("\n")
    shutil.rmtree(run / "checkpoints")
    for name in ("examples.md", "doctor.md"):
        (run / name).write_text("left over")
    code, out, error = command("train", f"resume={run}")
    assert code == 0, error
    assert "resuming" not in out
    assert not (run / "examples.md").exists() and not (run / "doctor.md").exists()
    assert (run / "metrics.csv").read_text().count("\n") == lines
    assert checkpoint.load_checkpoint(f"{run}/checkpoints/last.ckpt")["global_step"] == 12


def test_resume_runs_no_code_from_a_foreign_folder(command, run, tmp_path):
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
    assert error == f"error: resume={run}: its config.yaml was not written by train.py\n"
