"""What only a GPU can show. On a machine with one: `pytest -m gpu -n0`."""

import csv
import math
from pathlib import Path

import pytest
import torch

from conftest import SMALL, TINY, ask
from lstmlab.cells import BACKENDS
from lstmlab.checkpoint import load_model
from lstmlab.export import export
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.launch import launch
from lstmlab.runs.train import train
from lstmlab.schema import ExportConfig, TrainConfig, check

GPU = ["trainer=gpu"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

CELLS = [(backend, kind) for backend, kinds in BACKENDS.items() for kind in kinds]
STILL = ["cell.dropout=0", "cell.weight_drop=0", "trainer.log_every_n_steps=1", "callbacks.gates=null"]


@pytest.fixture
def task(config, text_file, tmp_path):
    """task("charlm", "cell=fused", …): a run of four steps of that task."""

    def choose(name: str, *overrides: str) -> TrainConfig:
        given = [f"model={name}", *TINY[name], *SMALL, "trainer.max_steps=4", *STILL]
        if name != "copytask":
            given += [f"data.cache={tmp_path}/cache", "model.embedding_size=8", "model.dropout=0"]
        if name == "charlm":
            given.append(f"data.path={text_file}")
        return config(*given, *overrides)

    return choose


def losses(settings: TrainConfig) -> list[float]:
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", TINY)
def test_each_task_trains_in_each_precision(task, name, precision):
    settings = task(name, *GPU, f"precision={precision}")
    metrics = train(settings)
    assert len(losses(settings)) == 4
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(("backend", "kind"), CELLS)
@pytest.mark.parametrize("name", TINY)
def test_the_losses_are_those_of_the_cpu(task, name, backend, kind):
    """Up to TF32, which a GPU multiplies float32 in."""
    cell = [f"cell={backend}", f"cell.kind={kind}"]
    here, there = task(name, *cell), task(name, *cell, *GPU)
    train(here)
    train(there)
    assert losses(there) == pytest.approx(losses(here), rel=5e-3)


@pytest.mark.parametrize("name", TINY)
def test_a_run_resumes(task, name):
    whole, part = task(name, *GPU), task(name, *GPU, "trainer.max_steps=2")
    train(whole)
    train(part)
    longer = part.replace({"trainer.max_steps": 4, "resume": part.run_dir, "exact": False})
    train(longer)
    assert losses(part) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_a_checkpoint_opens_on_either_device(task, name, tmp_path):
    settings = task(name, *GPU)
    metrics = train(settings)
    cache = getattr(settings.data, "cache", "unused")
    for backend in BACKENDS:
        for accelerator in ("cpu", "gpu"):
            asked = ask(settings.run_dir, backend, cache=cache).replace({"accelerator": accelerator})
            for key, value in evaluate(asked).items():
                assert value == pytest.approx(metrics[key], rel=5e-3, abs=5e-3), (backend, accelerator, key)
    (file,) = export(
        ExportConfig(ckpt=settings.run_dir, format="safetensors", folder=str(tmp_path / "exported"))
    )
    opened, expected = load_model(str(file)), load_model(settings.run_dir)
    for key, tensor in opened.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[key])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("name", TINY)
def test_two_processes_give_the_numbers_of_one(task, name):
    two = ["trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=2"]
    one, both = task(name, *GPU), task(name, *two)
    train(one)
    launch(check("train", both.to_plain()))
    assert losses(both) == pytest.approx(losses(one), rel=5e-3)
