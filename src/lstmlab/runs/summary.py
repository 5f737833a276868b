"""What a run prints: at its start what it is, at its end what it reached and what to type next."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import torch

from lstmlab.cells import engines
from lstmlab.checkpoint import find_device
from lstmlab.config import is_sweep, name_job
from lstmlab.help import show_as_typed
from lstmlab.models.base import Sample, Task
from lstmlab.schema import TrainConfig

ENGINES = {"scratch": "PyTorch, one equation per line", "torch": "PyTorch's own module"}
PRECISIONS = {"32-true": "float32", "bf16-mixed": "bf16", "16-mixed": "fp16"}


def describe_start(config: TrainConfig, model: Task, batches: int) -> str:
    """The job of a sweep, the cell, its size, engine and device, the data and the steps.

    batches: in an epoch.
    """
    cell, data, trainer = config.cell, config.data, config.trainer
    device, bf16 = find_device(trainer.accelerator), config.precision.name == "bf16-mixed"
    parameters = sum(p.numel() for p in model.parameters())
    used = engines.describe(model, device, bf16, data.batch_size).replace("fused: ", "").splitlines()
    processes, threads = trainer.devices * trainer.num_nodes, torch.get_num_threads()
    where = [device, f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""]
    where += [f"{processes} processes" if processes > 1 else "", PRECISIONS[config.precision.name]]
    batches = min(batches, trainer.limit_train_batches or batches)
    epoch, every = -(-batches // trainer.accumulate_grad_batches), trainer.val_check_interval
    every = every if isinstance(every, int) else max(1, int(batches * every))
    rows = {
        "model": f"{config.model.name}, {parameters:,} parameters",
        "cell": f"{cell.backend} {cell.kind}, {cell.num_layers} × {cell.hidden_size} units"
        + (", both directions" if cell.bidirectional else ""),
        "engine": "; ".join(used) or ENGINES[cell.backend],
        "device": ", ".join(filter(None, where)),
        "data": f"{model.info.get('source', data.name)}; batches of {data.batch_size}",
        "steps": f"{trainer.max_steps:,}, {epoch:,} an epoch; validation every {every:,} batches",
        "folder": shorten(config.run_dir),
    }
    lines = [name_job()] if is_sweep() else []
    return "\n".join(lines + [f"{name:8} {text}" for name, text in rows.items()])


def shorten(folder: str) -> str:
    """The path from the working directory if the folder is below it, as one would type it."""
    path, here = Path(folder), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def describe_end(
    config: TrainConfig, metrics: Mapping[str, float], best: int, last: int, sample: Sample | None
) -> str:
    """The best step and its numbers, a sample of the model's output, and the commands to run next."""
    monitor, run = config.model.monitor, shorten(config.run_dir)
    first = [name for name in metrics if name == monitor]
    names = [*first, *(n for n in metrics if n.startswith(("val/", "test/")) and n != monitor)]
    names += [name for name in metrics if name not in names]
    limit = f" (limit: {config.trainer.max_steps:,})" if last < (config.trainer.max_steps or 0) else ""
    lines = [f"Best step: {best:,} of {last:,}{limit}, by {monitor}", ""]
    lines += [f"{name:24} {metrics[name]:.5g}" for name in names]
    ckpt = f"ckpt={shlex.quote(run)}"
    commands = [f"evaluate.py {ckpt}", f"analyze.py {ckpt}"]
    if sample is not None:
        lines += ["", f"{sample.title}:", "", sample.text]
        if sample.prompt:
            commands.insert(0, f"predict.py {ckpt} text={shlex.quote(sample.prompt)}")
    lines += ["", f"{run}: metrics.csv, curves.png, checkpoints/best.ckpt"]
    if not is_sweep():  # it ends with the command that compares its runs
        lines += ["Next:", *(show_as_typed(f"    python src/{command}") for command in commands)]
    return "\n".join(lines)
