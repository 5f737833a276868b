"""A new kind of cell takes two edits: made in a copy of the project, it trains and is analysed."""

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

from lstmlab.config import PROJECT

EQUATIONS = '''
@step_of("mingru")
class MinGRU:
    """Feng et al. 2024: gate and candidate see the input alone."""

    def __init__(self, weight_ih: Tensor, bias_ih: Tensor):
        self.W_z, self.W_k = weight_ih.chunk(2)
        self.b_z, self.b_k = bias_ih.chunk(2)

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        z = sigmoid(linear(x, self.W_z, self.b_z))
        k = linear(x, self.W_k, self.b_k)
        return ((1 - z) * h + z * k,), {"z": z, "k": k}


def run_steps('''
ENTRY = """KINDS = {
    "mingru": Kind(("scratch",), HiddenState, "zk", "z", reads_h=False),"""


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


def test_a_kind_of_cell(project):
    edit(project / "src/lstmlab/cells/scratch.py", "\ndef run_steps(", EQUATIONS)
    edit(project / "src/lstmlab/cells/kinds.py", "KINDS = {", ENTRY)
    run(
        project, "src/train.py", "model=copytask", "cell=scratch", "cell.kind=mingru", "cell.hidden_size=4",
        "data.delay=3", "data.val_size=16", "trainer.max_steps=20", "scheduler=constant", "optimizer.lr=0.5",
        "hydra.run.dir=run",
    )  # fmt: skip
    run(project, "src/analyze.py", "ckpt=run", "page_steps=48", "probe_steps=0")

    traces = np.load(project / "run/analysis/traces.npz")
    page = (project / "run/analysis/page.html").read_text(encoding="utf-8")
    [meta] = [json.loads(found) for found in re.findall(r'id="meta">(.*?)</script>', page, re.DOTALL)]
    shown = [(value["name"], value["label"]) for value in meta["values"]]
    assert shown == [("h", "hidden state h"), ("z", "update gate z"), ("k", "k")]
    assert abs(traces["k"]).max() > 1.5
    for name in "hk":
        [packed] = re.findall(rf'id="{name}-0-0">(.*?)</script>', page)
        stored = np.frombuffer(zlib.decompress(base64.b64decode(packed), -15), np.uint8).reshape(4, -1)
        scale = np.array(meta["scales"][f"{name}-0-0"])[:, None]
        error = abs((stored.astype(float) - 128) / 127 * scale - traces[name][0, 0].T)
        assert (error <= scale / 250).all()

    asked = run(project, "src/analyze.py", "ckpt=no_run", "page_values=[k]", code=1)
    assert asked == "error: ckpt=no_run: no such file\n"
