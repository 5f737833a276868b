"""From a checked configuration to its numbers: a training run, and the evaluation of a checkpoint."""

import json
import logging
import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lstmlab import checkpoint, data
from lstmlab.callbacks.metrics_csv import MetricsCSV
from lstmlab.models import Task, model_class

# Lightning announces what was asked for, and a product of its own
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train, write the run's folder (`config["run_dir"]`) and return its metrics.

    The folder then holds config.yaml, metrics.csv, metrics.json, examples.md, checkpoints/best.ckpt and
    last.ckpt; the metrics are those of best.ckpt, tested once if the task has a test set.

    Raises:
        FileExistsError: the folder holds a run already.
        ValueError: the accelerator is not there, or the data do not suit.
    """
    run_dir = Path(config["run_dir"])
    if (run_dir / "config.yaml").exists():
        raise FileExistsError(f"run_dir={run_dir} holds a run already; choose another folder")
    checkpoint.device(config["trainer"]["accelerator"])
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing changes on the CPU
    L.seed_everything(config["seed"], workers=True, verbose=False)

    datamodule = data.build(config["data"], config["seed"])
    datamodule.prepare_data()
    datamodule.setup("fit")
    if count := config["trainer"]["overfit_batches"]:  # Lightning would ask the data set for items 0, 1, …
        batches: Any = list(islice(datamodule.train_dataloader(), count))
        datamodule.train_dataloader = lambda: DataLoader(batches, batch_size=None)
    limit_steps(config["trainer"], len(datamodule.train_dataloader()))
    model = model_class(config["model"]["name"])(config, datamodule.info)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    trainer = L.Trainer(
        **{key: value for key, value in config["trainer"].items() if key != "overfit_batches"},
        precision=config["precision"]["name"],
        deterministic=config["deterministic"],
        logger=build_loggers(config),
        callbacks=[instantiate(settings) for settings in config["callbacks"].values() if settings],
        default_root_dir=run_dir,
        # a number of batches is counted on from epoch to epoch, a share within each
        check_val_every_n_epoch=None if isinstance(config["trainer"]["val_check_interval"], int) else 1,
        use_distributed_sampler=False,  # it would shuffle the streams
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    print(describe(model), run_dir, sep="\n")
    start = time.perf_counter()
    try:
        trainer.fit(model, datamodule)
        seconds = time.perf_counter() - start
        best = checkpoint.load(str(run_dir / "checkpoints/best.ckpt"))
        metrics = best["metrics"] | {"train/seconds": seconds}
        model.load_state_dict(best["state_dict"])
        if is_overridden("test_step", model):
            metrics |= trainer.test(model, datamodule, verbose=False)[0]
    except RuntimeError as error:
        if is_oom_error(error):
            raise MemoryError(f"out of memory; {run_dir / 'doctor.md'} says what to change") from error
        raise
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # or a sweep's next job would go on with this run
    print(f"\n{model.finish()}\n")
    (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(*(f"{name:24} {value:.5g}" for name, value in metrics.items()), run_dir, sep="\n")
    return metrics


def evaluate(config: dict[str, Any]) -> dict[str, float]:
    """The metrics of checkpoint `config["ckpt"]` on its validation data, and its test data if it has some.

    Raises what `checkpoint.load` and the data module raise, and ValueError if the text is no longer the one
    that was trained on: it would be cut elsewhere, so that some of its validation part was trained on.
    """
    model = checkpoint.load_model(config["ckpt"], config["backend"], config["accelerator"])
    given = {key: value for key, value in config["data"].items() if value is not None}
    if unread := sorted(given.keys() - model.config["data"].keys() - {"cache"}):
        raise ValueError(
            f"data.{unread[0]}={given[unread[0]]}: data={model.config['data']['name']} has no such key"
        )
    datamodule = data.build(model.config["data"] | given, model.config["seed"], model.info)
    if "source" in model.info and "path" not in given:
        datamodule.prepare_data()
        if datamodule.info["source"] != model.info["source"]:
            raise ValueError(
                f"ckpt={config['ckpt']} was trained on {model.info['source']}, but here is "
                f"{datamodule.info['source']}, some of whose validation part it may have been trained on"
            )
    trainer = L.Trainer(
        accelerator=config["accelerator"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    metrics = trainer.validate(model, datamodule, verbose=False)
    if is_overridden("test_step", model):
        metrics += trainer.test(model, datamodule, verbose=False)
    return {name: value for part in metrics for name, value in part.items()}


def limit_steps(trainer: dict[str, Any], batches: int) -> None:
    """Set max_steps and max_epochs to what the run will do, for schedules that end with the run."""
    if trainer["limit_train_batches"]:
        batches = min(batches, trainer["limit_train_batches"])
    steps_per_epoch = -(-batches // trainer["accumulate_grad_batches"])
    if trainer["max_epochs"] is None:
        trainer["max_epochs"] = -(-trainer["max_steps"] // steps_per_epoch)
    steps = trainer["max_epochs"] * steps_per_epoch
    trainer["max_steps"] = min(trainer["max_steps"] or steps, steps)


def build_loggers(config: dict[str, Any]) -> list[Logger]:
    """metrics.csv, and what the `logger` group names."""
    sweep = None
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep = Path(HydraConfig.get().sweep.dir).name
    loggers: list[Logger] = [MetricsCSV(config["run_dir"])]
    for settings in config["logger"].values():
        if "group" in settings:
            settings = settings | {"group": settings["group"] or sweep}
        logger = instantiate(settings)
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(config)
            monitor, mode = config["model"]["monitor"], config["model"]["monitor_mode"]
            logger.experiment.define_metric(monitor, summary=mode)
        loggers.append(logger)
    return loggers


def describe(model: Task) -> str:
    """The model and its size, and which data it learns from."""
    parameters = sum(p.numel() for p in model.parameters())
    source = model.info.get("source", model.config["data"]["name"])
    return f"{type(model).__name__} with {parameters:,} parameters; data: {source}"
