"""Going on with a run: from which checkpoint, and with which settings changed."""

from pathlib import Path
from typing import Any

from lstmlab import checkpoint

# A setting is named by its key or by the beginning of it.
HARMLESS = (  # the end stays the same, bit for bit
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
CHANGEABLE = (  # what the rest of the run can do otherwise; all else would be half old, half new
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
    "cell.dropout",
    "model.dropout",
    "model.word_dropout",
    "deterministic",
    "threads",
)
FIXED = "callbacks.averaging"  # decides what `state_dict` in a checkpoint is


def read(config: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The path of the checkpoint that `config["resume"]` names, and what it holds; None and {} if the run was
    broken off before its first one. `config["run_dir"]` becomes the folder where the run is now.

    Raises ValueError for a run that has ended, and for a setting that must not change or, with
    `config["exact"]`, that would change the end; what `checkpoint.load` raises.
    """
    path = Path(config["resume"])
    of_run = path.is_dir()
    if of_run:
        path /= "checkpoints/last.ckpt"
    config["run_dir"] = str(path.absolute().parents[1])
    if of_run and not path.exists():
        return None, {}
    begun = checkpoint.load(str(path))
    if "resume" not in begun:
        raise ValueError(f"resume={path} holds too little to go on from: its run had callbacks.last=null")
    before, step = begun["hyper_parameters"]["config"], begun["global_step"]
    changes = changed(before, config)
    longer = [key for key in changes if key in LENGTH]
    if of_run and (Path(config["run_dir"]) / "metrics.json").exists() and not longer:
        raise ValueError(f"resume={path.parents[1]}: this run has ended; to go on, raise trainer.max_epochs")
    harmless: tuple[str, ...] = HARMLESS
    if before["scheduler"]["name"] != "cosine" and step < before["trainer"]["max_steps"]:
        harmless += LENGTH
    for key, (old, new) in changes.items():
        if key.startswith(harmless):
            continue
        if not key.startswith(CHANGEABLE) or key.startswith(FIXED):
            raise ValueError(f"{key}={new} cannot be changed within a run, which was begun with {old}")
        if config["exact"]:
            raise ValueError(
                f"{key}={new} in place of {old} would not end as a run that was never broken off; "
                "exact=false goes on nevertheless"
            )
    if len(longer) == 1:  # the other one was worked out from it
        (other,) = set(LENGTH) - set(longer)
        config["trainer"][other.removeprefix("trainer.")] = None
    return str(path), begun


def changed(before: Any, after: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """{key: (value before, value after)} of the settings that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {
            name: pair
            for part in sorted(before.keys() | after.keys())
            for name, pair in changed(
                before.get(part), after.get(part), f"{key}.{part}" if key else part
            ).items()
        }
    return {} if before == after else {key: (before, after)}


def others(begun_with: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value there, value here)} of the settings by which the run whose config.yaml is `begun_with` is
    not the one that `config` describes."""
    filled_in = (*LENGTH, "logger")  # by the run, where they are null
    return {
        key: pair
        for key, pair in changed(begun_with, config).items()
        if key != "run_dir" and not (pair[1] is None and key.startswith(filled_in))
    }
