"""Jobs side by side, each in a process of its own."""

import os
import subprocess
import sys

import pytest
import yaml

from conftest import SMALL, TINY
from lstmlab.config import PROJECT

TASK = ["model=copytask", *TINY["copytask"], *SMALL, "data.train_batches=1", "trainer.max_epochs=1"]


@pytest.mark.parametrize(
    "launcher",
    [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["hydra/launcher=submitit_local"]],
    ids=["joblib", "submitit_local"],
)
def test_jobs_run_side_by_side(tmp_path, launcher):
    """One thread each; that which fails is named, and costs no other its result."""
    train = [sys.executable, PROJECT / "src/train.py", "-m", *TASK]
    sweep = ["cell=torch", "cell.kind=rnn,peephole,lstm", "hydra.sweep.dir=sweep", *launcher]
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}  # submitit's processes: as if installed
    ended = subprocess.run(
        [*train, *sweep], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 1
    named, error = ended.stderr.splitlines()[-2:]
    assert "job with overrides" in named and "'cell.kind=peephole'" in named
    assert error.startswith("error: cell=torch has no cell.kind=peephole. There are")
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/metrics.json")) == ["0", "2"]
    for job in "02":
        assert yaml.safe_load((tmp_path / "sweep" / job / "config.yaml").read_text())["threads"] == 1
