"""One training run in this process, from the checked configuration to the final metrics."""

import ctypes
import gc
import json
import platform
import time
import warnings
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchdata.stateful_dataloader import StatefulDataLoader

from lstmlab import distributed
from lstmlab.atomic import replace_file
from lstmlab.callbacks.curves import mean_train_loss, read_points
from lstmlab.callbacks.progress import RunProgress
from lstmlab.checkpoint import CheckpointIO, find_device, load_checkpoint
from lstmlab.config import name_job, runs_in_parallel
from lstmlab.data import build_data
from lstmlab.loggers import add_wandb_ids, build_loggers, report_results
from lstmlab.models import build_model
from lstmlab.models.base import Task
from lstmlab.models.transfer import take_tokenizer, take_weights
from lstmlab.runs.endings import explaining_out_of_memory, finishing_loggers, handling_interrupts
from lstmlab.runs.resume import Start, find_repeated_run, find_start, read_metrics
from lstmlab.runs.summary import describe_end, describe_start
from lstmlab.schema import OwnSchedulerConfig, TrainConfig


def train(config: TrainConfig, *watching: L.Callback) -> dict[str, float]:
    """Train, write the run's folder (`config.run_dir`) and return its metrics.

    The folder then holds config.yaml, metrics.csv, metrics.json, examples.md, checkpoints/best.ckpt and
    checkpoints/last.ckpt. The metrics are those of best.ckpt, tested once if the task has a test set. With
    `config.resume` the run in that folder resumes; on the CPU it ends as if it had never been interrupted.
    The callbacks `watching` come after those of the configuration.

    Raises:
        FileExistsError: the folder already holds a run.
        ValueError: the accelerator is missing, the data do not fit the task, a class that the configuration
            names cannot be used, or `find_start` refuses to resume.
        OSError: the folder cannot be written to.
        SystemExit: after SIGTERM (code 143) or Ctrl-C (130).
    """
    if repeated := find_repeated_run(config):
        if metrics := read_metrics(config.run_dir):
            print(f"{config.run_dir} has already finished")
            return metrics
        config = repeated.replace({"resume": config.run_dir})

    start = find_start(config)
    check_targets(start.config)
    config = set_up_process(start.config)
    origin = start.checkpoint or load_origin(config)
    tokenizer = take_tokenizer(config, origin) if config.model.init_from else None
    datamodule = load_training_data(config, tokenizer)
    batches = len(datamodule.train_dataloader())
    config = with_step_limits(config, batches)
    check_resumable(config, start, datamodule.info)
    config = config.replace({"logger": add_wandb_ids(config.to_plain()["logger"])})

    model = build_model(config, datamodule.info)
    report = take_weights(model, origin) if origin and not start.checkpoint else ""
    callbacks = [*build_callbacks(config), *watching]
    loggers = build_loggers(config, start.checkpoint.get("global_step"))
    write_config(config, new=start.path is None)
    trainer = build_trainer(config, callbacks, loggers)
    print(describe_start(config, model, batches), *filter(None, [report]), sep="\n")
    if start.path is not None:
        print(f"Resuming after step {start.checkpoint['global_step']}")

    run_dir = Path(config.run_dir)
    with finishing_loggers(loggers), explaining_out_of_memory(run_dir), handling_interrupts(run_dir):
        seconds = fit(trainer, model, datamodule, start)
        best, metrics = evaluate_best(trainer, model, datamodule)
        metrics |= {"train/seconds": seconds}
        report_results(config, trainer, metrics)

    sample = model.finish()
    if distributed.rank() == 0:
        metrics = write_results(config, best, metrics)
        print(f"\n{describe_end(config, metrics, best, trainer.global_step, sample)}")
    return metrics


def write_results(config: TrainConfig, best: int, metrics: dict[str, float]) -> dict[str, float]:
    """Write metrics.json. Returns its content: the metrics, with the mean training loss before `best`."""
    mean = mean_train_loss(read_points(config.run_dir), best)
    if config.model.monitor != "train/loss" and mean is not None:
        metrics = metrics | {"train/loss": mean}
    with replace_file(Path(config.run_dir) / "metrics.json") as file:
        file.write((json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


def check_targets(config: TrainConfig) -> None:
    """Import the classes that the configuration names. Raises what `Target.load` raises."""
    config.optimizer.load("optimizer", Optimizer, positional=1)
    if isinstance(config.scheduler, OwnSchedulerConfig):
        config.scheduler.load("scheduler", LRScheduler, positional=1)
    for name, logger in config.logger.items():
        logger.load(f"logger.{name}", Logger)
    for name, callback in config.callbacks.items():
        if callback is not None:
            callback.load(f"callbacks.{name}", L.Callback)


def set_up_process(config: TrainConfig) -> TrainConfig:
    """Set threads, seeds and memory of this process. Returns the configuration with the run's folder."""
    if gc.get_freeze_count() == 0:
        # Exempt imported modules from collection: 2 ms a pass, not 250
        gc.freeze()
    find_device(config.trainer.accelerator)
    if config.trainer.strategy == "ddp":
        distributed.join_process_group(config.trainer.accelerator)
        # The name holds the time, which may differ between processes
        config = config.replace({"run_dir": distributed.gather_objects(config.run_dir)[0]})
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; no effect on the CPU
    keep_freed_memory()
    L.seed_everything(config.seed, workers=True, verbose=False)
    return config


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning large tensors to the system at each step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def load_origin(config: TrainConfig) -> dict[str, Any]:
    """The checkpoint that `model.init_from` names, or {}. Raises what `load_checkpoint` raises."""
    if config.model.init_from is None:
        return {}
    try:
        return load_checkpoint(config.model.init_from)
    except (OSError, ValueError) as error:
        raise type(error)(str(error).replace("ckpt=", "model.init_from=", 1)) from error


def load_training_data(config: TrainConfig, tokenizer: str | None = None) -> Any:
    """The data module, ready for training. The first process fetches the data while the others wait.

    tokenizer: a JSON string, to encode the texts with; None: one that is trained on them.
    """
    datamodule = build_data(config.data, config.seed)
    if tokenizer is not None:
        datamodule.trained = tokenizer
    first = distributed.rank() == 0
    if first:
        datamodule.prepare_data()
    distributed.any_process(True)
    if not first:
        datamodule.prepare_data()
    datamodule.setup("fit")
    if not hasattr(datamodule.train_dataloader(), "state_dict"):
        raise ValueError(f"data={config.data.name} cannot resume within an epoch: it needs a TrainingLoader")

    if count := config.trainer.overfit_batches:  # Lightning would ask the data set for items 0, 1, …
        batches: Any = list(islice(datamodule.train_dataloader(), count))
        datamodule.train_dataloader = lambda: StatefulDataLoader(
            batches, batch_size=None, generator=torch.Generator()
        )
    return datamodule


def with_step_limits(config: TrainConfig, batches: int) -> TrainConfig:
    """The configuration with the max_epochs and max_steps that the run will reach, which schedules need."""
    trainer = config.trainer
    batches = min(batches, trainer.limit_train_batches or batches)
    steps_per_epoch = -(-batches // trainer.accumulate_grad_batches)
    max_epochs = trainer.max_epochs
    if max_epochs is None:
        assert trainer.max_steps is not None  # checked in TrainConfig.conflict
        max_epochs = -(-trainer.max_steps // steps_per_epoch)
    steps = max_epochs * steps_per_epoch
    limits = {"trainer.max_epochs": max_epochs, "trainer.max_steps": min(trainer.max_steps or steps, steps)}
    return config.replace(limits)


def check_resumable(config: TrainConfig, start: Start, info: dict[str, Any]) -> None:
    """Raise ValueError if a resumed run is already past its last step, or its data have changed."""
    if not start.checkpoint:
        return
    step, max_steps = start.checkpoint["global_step"], config.trainer.max_steps
    if max_steps < step:
        raise ValueError(f"trainer.max_steps={max_steps}, but the run is already at step {step}")
    if start.checkpoint["hyper_parameters"]["info"] != info:
        raise ValueError(f"data={config.data.name} has changed since the run began")


def build_callbacks(config: TrainConfig) -> list[L.Callback]:
    return [
        settings.build(f"callbacks.{name}", L.Callback)
        for name, settings in config.callbacks.items()
        if settings is not None
    ]


def write_config(config: TrainConfig, new: bool) -> None:
    """Write config.yaml, and delete what an earlier attempt left in the run's folder."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if distributed.rank() > 0:
        return
    with replace_file(run_dir / "config.yaml") as file:
        file.write(yaml.safe_dump(config.to_plain(), sort_keys=False, allow_unicode=True).encode())
    # Left by an attempt that was interrupted before its first checkpoint
    stale = ("metrics.csv", "examples.md", "doctor.md", "curves.png") if new else ()
    for name in ("metrics.json", *stale):
        (run_dir / name).unlink(missing_ok=True)


def build_trainer(config: TrainConfig, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    settings = config.trainer
    if settings.enable_progress_bar:
        # Bars of several processes would overwrite each other
        callbacks = [*callbacks, RunProgress(name_job() or "training", bar=not runs_in_parallel())]
    return L.Trainer(
        **settings.model_dump(exclude={"overfit_batches", "profiler"}),
        precision=config.precision.name,
        deterministic=config.deterministic,
        logger=loggers,
        callbacks=callbacks,
        plugins=[CheckpointIO()],
        default_root_dir=config.run_dir,
        profiler=settings.profiler or NoProfiler(),
        # A number of batches is counted across epochs, a share within each epoch
        check_val_every_n_epoch=None if isinstance(settings.val_check_interval, int) else 1,
        use_distributed_sampler=False,  # it would shuffle the streams
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


class NoProfiler(PassThroughProfiler):
    """A profiler that costs almost nothing: Lightning enters it about a hundred times per step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


def fit(trainer: L.Trainer, model: Task, datamodule: Any, start: Start) -> float:
    """Train. Returns the seconds that it took, including those before an interruption."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    delete_requeue_checkpoints(trainer)
    start_time = time.perf_counter()
    trainer.fit(model, datamodule, ckpt_path=start.path, weights_only=True)
    return time.perf_counter() - start_time + start.checkpoint.get("resume", {"seconds": 0})["seconds"]


def evaluate_best(trainer: L.Trainer, model: Task, datamodule: Any) -> tuple[int, dict[str, float]]:
    """Load the weights of best.ckpt. Returns its step and metrics, with those of the test if there is one."""
    best = load_checkpoint(f"{trainer.default_root_dir}/checkpoints/best.ckpt")
    model.load_state_dict(best["state_dict"])
    delete_requeue_checkpoints(trainer)
    metrics = best["metrics"]
    if is_overridden("test_step", model) and is_overridden("test_dataloader", datamodule):
        metrics |= trainer.test(model, datamodule, verbose=False)[0]
    return best["global_step"], metrics


def delete_requeue_checkpoints(trainer: L.Trainer) -> None:
    """Delete what Lightning saves in the middle of a step before SLURM requeues the job: it would load that
    by itself, even for the test. The job resumes from last.ckpt instead."""
    for path in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
        path.unlink()
