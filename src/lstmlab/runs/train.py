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
from lightning.pytorch.loggers import WandbLogger
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
    settings = config["trainer"]
    if gc.get_freeze_count() == 0:
        gc.freeze()  # what is imported stays: to look for garbage then takes 2 ms in place of 250
    resumed = config["resume"] is not None
    ckpt_path, begun = resume.read(config) if resumed else (None, {})
    config |= {"resume": None, "exact": True}
    run_dir = Path(config["run_dir"])
    if not resumed and (run_dir / "config.yaml").exists():
        begun_with = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        check("train", begun_with)
        others = resume.others(begun_with, config) if is_sweep() else {}
        if "SLURM_RESTART_COUNT" in os.environ or (is_sweep() and not others):  # the same command once more
            if (run_dir / "metrics.json").exists():
                print(f"{run_dir} has ended already")
                return json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
            return train(begun_with | {"resume": str(run_dir)})
        settings_there = "".join(f" with {key}={before}" for key, (before, _) in list(others.items())[:1])
        raise FileExistsError(
            f"run_dir={run_dir} holds a run already{settings_there}; choose another, or resume={run_dir}"
        )
    checkpoint.device(config["trainer"]["accelerator"])
    if settings["strategy"] == "ddp":
        distributed.join_process_group(settings["accelerator"])
        config["run_dir"], *_ = distributed.gather_objects(config["run_dir"])  # which may name a time
        run_dir = Path(config["run_dir"])
    first = distributed.rank() == 0
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing changes on the CPU
    keep_freed_memory()
    L.seed_everything(config["seed"], workers=True, verbose=False)

    datamodule = data.build(config["data"], config["seed"])
    if first:
        datamodule.prepare_data()
    distributed.any_process(True)  # wait: the others read what the first has fetched
    if not first:
        datamodule.prepare_data()
    datamodule.setup("fit")
    if count := config["trainer"]["overfit_batches"]:  # Lightning would ask the data set for items 0, 1, …
        batches: Any = list(islice(datamodule.train_dataloader(), count))
        datamodule.train_dataloader = lambda: StatefulDataLoader(
            batches, batch_size=None, generator=torch.Generator()
        )
    limit_steps(config["trainer"], len(datamodule.train_dataloader()))
    if begun and config["trainer"]["max_steps"] < begun["global_step"]:
        steps = config["trainer"]["max_steps"]
        raise ValueError(f"trainer.max_steps={steps}, but the run is at step {begun['global_step']} already")
    if begun and begun["hyper_parameters"]["info"] != datamodule.info:
        raise ValueError(f"data={config['data']['name']} are no longer those that the run was begun with")
    config = config | {"logger": add_wandb_ids(config["logger"])}
    model = model_class(config["model"]["name"])(config, datamodule.info)
    callbacks = [instantiate(settings) for settings in config["callbacks"].values() if settings]
    run_dir.mkdir(parents=True, exist_ok=True)
    if first:
        with replace_file(run_dir / "config.yaml") as file:
            file.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
        (run_dir / "metrics.json").unlink(missing_ok=True)
    if first and not begun:
        for name in ("metrics.csv", "examples.md", "doctor.md"):  # broken off before a checkpoint
            (run_dir / name).unlink(missing_ok=True)

    trainer = L.Trainer(
        **{key: value for key, value in config["trainer"].items() if key != "overfit_batches"},
        precision=config["precision"]["name"],
        deterministic=config["deterministic"],
        logger=build_loggers(config, begun.get("global_step")),
        callbacks=callbacks,
        plugins=[checkpoint.CheckpointIO()],
        default_root_dir=run_dir,
        # a number of batches is counted on from epoch to epoch, a share within each
        check_val_every_n_epoch=None if isinstance(config["trainer"]["val_check_interval"], int) else 1,
        use_distributed_sampler=False,  # it would shuffle the streams
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    print(describe(model), run_dir, sep="\n")
    if ckpt_path is not None:
        print(f"going on after step {begun['global_step']}")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    start = time.perf_counter()
    try:
        with stoppable(run_dir):
            drop_requeued(run_dir)
            trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=True)
            seconds = time.perf_counter() - start + begun.get("resume", {"seconds": 0})["seconds"]
            best = checkpoint.load(str(run_dir / "checkpoints/best.ckpt"))
            metrics = best["metrics"] | {"train/seconds": seconds}
            model.load_state_dict(best["state_dict"])
            drop_requeued(run_dir)
            if is_overridden("test_step", model):
                metrics |= trainer.test(model, datamodule, verbose=False)[0]
    except RuntimeError as error:
        if is_oom_error(error):
            raise MemoryError(f"out of memory; {run_dir / 'doctor.md'} says what to change") from error
        raise
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and first:
                logger.experiment.finish()  # or a sweep's next job would go on with this run
    print(f"\n{model.finish()}\n")
    if first:
        with replace_file(run_dir / "metrics.json") as file:
            file.write((json.dumps(metrics, indent=2) + "\n").encode())
    print(*(f"{name:24} {value:.5g}" for name, value in metrics.items()), run_dir, sep="\n")
    return metrics


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: it would give large tensors back, and fetch them again at each step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def limit_steps(trainer: dict[str, Any], batches: int) -> None:
    """Set max_steps and max_epochs to what the run will do, for schedules that end with the run."""
    if trainer["limit_train_batches"]:
        batches = min(batches, trainer["limit_train_batches"])
    steps_per_epoch = -(-batches // trainer["accumulate_grad_batches"])
    if trainer["max_epochs"] is None:
        trainer["max_epochs"] = -(-trainer["max_steps"] // steps_per_epoch)
    steps = trainer["max_epochs"] * steps_per_epoch
    trainer["max_steps"] = min(trainer["max_steps"] or steps, steps)


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
