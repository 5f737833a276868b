"""Training runs of any task: folder, optimizer, schedule, loggers."""

import base64
import csv
import hashlib
import importlib
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from conftest import SMALL
from lstmlab import checkpoint
from lstmlab.runs.train import train
from lstmlab.schema import TrainConfig
from same_end import TASKS, assert_same_end, overrides, resumed


@pytest.fixture
def small(small):
    """Each step is logged, and there is no dropout."""
    return [*small, "trainer.log_every_n_steps=1", "model.dropout=0", "cell.dropout=0"]


def read_column(settings: TrainConfig, name: str) -> list[float]:
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def load_weights(settings: TrainConfig, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/{name}.ckpt")["state_dict"]


def test_a_run_writes_its_folder(config, small, capsys):
    settings = config(*small, "trainer.max_steps=4", "trainer.val_check_interval=2")
    metrics = train(settings)
    folder = Path(settings.run_dir)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "examples.md",
        "gates.png",
        "step_2.npz",
        "step_4.npz",
        "best.ckpt",
        "last.ckpt",
    }
    assert yaml.safe_load((folder / "config.yaml").read_text()) == settings.to_plain()
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["train/seconds"] > 0
    assert min(read_column(settings, "val/loss_stateful")) == pytest.approx(metrics["val/loss_stateful"])
    assert len(read_column(settings, "train/grad_norm")) == 4
    assert min(read_column(settings, "train/tokens_per_second")) > 0
    assert str(folder) in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(settings)


def test_the_last_step_is_validated_and_saved(config, small):
    """Also if max_steps is not a multiple of val_check_interval."""
    settings = config(*small, "trainer.max_steps=5", "trainer.val_check_interval=2")
    train(settings)
    assert len(read_column(settings, "val/loss_stateful")) == 3
    last = checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")
    assert last["global_step"] == 5


def test_the_same_seed_gives_the_same_run(config, small):
    runs = [config(*small, "trainer.max_steps=5", f"seed={seed}") for seed in (1, 1, 2)]
    curves = []
    for settings in runs:
        train(settings)
        curves.append(read_column(settings, "train/loss"))
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("name", TASKS)
def test_deterministic_runs_are_identical(name, config, text_file):
    """Operations that may differ are refused; data workers change nothing."""
    workers = ["data.num_workers=2"] if name == "seq2seq" else []
    runs = [config(*overrides(name, text_file), "deterministic=true", *workers) for _ in range(2)]
    try:
        for settings in runs:
            train(settings)
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_end(*runs)


STEP = ["trainer.max_steps=1", "optimizer=sgd", "scheduler=constant", "optimizer.lr=1"]


@pytest.mark.parametrize("clipping", ["norm", "value", "none"])
def test_clipping_and_the_logged_norm(config, small, clipping):
    """One plain SGD step at lr 1 moves the load_weights by the clipped gradient."""
    limit = {"norm": ["clipping.max_norm=0.01"], "value": ["clipping.max_value=0.001"], "none": []}[clipping]
    frozen = config(*small, *STEP, "optimizer.weight_decay=0", "optimizer.lr=1e-30")
    train(frozen)
    settings = config(
        *small,
        *STEP,
        "optimizer.weight_decay=0",
        f"clipping={clipping}",
        *limit,
        f"run_dir={frozen.run_dir}b",
    )
    train(settings)
    before, after = load_weights(frozen, "last"), load_weights(settings, "last")
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    norm = read_column(settings, "train/grad_norm")[0]
    assert norm == pytest.approx(read_column(frozen, "train/grad_norm")[0], rel=1e-5)
    if clipping == "norm":
        assert norm > 0.02 and moved.norm() == pytest.approx(0.01, rel=1e-3)
    elif clipping == "value":
        assert moved.abs().max() == pytest.approx(0.001, rel=1e-3)
    else:
        assert moved.norm() == pytest.approx(norm, rel=1e-3)


def test_weight_decay_spares_biases(config, small):
    """One step of AdamW that consists of weight decay alone: matrices shrink, vectors do not."""
    base = [*small, "trainer.max_steps=1", "optimizer=adamw", "scheduler=constant", "optimizer.lr=1e-12"]
    plain = config(*base, "optimizer.weight_decay=0")
    train(plain)
    settings = config(*base, "optimizer.weight_decay=1e11")
    train(settings)
    before, after = load_weights(plain, "last"), load_weights(settings, "last")
    for name in before:
        share = 1.0 if before[name].ndim == 1 else 0.9
        torch.testing.assert_close(after[name], before[name] * share, atol=1e-6, rtol=1e-4)


def test_warmup_and_cosine(config, small):
    settings = config(
        *small,
        "trainer.max_steps=20",
        "optimizer.lr=0.1",
        "scheduler=cosine",
        "scheduler.warmup_steps=4",
        "scheduler.final_lr=0.5",
    )
    train(settings)
    rates = read_column(settings, "train/lr")
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    expected = [0.05 + 0.05 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert rates[4:] == pytest.approx(expected)


def test_warmup_to_a_constant_rate(config, small):
    constant = ["scheduler=constant", "scheduler.warmup_steps=3", "optimizer.lr=0.1"]
    settings = config(*small, *constant, "trainer.max_steps=6")
    train(settings)
    assert read_column(settings, "train/lr") == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_plateau_with_a_metric_to_maximise(config, small):
    """With monitor_mode=max, a loss that falls at each validation counts as stagnant."""
    settings = config(
        *small,
        "trainer.max_steps=5",
        "trainer.val_check_interval=1",
        "optimizer=sgd",
        "optimizer.lr=0.5",
        "scheduler.warmup_steps=0",
        "scheduler.factor=0.25",
        "scheduler.patience=1",
        "model.monitor_mode=max",
        "callbacks.early_stopping=null",
    )
    train(settings)
    losses = read_column(settings, "val/loss_stateful")
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[1] + 1e-4
    assert read_column(settings, "train/lr") == pytest.approx([0.5, 0.5, 0.5 / 4, 0.5 / 16, 0.5 / 64])
    saved = [
        torch.load(f"{settings.run_dir}/checkpoints/{n}.ckpt", weights_only=True) for n in ("best", "last")
    ]
    assert [each["global_step"] for each in saved] == [1, 5]  # the first validation is the best


def test_recorded_steps(config, small):
    """Every third step and the last one, each with its own values."""
    warmup = ["scheduler=constant", "scheduler.warmup_steps=9", "optimizer.lr=0.1"]
    settings = config(*small, *warmup, "trainer.max_steps=8", "trainer.log_every_n_steps=3")
    train(settings)
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for name in ("train/loss", "train/grad_norm", "train/lr", "train/tokens_per_second"):
        rows = {row["step"]: float(row[name]) for row in found if row[name]}
        assert list(rows) == ["2", "5", "7"] and len(set(rows.values())) == 3
    assert read_column(settings, "train/lr") == pytest.approx([0.03, 0.06, 0.08])


@pytest.mark.parametrize(
    ("interval", "validated"), [("4", [4, 8, 12]), ("0.5", [3, 6, 9, 12]), ("1.0", [6, 12]), ("7", [7, 12])]
)
def test_validation_interval(config, interval, validated):
    """A number of batches is counted across the epochs of 6 batches, a share within each."""
    task = ["model=copytask", "data.delay=1", "data.train_batches=6", "data.batch_size=2", "data.val_size=4"]
    settings = config(
        *task,
        *SMALL,
        f"trainer.val_check_interval={interval}",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "callbacks.examples=null",
    )
    train(settings)
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        found = [int(row["step"]) + 1 for row in csv.DictReader(file) if row["val/loss"]]
    assert found == validated


@pytest.mark.parametrize(
    ("limits", "epochs", "steps"),
    [
        ({"max_epochs": 3}, 3, 12),  # 10 batches, 3 a step
        ({"max_steps": 5}, 2, 5),
        ({"max_steps": 4}, 1, 4),
        ({"max_epochs": 3, "max_steps": 5}, 3, 5),
        ({"max_epochs": 1, "max_steps": 5}, 1, 4),
        ({"max_epochs": 3, "limit_train_batches": 6}, 3, 6),
        ({"max_epochs": 3, "limit_train_batches": 7}, 3, 9),
        ({"max_epochs": 3, "limit_train_batches": 99}, 3, 12),
        ({"max_steps": 5, "limit_train_batches": 6}, 3, 5),
    ],
)
def test_limits_of_epochs_and_steps(config, limits, epochs, steps):
    """config.yaml records both limits, and the run ends there."""
    trainer = {"max_epochs": "null"} | limits
    settings = config(
        "model=copytask",
        "data.delay=1",
        "data.train_batches=10",
        "data.batch_size=2",
        "data.val_size=4",
        "data.test_size=4",
        *SMALL,
        *(f"trainer.{key}={value}" for key, value in trainer.items()),
        "trainer.accumulate_grad_batches=3",
        "trainer.log_every_n_steps=1",
        "callbacks.examples=null",
    )
    train(settings)
    written = yaml.safe_load((Path(settings.run_dir) / "config.yaml").read_text())["trainer"]
    assert (written["max_epochs"], written["max_steps"]) == (epochs, steps)
    last = checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")
    assert last["global_step"] == steps


def test_plateau_halves_after_two_stagnant_validations(config, small):
    settings = config(
        *small,
        "trainer.max_steps=12",
        "trainer.val_check_interval=1",
        "optimizer=sgd",
        "optimizer.lr=1e-5",
        "scheduler.warmup_steps=2",
        "callbacks.early_stopping=null",
    )
    train(settings)
    rates = [rate * 1e5 for rate in read_column(settings, "train/lr")]
    # the first validation is the best there is; the second and third are stagnant
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0.5, *(2.0**-k for k in (2, 2, 3, 3, 4, 4, 5))])


def test_any_metric_of_validation_can_be_the_monitor(config, small):
    validated = [*small, "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    metrics = train(config(*validated, "model.monitor=val/perplexity"))
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/loss_stateful"]))
    known = "val/bits_per_character, val/loss_cold, val/loss_stateful, val/perplexity"
    with pytest.raises(
        ValueError, match=f"^model.monitor=val/acc is not a metric of validation; choose one of {known}$"
    ):
        train(config(*validated, "model.monitor=val/acc", "scheduler=constant"))


def test_early_stopping_and_gradient_accumulation(config, small):
    settings = config(
        *small,
        "trainer.max_epochs=50",
        "trainer.accumulate_grad_batches=3",
        "callbacks.early_stopping.patience=2",
        "optimizer=sgd",
        "optimizer.lr=1e-30",
    )
    batches = -(-((5400 - 1) // 4) // 20)
    train(settings)
    written = yaml.safe_load((Path(settings.run_dir) / "config.yaml").read_text())
    assert written["trainer"]["max_steps"] == 50 * -(-batches // 3)
    last = checkpoint.load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")
    assert last["global_step"] == 3 * -(-batches // 3)


def test_checkpoints_hold_plain_containers_only(config, small):
    settings = config(*small, "trainer.max_steps=1")
    train(settings)
    for name in ("best", "last"):
        path = Path(settings.run_dir) / "checkpoints" / f"{name}.ckpt"
        loaded = torch.load(path, weights_only=True)
        assert loaded["hyper_parameters"]["config"] == settings.to_plain()
        assert loaded["metrics"]["val/loss_stateful"] == pytest.approx(loaded["metrics"]["val/loss_stateful"])


def read_leveldb_log(blocks: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, past its header: LevelDB's log format, in blocks of 32 KiB."""
    position, parts = 7, b""  # the header counts towards the first block
    while position < len(blocks) + 7:
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", blocks, position - 7)
        parts += blocks[position : position + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


def read_wandb_run(folder: Path) -> list[Any]:
    """The records of the offline wandb run in a run's folder."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return [messages.Record.FromString(data) for data in read_leveldb_log(file.read_bytes()[7:])]


def test_tensorboard_and_wandb_side_by_side(config, small, capsys):
    """Both hold the settings and what best.ckpt reached; an offline wandb run holds that file, too."""
    settings = config(
        *small,
        "trainer.max_steps=6",
        "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
        "logger=[tensorboard,wandb]",
        "logger.wandb.offline=true",
        "logger.wandb.log_model=true",
        "logger.wandb.group=mine",
    )
    metrics = train(settings)
    assert "anonymous" not in capsys.readouterr().err
    records = read_wandb_run(folder := Path(settings.run_dir))
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert run.display_name == "charlm-fused-lstm-2x8-textfile-seed0" and run.run_group == "mine"
    assert list(run.tags) == ["charlm", "fused", "lstm", "textfile"]
    config_keys = {item.key for r in records for item in [*r.config.update, *r.run.config.update]}
    assert {"cell", "model", "data", "optimizer"} <= config_keys

    # Each row can be drawn over steps, tokens and time
    rows = [{"/".join(item.nested_key): item.value_json for item in r.history.item} for r in records]
    rows = [row for row in rows if "train/loss" in row or "val/loss_stateful" in row]
    assert all(
        {"trainer/global_step", "train/tokens", "_timestamp", "_runtime"} <= row.keys() for row in rows
    )
    assert [int(row["train/tokens"]) // 80 for row in rows] == [1, 2, 2, 3, 4, 4, 5, 6, 6]  # 4 texts of 20

    changes = [item for r in records for item in r.summary.update]
    summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in changes}
    assert summary["val/loss_stateful"] == float(rows[-1]["val/loss_stateful"])
    results = {f"best/{name}": metrics[name] for name in metrics if name.startswith("val/")}
    results["train/seconds"] = metrics["train/seconds"]
    assert {name: summary[name] for name in results} == results
    [model] = [r.artifact for r in records if r.artifact.type == "model"]
    assert set(model.aliases) == {"latest", "best"}
    [file] = model.manifest.contents
    best = (folder / "checkpoints/best.ckpt").read_bytes()
    assert (file.path, base64.b64decode(file.digest)) == ("best.ckpt", hashlib.md5(best).digest())

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    held = {name: events.Scalars(name)[-1].value for name in results}
    assert held == pytest.approx(results)
    sessions = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hparams = HParamsPluginData.FromString(sessions).session_start_info.hparams
    assert hparams["cell/hidden_size"].number_value == 8
    assert hparams["optimizer/_target_"].string_value == "torch.optim.Adam"


def test_trackio_continues_a_resumed_run(trackio, config, small):
    settings = config(*small, "trainer.max_steps=1", "logger=trackio")
    train(settings)
    longer = resumed(settings).replace({"trainer.max_steps": 2, "trainer.max_epochs": 1, "exact": False})
    metrics = train(longer)

    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    folder = Path(settings.run_dir)
    run = f"charlm-fused-lstm-2x8-textfile-seed0 {folder.parent.name}/{folder.name}"
    assert run in storage.get_runs("lstmlab")
    rows = storage.get_logs("lstmlab", run)
    assert [row["train/tokens"] for row in rows if "train/loss" in row] == [80, 160]
    assert rows[-1]["best/val/loss_stateful"] == metrics["val/loss_stateful"]
    assert storage.get_run_config("lstmlab", run)["cell"]["hidden_size"] == 8


def test_a_sweep_has_a_folder_and_a_wandb_run_for_each_job(command, small, tmp_path):
    sweep = ["-m", "cell.kind=rnn,lstm", "trainer.max_steps=1", "logger=wandb", "logger.wandb.offline=true"]
    code, _, error = command("train", *sweep, *small)
    assert code == 0, error
    (folder,) = (tmp_path / "logs/charlm").iterdir()
    runs = []
    for number, kind in enumerate(["rnn", "lstm"]):
        job = folder / str(number)
        assert yaml.safe_load((job / "config.yaml").read_text())["cell"]["kind"] == kind
        assert (job / "metrics.json").exists()
        runs.append(next(r.run for r in read_wandb_run(job) if r.WhichOneof("record_type") == "run"))
    assert runs[0].run_id != runs[1].run_id
    assert [run.run_group for run in runs] == [folder.name] * 2
