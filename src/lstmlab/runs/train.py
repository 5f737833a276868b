"""One training run, in this process, from a checked configuration to its numbers."""

import ctypes
import gc
import json
import logging
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.model_helpers import is_overridden
from torchdata.stateful_dataloader import StatefulDataLoader

from lstmlab import checkpoint, data, distributed
from lstmlab.atomic import replace_file
from lstmlab.config import is_sweep
from lstmlab.loggers import add_wandb_ids, build_loggers
from lstmlab.models import model_class
from lstmlab.models.base import Task
from lstmlab.runs import resume
from lstmlab.schema import check

# Lightning announces what was asked for, and a product of its own
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train, write the run's folder (`config["run_dir"]`) and return its metrics.

    The folder then holds config.yaml, metrics.csv, metrics.json, examples.md, checkpoints/best.ckpt and
    last.ckpt; the metrics are those of best.ckpt, tested once if the task has a test set. With
    `config["resume"]` the run in that folder goes on: on the CPU it ends as if it had never been broken off.

    Raises:
        FileExistsError: the folder holds a run already.
        ValueError: the accelerator is not there, the data do not suit, or `resume.read` finds fault.
        OSError: the folder cannot be written to.
        SystemExit: after SIGTERM (code 143) or Ctrl-C (130).
    """
    resumed = config["resume"] is not None
    ckpt_path, begun = resume.read(config) if resumed else (None, {})
    config |= {"resume": None, "exact": True}
    if not resumed and (begun_with := find_repeated_run(config)):
        ended = Path(config["run_dir"]) / "metrics.json"
        if ended.exists():
            print(f"{config['run_dir']} has ended already")
            return json.loads(ended.read_text(encoding="utf-8"))
        return train(begun_with | {"resume": config["run_dir"]})

    set_up_process(config)
    run_dir = Path(config["run_dir"])
    datamodule = load_data(config)
    limit_steps(config["trainer"], len(datamodule.train_dataloader()))
    check_continues(config, begun, datamodule.info)
    config = config | {"logger": add_wandb_ids(config["logger"])}
    model = model_class(config["model"]["name"])(config, datamodule.info)
    callbacks = [instantiate(settings) for settings in config["callbacks"].values() if settings]
    write_config(config, new=not begun)
    trainer = build_trainer(config, callbacks, build_loggers(config, begun.get("global_step")))
    print(describe(model), run_dir, sep="\n")
    if ckpt_path is not None:
        print(f"going on after step {begun['global_step']}")

    with finished(trainer.loggers), out_of_memory_explained(run_dir), stoppable(run_dir):
        seconds = fit(trainer, model, datamodule, ckpt_path)
        seconds += begun.get("resume", {"seconds": 0})["seconds"]
        metrics = evaluate_best(trainer, model, datamodule, seconds)
    print(f"\n{model.finish()}\n")
    if distributed.rank() == 0:
        with replace_file(run_dir / "metrics.json") as file:
            file.write((json.dumps(metrics, indent=2) + "\n").encode())
    print(*(f"{name:24} {value:.5g}" for name, value in metrics.items()), run_dir, sep="\n")
    return metrics


def find_repeated_run(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that this very command began in `run_dir`: a requeued job, or one of a sweep.

    Raises FileExistsError if the folder holds another run.
    """
    run_dir = Path(config["run_dir"])
    if not (run_dir / "config.yaml").exists():
        return None
    begun_with = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    check("train", begun_with)
    others = resume.others(begun_with, config) if is_sweep() else {}
    if "SLURM_RESTART_COUNT" in os.environ or (is_sweep() and not others):
        return begun_with
    settings_there = "".join(f" with {key}={before}" for key, (before, _) in list(others.items())[:1])
    raise FileExistsError(
        f"run_dir={run_dir} holds a run already{settings_there}; choose another, or resume={run_dir}"
    )


def set_up_process(config: dict[str, Any]) -> None:
    """Threads, memory and seeds of this process, and its place among others, who share one `run_dir`."""
    if gc.get_freeze_count() == 0:
        # Exempt imported modules from collection: 2 ms a pass, not 250
        gc.freeze()
    checkpoint.device(config["trainer"]["accelerator"])
    if config["trainer"]["strategy"] == "ddp":
        distributed.join_process_group(config["trainer"]["accelerator"])
        # Each process may have put another time into its name
        config["run_dir"], *_ = distributed.gather_objects(config["run_dir"])
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing changes on the CPU
    keep_freed_memory()
    L.seed_everything(config["seed"], workers=True, verbose=False)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: it would give large tensors back, and fetch them again at each step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def load_data(config: dict[str, Any]) -> Any:
    """The data module, ready to train. The first process fetches the data while the others wait."""
    datamodule = data.build(config["data"], config["seed"])
    first = distributed.rank() == 0
    if first:
        datamodule.prepare_data()
    distributed.any_process(True)
    if not first:
        datamodule.prepare_data()
    datamodule.setup("fit")

    if count := config["trainer"]["overfit_batches"]:  # Lightning would ask the data set for items 0, 1, …
        batches: Any = list(islice(datamodule.train_dataloader(), count))
        datamodule.train_dataloader = lambda: StatefulDataLoader(
            batches, batch_size=None, generator=torch.Generator()
        )
    return datamodule


def limit_steps(trainer: dict[str, Any], batches: int) -> None:
    """Set max_steps and max_epochs to what the run will do, for schedules that end with the run."""
    if trainer["limit_train_batches"]:
        batches = min(batches, trainer["limit_train_batches"])
    steps_per_epoch = -(-batches // trainer["accumulate_grad_batches"])
    if trainer["max_epochs"] is None:
        trainer["max_epochs"] = -(-trainer["max_steps"] // steps_per_epoch)
    steps = trainer["max_epochs"] * steps_per_epoch
    trainer["max_steps"] = min(trainer["max_steps"] or steps, steps)


def check_continues(config: dict[str, Any], begun: dict[str, Any], info: dict[str, Any]) -> None:
    """Raise ValueError if a resumed run is past its last step already, or its data have changed."""
    if not begun:
        return
    steps = config["trainer"]["max_steps"]
    if steps < begun["global_step"]:
        raise ValueError(f"trainer.max_steps={steps}, but the run is at step {begun['global_step']} already")
    if begun["hyper_parameters"]["info"] != info:
        raise ValueError(f"data={config['data']['name']} are no longer those that the run was begun with")


def write_config(config: dict[str, Any], new: bool) -> None:
    """Make the run's folder; the first process writes config.yaml there and deletes what is out of date."""
    run_dir = Path(config["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True)
    if distributed.rank() > 0:
        return
    with replace_file(run_dir / "config.yaml") as file:
        file.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    # An attempt that was interrupted before its first checkpoint has left rows of its own
    stale = ("metrics.json", "metrics.csv", "examples.md", "doctor.md") if new else ("metrics.json",)
    for name in stale:
        (run_dir / name).unlink(missing_ok=True)


def build_trainer(config: dict[str, Any], callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    settings = config["trainer"]
    return L.Trainer(
        **{key: value for key, value in settings.items() if key != "overfit_batches"},
        precision=config["precision"]["name"],
        deterministic=config["deterministic"],
        logger=loggers,
        callbacks=callbacks,
        plugins=[checkpoint.CheckpointIO()],
        default_root_dir=config["run_dir"],
        # A number of batches is counted on from epoch to epoch, a share within each
        check_val_every_n_epoch=None if isinstance(settings["val_check_interval"], int) else 1,
        use_distributed_sampler=False,  # it would shuffle the streams
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def fit(trainer: L.Trainer, model: Task, datamodule: Any, ckpt_path: str | None) -> float:
    """Train; returns the seconds that it took."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    drop_requeued(Path(trainer.default_root_dir))
    start = time.perf_counter()
    trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=True)
    return time.perf_counter() - start


def evaluate_best(trainer: L.Trainer, model: Task, datamodule: Any, seconds: float) -> dict[str, float]:
    """Load the weights of best.ckpt into the model; returns its metrics, those of the test among them."""
    run_dir = Path(trainer.default_root_dir)
    best = checkpoint.load(str(run_dir / "checkpoints/best.ckpt"))
    metrics = best["metrics"] | {"train/seconds": seconds}
    model.load_state_dict(best["state_dict"])
    drop_requeued(run_dir)
    if is_overridden("test_step", model):
        metrics |= trainer.test(model, datamodule, verbose=False)[0]
    return metrics


@contextmanager
def out_of_memory_explained(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_oom_error(error):
            raise MemoryError(f"out of memory; {run_dir / 'doctor.md'} says what to change") from error
        raise


@contextmanager
def finished(loggers: list[Logger]) -> Iterator[None]:
    """Finish the wandb run at the end: a sweep's next job would continue it."""
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger) and distributed.rank() == 0:
                logger.experiment.finish()


@contextmanager
def stoppable(run_dir: Path) -> Iterator[None]:
    """What to do when a run is broken off. Ctrl-C is SIGTERM, after which Lightning and LastCheckpoint stop
    between two steps; a second Ctrl-C stops at once. The exit code is 128 + the signal's number."""
    code = 128 + signal.SIGTERM
    command = f"python src/train.py resume={run_dir}"

    def interrupt(*_: Any) -> None:
        nonlocal code
        again, code = code == 128 + signal.SIGINT, 128 + signal.SIGINT
        if again or signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            raise SystemExit(code)
        signal.raise_signal(signal.SIGTERM)

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except SIGTERMException:
        print(f"\nStopped. To go on: {command}")
        raise SystemExit(code) from None
    except OSError as error:
        if not run_dir.exists():
            raise FileNotFoundError(f"{run_dir} was deleted while the run was writing to it") from error
        raise OSError(f"{error}. When that is mended, go on: {command}") from error
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)


def drop_requeued(run_dir: Path) -> None:
    """Delete what Lightning saves, in the midst of a step, when SLURM is to requeue the job: it would load
    that unasked, also to test it. The job goes on from last.ckpt."""
    for path in run_dir.glob("hpc_ckpt_*.ckpt"):
        path.unlink()


def describe(model: Task) -> str:
    """The model and its size, and which data it learns from."""
    parameters = sum(p.numel() for p in model.parameters())
    source = model.info.get("source", model.config["data"]["name"])
    return f"{type(model).__name__} with {parameters:,} parameters; data: {source}"
