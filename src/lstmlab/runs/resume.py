"""Resume a run: find its checkpoint, and check which settings have changed."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lstmlab.checkpoint import load_checkpoint
from lstmlab.config import is_sweep
from lstmlab.schema import TrainConfig, check

# Settings are named by their key or by the start of it.
HARMLESS = (  # leave the result the same, bit for bit
    "resume",
    "exact",
    "run_dir",
    "logger",
    "data.path",  # may name a copy of the same files
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
    "callbacks.curves",
)
LENGTH = ("trainer.max_epochs", "trainer.max_steps")
CHANGEABLE = (  # may change with exact=false; any other change would mix two experiments in one result
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
FIXED = "callbacks.averaging"  # decides which weights the `state_dict` of a checkpoint holds


class Start(NamedTuple):
    """Where a run starts: at its first step, or at the step of `checkpoint`."""

    config: TrainConfig
    path: str | None = None  # of the checkpoint
    checkpoint: dict[str, Any] = {}  # noqa: RUF012  never modified


def find_repeated_run(config: TrainConfig) -> TrainConfig | None:
    """The settings of the run in `run_dir` if the same command started it: a requeued job, or one of a sweep.

    Raises FileExistsError if the folder holds another run.
    """
    run_dir = Path(config.run_dir)
    if config.resume is not None or not (run_dir / "config.yaml").exists():
        return None

    settings = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    repeated: TrainConfig = check("train", settings)
    differences = find_differences(settings, config.to_plain()) if is_sweep() else {}
    if "SLURM_RESTART_COUNT" in os.environ or (is_sweep() and not differences):
        return repeated
    first = "".join(f" with {key}={value}" for key, (value, _) in list(differences.items())[:1])
    raise FileExistsError(
        f"run_dir={run_dir} already holds a run{first}; choose another folder, or resume={run_dir}"
    )


def read_metrics(run_dir: str) -> dict[str, float] | None:
    """The content of metrics.json, or None if the run has not finished."""
    file = Path(run_dir) / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def find_start(config: TrainConfig) -> Start:
    """Where the run starts: at its first step, or from the checkpoint that `resume` names.

    Raises what `load_checkpoint` raises, and ValueError for a run that has finished, for a setting that must
    not change and, with `exact`, for one that would change the result.
    """
    if config.resume is None:
        return Start(config.replace({"exact": True}))

    path = Path(config.resume)
    is_folder = path.is_dir()
    if is_folder:
        path /= "checkpoints/last.ckpt"
    exact = config.exact
    config = config.replace({"run_dir": str(path.absolute().parents[1]), "resume": None, "exact": True})
    if is_folder and not path.exists():
        return Start(config)

    checkpoint = load_checkpoint(str(path))
    if "resume" not in checkpoint:
        raise ValueError(f"resume={path} has no resume state: its run had callbacks.last=null")
    before = checkpoint["hyper_parameters"]["config"]
    changes = find_changes(before, config.to_plain())
    new_length = [key for key in changes if key in LENGTH]
    if is_folder and not new_length and (Path(config.run_dir) / "metrics.json").exists():
        raise ValueError(
            f"resume={path.parents[1]}: this run has finished; to extend it, raise trainer.max_epochs"
        )
    refuse_changes(before, changes, checkpoint["global_step"], exact)
    # The run worked out one length from the other
    if len(new_length) == 1:
        (other,) = set(LENGTH) - set(new_length)
        config = config.replace({other: None})
    return Start(config, str(path), checkpoint)


def refuse_changes(
    before: dict[str, Any], changes: dict[str, tuple[Any, Any]], step: int, exact: bool
) -> None:
    """Raise ValueError for the first change that is not allowed in a run at `step`."""
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
                f"{key}={new} instead of {old} would change the result of the run; exact=false resumes anyway"
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


def find_differences(recorded: dict[str, Any], typed: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (recorded value, typed value)} of the settings in which a recorded run and the command differ."""
    filled_in = (*LENGTH, "logger")  # by the run, where they are null
    return {
        key: pair
        for key, pair in find_changes(recorded, typed).items()
        if key != "run_dir" and not (pair[1] is None and key.startswith(filled_in))
    }
