"""The additions that README.md describes, made in a copy of the project: a cell kind takes two edits, a task
and a data set three each."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from lstmlab.config import PROJECT

EQUATIONS = '''
@step_of("leaky")
class Leaky:
    """A leaky integrator, whose gate and candidate see the input alone."""

    def __init__(self, weight_ih: Tensor, bias_ih: Tensor):
        self.W_z, self.W_k = weight_ih.chunk(2)
        self.b_z, self.b_k = bias_ih.chunk(2)

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        z = sigmoid(linear(x, self.W_z, self.b_z))
        k = linear(x, self.W_k, self.b_k)
        return ((1 - z) * h + z * k,), {"z": z, "k": k}


def run_steps('''
ENTRY = """KINDS = {
    "leaky": Kind(("scratch",), HiddenState, "zk", "z", reads_h=False),"""

TASK = '''
from torch import nn
from torch.nn import functional as F

from lstmlab.models.base import Task


class Forecast(Task):
    """The next value of a series (B, T)."""

    def __init__(self, config, info):
        super().__init__(config, info)
        self.cell = self.build_cell(1)
        self.projection = nn.Linear(config.cell.hidden_size, 1)

    def loss(self, series):
        output, _ = self.cell(series[:, :-1, None])
        return F.mse_loss(self.projection(output).squeeze(-1), series[:, 1:])

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch), batch_size=len(batch))

    def count_tokens(self, batch):
        return batch.numel()
'''
TASK_YAML = """# @package _global_
defaults:
  - override /data: sines

model:
  name: forecast
  monitor: val/loss
  monitor_mode: min
  recommends:
    hidden_size: 8
    num_layers: 1
    bidirectional: false
    dropout: 0.0
    forget_bias: 1.0
    max_epochs: 2
    lr: 0.01
"""
DATA = """
import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from lstmlab.data.batching import TrainingLoader, evaluation_loader


class Waves(Dataset):
    def __getitem__(self, item):
        seed, size = item
        noise = torch.randn(size, 30, generator=torch.Generator().manual_seed(seed))
        return torch.sin(torch.arange(30) / 3 + noise[:, :1]) + 0.1 * noise


class Sines(L.LightningDataModule):
    info = {}

    def __init__(self, config, seed=0, info=None):
        super().__init__()
        self.config = config

    def train_dataloader(self):
        size = self.config.batch_size
        return TrainingLoader(Waves(), lambda epoch: [(10 * epoch + k, size) for k in range(10)], 10, 0)

    def val_dataloader(self):
        return evaluation_loader(Waves(), [(1000, 50)])
"""
SCHEMA = """class ForecastConfig(ModelConfig):
    module = "forecast.Forecast"
    reads = "series"
    name: Literal["forecast"]


class SinesConfig(DataConfig):
    module = "sines.Sines"
    gives = "series"
    name: Literal["sines"]


class TokenizerConfig(DataConfig):"""


@pytest.fixture
def project(tmp_path):
    """A copy of the project, in which a test may edit files."""
    for folder in ("src", "conf"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    return tmp_path


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def run(project, *command, code=0):
    environment = os.environ | {"PYTHONPATH": str(project / "src")}
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def test_add_a_cell_kind(project):
    edit(project / "src/lstmlab/cells/scratch.py", "\ndef run_steps(", EQUATIONS)
    edit(project / "src/lstmlab/cells/kinds.py", "KINDS = {", ENTRY)
    run(
        project, "src/train.py", "model=copytask", "cell=scratch", "cell.kind=leaky", "cell.hidden_size=4",
        "data.delay=3", "data.val_size=16", "trainer.max_steps=20", "scheduler=constant", "optimizer.lr=0.5",
        "hydra.run.dir=run",
    )  # fmt: skip
    run(project, "src/analyze.py", "ckpt=run", "page_steps=48", "probe_steps=0", "traces=true")

    traces = np.load(project / "run/analysis/validation/traces.npz")
    page = (project / "run/analysis/validation/page.html").read_text(encoding="utf-8")
    [meta] = [json.loads(found) for found in re.findall(r'id="meta">(.*?)</script>', page, re.DOTALL)]
    shown = [(value["name"], value["label"]) for value in meta["values"]]
    assert shown == [("h", "hidden state h"), ("z", "update gate z"), ("k", "k")]
    assert abs(traces["k"]).max() > 1.5
    for name in "hk":
        [packed] = re.findall(rf'id="{name}-0-0">(.*?)</script>', page)
        stored = np.frombuffer(zlib.decompress(base64.b64decode(packed), -15), np.uint8).reshape(4, -1)
        scale = np.array(meta["scales"][f"{name}-0-0"])[:, None]
        error = abs((stored.astype(float) - 128) / 127 * scale - traces[name][0, 0].T)
        assert (error <= scale / 34).all()  # the page has 20 levels on each side of 0

    asked = run(project, "src/analyze.py", "ckpt=no_run", "page_values=[k]", code=1)
    assert asked == "error: ckpt=no_run: no such file\n"


def test_add_a_task_and_a_data_set(project):
    (project / "src/lstmlab/models/forecast.py").write_text(TASK)
    (project / "conf/model/forecast.yaml").write_text(TASK_YAML)
    data = project / "src/lstmlab/data/sines.py"
    data.write_text(DATA)
    (project / "conf/data/sines.yaml").write_text("name: sines\nbatch_size: 4\n")
    edit(project / "src/lstmlab/schema.py", "class TokenizerConfig(DataConfig):", SCHEMA)

    run(project, "src/train.py", "model=forecast", "trainer.max_steps=15", "hydra.run.dir=run")
    run(project, "src/train.py", "resume=run", "trainer.max_steps=20", "exact=false")
    run(project, "src/train.py", "model=forecast", "hydra.run.dir=whole")
    resumed, whole = (
        torch.load(project / f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("run", "whole")
    )
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    refused = run(project, "src/analyze.py", "ckpt=run", code=1)
    assert refused == "error: model=forecast has no validation data to analyse\n"

    edit(data, "return TrainingLoader(Waves(),", "return DataLoader(Waves(), None, sampler=(")
    edit(data, "range(10)], 10, 0)", "range(10)])(0))")
    refused = run(project, "src/train.py", "model=forecast", code=1)
    assert refused == "error: data=sines cannot resume within an epoch: it needs a TrainingLoader\n"
