"""Sweeps, studies and searches: run in parallel, repeated, resumed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from conftest import SMALL, TINY
from hydra_plugins.lstmlab_optuna import build_distribution, open_study
from lstmlab.callbacks.pruning import Pruning
from lstmlab.config import PROJECT

TASK = ["model=copytask", *TINY["copytask"], *SMALL, "data.train_batches=1", "trainer.max_epochs=1"]
TASK += ["trainer.log_every_n_steps=1"]
SEARCH = ["-m", "sweep=optuna", *TASK, "trainer.max_epochs=2", "cell.dropout=0.0", "hydra.sweep.dir=sweep"]


@pytest.mark.parametrize(
    "launcher",
    [["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["hydra/launcher=submitit_local"]],
    ids=["joblib", "submitit_local"],
)
def test_jobs_run_in_parallel(tmp_path, launcher):
    """Each job has one thread; a job that fails is named, and the others finish."""
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
    assert ended.stdout.endswith("Sweep: sweep\nTo compare: python src/compare.py runs=sweep\n")
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/metrics.json")) == ["0", "2"]
    for job in "02":
        assert yaml.safe_load((tmp_path / "sweep" / job / "config.yaml").read_text())["threads"] == 1


def test_a_study_is_several_sweeps(command, tmp_path):
    """Each line is its own sweep, typed overrides apply to all and win, and a missing job is named."""
    lines = "'cell.kind=rnn,gru seed=1,2','optimizer.lr=0.1 seed=1'"
    study = ["hydra/sweeper=study", f"hydra.sweeper.jobs=[{lines}]", "hydra.sweep.dir=sweep"]
    code, printed, _ = command("train", "-m", *TASK, *study, "data.delay=2,3", "seed=0")
    assert code == 0 and [f"job {job}/6\n" in printed for job in range(1, 7)] == [True] * 6
    assert printed.endswith("Sweep: sweep\nTo compare: python src/compare.py runs=sweep\n")
    configs = [yaml.safe_load((tmp_path / f"sweep/{job}/config.yaml").read_text()) for job in range(6)]
    ran = [(c["cell"]["kind"], c["optimizer"]["lr"], c["seed"], c["data"]["delay"]) for c in configs]
    default = configs[0]["optimizer"]["lr"]
    grid = [(kind, default, 0, delay) for kind in ("rnn", "gru") for delay in (2, 3)]
    assert ran == [*grid, ("lstm", 0.1, 0, 2), ("lstm", 0.1, 0, 3)]
    assert not (tmp_path / "sweep/6").exists()
    shutil.rmtree(tmp_path / "sweep/5")
    code, printed, _ = command("compare", "runs=sweep")
    assert code == 0 and "- sweep/5: never started, optimizer.lr=0.1 data.delay=3\n" in printed
    assert printed.startswith("| data.delay | cell.kind | optimizer.lr | n |")


def test_repeating_a_sweep_resumes_it(command, tmp_path):
    """Finished jobs are left alone, interrupted ones resume, and missing ones run."""
    sweep = ["-m", *TASK, "cell.kind=rnn,lstm,gru", "logger=wandb", "logger.wandb.offline=true"]
    sweep += ["hydra.sweep.dir=sweep"]
    assert command("train", *sweep)[0] == 0
    finished, interrupted, missing = (tmp_path / "sweep" / job for job in "012")
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    metrics = json.loads((interrupted / "metrics.json").read_text())
    (interrupted / "metrics.json").unlink()  # as if it had been killed during the test
    shutil.rmtree(missing)

    code, printed, error = command("train", *sweep)
    assert code == 0, error
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before
    assert printed.count("has already finished") == printed.count("Resuming after step 1") == 1
    again = json.loads((interrupted / "metrics.json").read_text())
    assert again | {"train/seconds": 0} == metrics | {"train/seconds": 0}
    assert (missing / "metrics.json").exists()

    code, _, error = command("train", *sweep, "optimizer.lr=0.5")
    assert code == 1
    assert (
        f"error: run_dir={finished} already holds a run with optimizer.lr=0.005; choose another folder"
        in error
    )


@pytest.fixture
def study(tmp_path):
    """The trials of the sweep."""
    return lambda: open_study(tmp_path / "sweep").trials


def test_trials_are_scored_by_the_monitored_metric(command, study, tmp_path):
    typed = ["cell.hidden_size=4,8", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.n_trials=4"]
    code, printed, _ = command("train", *SEARCH, *typed, "callbacks.pruning=null")
    assert code == 0
    trials = study()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    for trial in trials:
        run = tmp_path / "sweep" / str(trial.number)
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert trial.value == json.loads((run / "metrics.json").read_text())["val/loss"]
        assert trial.params == {
            "optimizer.lr": config["optimizer"]["lr"],
            "cell.hidden_size": str(config["cell"]["hidden_size"]),
        }
    best = min(trials, key=lambda trial: trial.value)
    [said] = re.findall(r"Best trial: (.*)\. To train it: python src/train.py (.*)", printed)
    assert said[0] == f"{tmp_path}/sweep/{best.number}, {best.value:.5g}"
    assert "sweep=" not in said[1] and f" optimizer.lr={best.params['optimizer.lr']:.4g}" in said[1]
    assert command("train", *shlex.split(said[1]), "hydra.run.dir=again")[0] == 0
    again = json.loads((tmp_path / "again/metrics.json").read_text())["val/loss"]
    assert again == pytest.approx(best.value, rel=1e-3)

    assert command("train", *SEARCH, *typed, "callbacks.pruning=null", "hydra.sweeper.n_trials=5")[0] == 0
    assert study()[:4] == trials and len(study()) == 5  # the search continued
    assert len({trial.params["optimizer.lr"] for trial in study()}) == 5

    code, printed, _ = command("compare", "runs=sweep", "metrics=val/loss")
    assert code == 0 and "| cell.hidden_size | optimizer.lr | n | val/loss |" in printed


def test_a_trial_worse_than_the_median_is_pruned(command, study, tmp_path):
    """With a metric to maximise."""
    monitored = [
        "model.monitor=val/symbol_accuracy",
        "model.monitor_mode=max",
        "callbacks.early_stopping=null",
    ]
    search = [
        *SEARCH,
        *monitored,
        "optimizer.lr=1e-9,1e-2",
        "cell.hidden_size=16",
        "hydra.sweeper.n_trials=8",
    ]
    search += ["callbacks.pruning.startup_trials=2", "data.train_batches=30", "data.delay=1", "data.length=2"]
    assert command("train", *search)[0] == 0
    [journal] = (tmp_path / "sweep").glob("*.journal")
    pruned = [trial for trial in study() if trial.state == TrialState.PRUNED]
    complete = [trial for trial in study() if trial.state == TrialState.COMPLETE]
    assert journal.stat().st_size and pruned and complete
    assert {trial.params["optimizer.lr"] for trial in pruned} == {"1e-09"}
    assert max(complete, key=lambda trial: trial.value).params["optimizer.lr"] == "0.01"
    for trial in study():
        assert (tmp_path / f"sweep/{trial.number}/metrics.json").exists() == (trial in complete)
    code, printed, _ = command("compare", "runs=sweep", "metrics=val/loss")
    assert code == 0 and printed.count("no metrics.json") == len(pruned)


def test_pruned_trials_are_not_replaced(command, study, tmp_path):
    """Two of five trials have finished; three more run, two at a time."""
    (tmp_path / "sweep").mkdir()
    earlier = open_study(tmp_path / "sweep", direction="minimize")
    for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE):
        earlier.tell(earlier.ask(), 1.0 if state == TrialState.COMPLETE else None, state=state)
    search = [*SEARCH, "cell.hidden_size=interval(4,6)", "optimizer.lr=1e-3", "hydra.sweeper.n_trials=5"]
    assert command("train", *search, "hydra.sweeper.n_jobs=2", "callbacks.pruning=null")[0] == 0
    assert [trial.state.name for trial in study()] == ["PRUNED", "FAIL", "COMPLETE", *["COMPLETE"] * 3]
    assert {trial.params["cell.hidden_size"] for trial in study()[3:]} <= {4, 5, 6}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("interval(1,8)", optuna.distributions.IntDistribution(1, 8)),
        ("interval( -1 , end=8 )", optuna.distributions.IntDistribution(-1, 8)),
        ("int(interval(1.5,8.5))", optuna.distributions.IntDistribution(1, 8)),
        ("float(interval(1,8))", optuna.distributions.FloatDistribution(1, 8)),
        ("interval(1,8.0)", optuna.distributions.FloatDistribution(1, 8)),
        ("interval(0.5,8)", optuna.distributions.FloatDistribution(0.5, 8)),
        ("tag(log,interval(1,8))", optuna.distributions.IntDistribution(1, 8, log=True)),
        ("tag(log,interval(0.1,8.0))", optuna.distributions.FloatDistribution(0.1, 8, log=True)),
        ("8,16,lstm", optuna.distributions.CategoricalDistribution(["8", "16", "lstm"])),
        ("range(1,4)", optuna.distributions.CategoricalDistribution(["1", "2", "3"])),
    ],
)
def test_search_spaces(typed, expected):
    [override] = OverridesParser.create().parse_overrides([f"x={typed}"])
    assert build_distribution("x", override) == expected


@pytest.mark.parametrize(
    ("trial", "startup_trials", "warmup", "validation"),
    [(2, 4, 0, None), (2, 3, 0, 1), (2, 3, 3, 3), (3, 0, 0, None)],
)
def test_when_a_trial_is_pruned(tmp_path, trial, startup_trials, warmup, validation):
    """A trial worse than two finished ones at each of four validations. Trial 3 is itself finished."""
    study = open_study(tmp_path, direction="minimize")
    for _ in range(2):
        better = study.ask()
        for step in range(1, 5):
            better.report(1.0, step)
        study.tell(better, 1.0)
    study.ask()
    study.tell(study.ask(), 9.0)
    trainer: Any = SimpleNamespace(callback_metrics={"val/loss": torch.tensor(9.0)})
    pruning: Any = Pruning("val/loss", startup_trials, warmup, str(tmp_path), trial)
    pruned = None
    for k in range(1, 5):
        try:
            pruning.on_validation_end(trainer, None)
        except optuna.TrialPruned:
            pruned = k
            break
    assert pruned == validation


def test_a_resumed_search_restarts_running_trials(command, study, tmp_path):
    (tmp_path / "sweep").mkdir()
    running = open_study(tmp_path / "sweep", direction="minimize").ask(
        {"optimizer.lr": optuna.distributions.FloatDistribution(1e-3, 1e-2)}
    )
    search = [*SEARCH, "cell.hidden_size=4", "optimizer.lr=interval(1e-3,1e-2)", "hydra.sweeper.n_trials=2"]
    assert command("train", *search)[0] == 0
    assert [trial.state.name for trial in study()] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study()[1].params == running.params != study()[2].params


def test_a_trial_that_diverges_fails_and_the_search_continues(command, study):
    search = [*SEARCH, "cell.hidden_size=4", "optimizer.lr=1e-3,1e38", "clipping=none", "optimizer=sgd"]
    assert command("train", *search, "hydra.sweeper.n_trials=4")[0] == 0
    states = {trial.params["optimizer.lr"]: trial.state.name for trial in study()}
    assert states == {"0.001": "COMPLETE", "1e+38": "FAIL"} and len(study()) == 4


def test_a_trial_out_of_memory_fails_and_the_search_continues(command, study):
    """A batch larger than any machine can address."""
    search = [
        *SEARCH,
        "optimizer.lr=1e-3",
        "data.batch_size=4,100000000000000000",
        "hydra.sweeper.n_trials=4",
    ]
    code, _, error = command("train", *search, "callbacks.pruning=null")
    assert code == 0, error
    states = {trial.params["data.batch_size"]: trial.state.name for trial in study()}
    assert states == {"4": "COMPLETE", "100000000000000000": "FAIL"} and len(study()) == 4


def test_any_other_error_ends_the_search(command, study):
    code, _, error = command(
        "train",
        *SEARCH,
        "cell.hidden_size=4",
        "optimizer.lr=1e-3",
        "cell.kind=peephole,gru",
        "cell=torch",
        "hydra.sweeper.n_trials=20",
    )
    assert code == 1
    assert "error: cell=torch has no cell.kind=peephole" in error
    assert study()[-1].state == TrialState.FAIL and len(study()) < 20


def test_trials_run_in_parallel(study, tmp_path):
    train = [sys.executable, PROJECT / "src/train.py", *SEARCH, "hydra.sweeper.n_trials=2"]
    subprocess.run(
        [*train, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"],
        cwd=tmp_path,
        check=True,
        timeout=200,
    )
    assert [trial.state for trial in study()] == [TrialState.COMPLETE] * 2
    assert all(
        len(trial.intermediate_values) == 2 for trial in study()
    )  # reported by the processes of the jobs
