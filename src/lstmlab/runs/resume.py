"""Resuming a run: from which checkpoint, and with which settings changed."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lstmlab.checkpoint import load_checkpoint
from lstmlab.config import is_sweep
from lstmlab.schema import TrainConfig, check

# A setting is named by its key or by the beginning of it.
HARMLESS = (  # the result stays the same, bit for bit
    "resume",
    "exact",
    "run_dir",
    "logger",
    "data.path",  # the same files elsewhere
    "data.cache",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.limit_test_batches",
    "trainer.profiler",
    "callbacks.last",
    "callbacks.examples",
    "callbacks.throughput",
    "callbacks.doctor",
    "callbacks.gates",
)
LENGTH = ("trainer.max_epochs", "trainer.max_steps")
CHANGEABLE = (  # may change within a run; any other change would mix two settings in one result
    *LENGTH,
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.val_check_interval",
    "trainer.limit_val_batches",
    "precision",
    "clipping",
    "callbacks",
    "cell.backend",
    "cell.engine",
    "cell.dropout",
    "model.dropout",
    "model.word_dropout",
    "deterministic",
    "threads",
)
FIXED = "callbacks.averaging"  # decides what `state_dict` in a checkpoint is


class Start(NamedTuple):
    """Where a run starts: at its first step, or where `checkpoint` was written."""

    config: TrainConfig
    path: str | None = None  # of the checkpoint
    checkpoint: dict[str, Any] = {}  # noqa: RUF012  never written to


def find_repeated_run(config: TrainConfig) -> TrainConfig | None:
    """The settings of the run that this very command began in `run_dir`: a requeued job, or one of a sweep.

    Raises FileExistsError if the folder holds another run.
    """
    run_dir = Path(config.run_dir)
    if config.resume is not None or not (run_dir / "config.yaml").exists():
        return None

    settings = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    there: TrainConfig = check("train", settings)
    differences = find_other_settings(settings, config.to_plain()) if is_sweep() else {}
    if "SLURM_RESTART_COUNT" in os.environ or (is_sweep() and not differences):
        return there
    first = "".join(f" with {key}={value}" for key, (value, _) in list(differences.items())[:1])
    raise FileExistsError(
        f"run_dir={run_dir} holds a run already{first}; choose another, or resume={run_dir}"
    )


def read_metrics(run_dir: str) -> dict[str, float] | None:
    """What metrics.json holds, None if the run has not ended."""
    file = Path(run_dir) / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def find_start(config: TrainConfig) -> Start:
    """Where the run starts: anew, or from the checkpoint that `resume` names.

    Raises ValueError for a run that has ended, and for a setting that must not change or, with `exact`,
    that would change the result; and what `load_checkpoint` raises.
    """
    if config.resume is None:
        return Start(config.replace({"exact": True}))

    path = Path(config.resume)
    of_run = path.is_dir()
    if of_run:
        path /= "checkpoints/last.ckpt"
    exact = config.exact
    config = config.replace({"run_dir": str(path.absolute().parents[1]), "resume": None, "exact": True})
    if of_run and not path.exists():
        return Start(config)

    checkpoint = load_checkpoint(str(path))
    if "resume" not in checkpoint:
        raise ValueError(f"resume={path} has no resume state: its run had callbacks.last=null")
    before = checkpoint["hyper_parameters"]["config"]
    changes = find_changes(before, config.to_plain())
    longer = [key for key in changes if key in LENGTH]
    if of_run and not longer and (Path(config.run_dir) / "metrics.json").exists():
        raise ValueError(
            f"resume={path.parents[1]}: this run has ended; to extend it, raise trainer.max_epochs"
        )
    refuse_changes(before, changes, checkpoint["global_step"], exact)
    if len(longer) == 1:  # the other one was worked out from it
        (other,) = set(LENGTH) - set(longer)
        config = config.replace({other: None})
    return Start(config, str(path), checkpoint)


def refuse_changes(
    before: dict[str, Any], changes: dict[str, tuple[Any, Any]], step: int, exact: bool
) -> None:
    """Raise ValueError for the first change that a run, now at `step`, does not allow."""
    harmless: tuple[str, ...] = HARMLESS
    if before["scheduler"].get("name") != "cosine" and step < before["trainer"]["max_steps"]:
        harmless += LENGTH
    for key, (old, new) in changes.items():
        if key.startswith(harmless):
            continue
        if not key.startswith(CHANGEABLE) or key.startswith(FIXED):
            raise ValueError(f"{key}={new} cannot change within a run, which began with {old}")
        if exact:
            raise ValueError(
                f"{key}={new} in place of {old} would not end like a run without interruption; "
                "exact=false resumes anyway"
            )


def find_changes(before: Any, after: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """{key: (value before, value after)} of the settings that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {
            name: pair
            for part in sorted(before.keys() | after.keys())
            for name, pair in find_changes(
                before.get(part), after.get(part), f"{key}.{part}" if key else part
            ).items()
        }
    return {} if before == after else {key: (before, after)}


def find_other_settings(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value there, value here)} of the settings that make the run of config.yaml another run."""
    filled_in = (*LENGTH, "logger")  # by the run, where they are null
    return {
        key: pair
        for key, pair in find_changes(there, here).items()
        if key != "run_dir" and not (pair[1] is None and key.startswith(filled_in))
    }
