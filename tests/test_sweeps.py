"""Jobs side by side, each in a process of its own."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import SMALL, TINY
from lstmlab.config import PROJECT

TASK = ["model=copytask", *TINY["copytask"], *SMALL, "data.train_batches=1", "trainer.max_epochs=1"]
TASK += ["trainer.log_every_n_steps=1"]


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


def test_a_study_is_several_sweeps(command, tmp_path):
    """Each line a sweep of its own; what is typed goes for all of them, and wins; a lost job is named."""
    lines = "'cell.kind=rnn,gru seed=0,1','optimizer.lr=0.1 seed=0'"
    study = [
        "hydra/sweeper=study",
        f"hydra.sweeper.jobs=[{lines}]",
        "hydra.sweep.dir=sweep",
    ]
    assert command("train", "-m", *TASK, *study, "data.delay=2,3")[0] == 0
    configs = [yaml.safe_load((tmp_path / f"sweep/{job}/config.yaml").read_text()) for job in range(10)]
    ran = [(c["cell"]["kind"], c["optimizer"]["lr"], c["seed"], c["data"]["delay"]) for c in configs]
    default = configs[0]["optimizer"]["lr"]
    grid = [(kind, default, seed, delay) for kind in ("rnn", "gru") for seed in (0, 1) for delay in (2, 3)]
    assert ran == [*grid, ("lstm", 0.1, 0, 2), ("lstm", 0.1, 0, 3)]
    assert not (tmp_path / "sweep/10").exists()
    shutil.rmtree(tmp_path / "sweep/9")
    code, printed, _ = command("compare", "runs=sweep")
    assert code == 0 and "- sweep/9: never began, " in printed
    assert printed.startswith("| data.delay | cell.kind | optimizer.lr | n |")
    study[-1] = "hydra.sweep.dir=again"
    assert command("train", "-m", *TASK, *study, "seed=0", "data.delay=2")[0] == 0
    assert sorted(path.name for path in (tmp_path / "again").iterdir() if path.is_dir()) == ["0", "1", "2"]


def test_the_same_command_goes_on(command, tmp_path):
    """What has ended is left as it is, what was broken off goes on, and what never began is run."""
    sweep = ["-m", *TASK, "cell.kind=rnn,lstm,gru", "logger=wandb", "logger.wandb.offline=true"]
    sweep += ["hydra.sweep.dir=sweep"]
    assert command("train", *sweep)[0] == 0
    ended, broken, missing = (tmp_path / "sweep" / job for job in "012")
    before = {path: path.stat().st_mtime_ns for path in ended.iterdir()}
    metrics = json.loads((broken / "metrics.json").read_text())
    (broken / "metrics.json").unlink()  # as if it had been killed in the test after training
    shutil.rmtree(missing)

    code, printed, error = command("train", *sweep)
    assert code == 0, error
    assert {path: path.stat().st_mtime_ns for path in ended.iterdir()} == before
    assert printed.count("has ended already") == printed.count("going on after step 1") == 1
    again = json.loads((broken / "metrics.json").read_text())
    assert again | {"train/seconds": 0} == metrics | {"train/seconds": 0}
    assert (missing / "metrics.json").exists()

    code, _, error = command("train", *sweep, "optimizer.lr=0.5")
    assert code == 1
    assert f"error: run_dir={ended} holds a run already with optimizer.lr=0.005; choose another" in error
