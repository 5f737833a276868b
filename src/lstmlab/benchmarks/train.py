"""Whole training steps: what Lightning, logging and callbacks cost, and what the cell gains."""

import contextlib
import csv
import io
import statistics
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lstmlab.benchmarks.timing import Section, TimingRow, run_jobs
from lstmlab.cells import BACKENDS
from lstmlab.data import build_data
from lstmlab.models import build_model
from lstmlab.runs.train import train, with_step_limits
from lstmlab.schema import BenchConfig


def measure_training(config: BenchConfig) -> Section:
    """Tokens per second of the run, of a bare loop with the same cell, and of one with another backend."""
    cell = config.cell
    other = "fused" if cell.backend == "torch" else "torch"
    rates: dict[str, list[float]] = defaultdict(list)
    trainer = {
        "max_steps": config.steps,
        "max_epochs": None,
        "limit_val_batches": 1,
        "val_check_interval": 1.0,
        "enable_progress_bar": False,
    }
    run = config.replace({f"trainer.{key}": value for key, value in trainer.items()})

    def run_round(number: int) -> None:
        rates["a bare loop"].append(time_bare_loop(run))
        if cell.kind in BACKENDS[other]:
            swapped = run.replace({"cell": cell.with_backend(other).to_plain()})
            rates[f"a bare loop, cell={other}"].append(time_bare_loop(swapped))
        rates["train.py"].append(time_run(run.replace({"run_dir": f"{config.run_dir}/{number}"})))

    run_jobs([(f"round {k}", 1.0, partial(run_round, k)) for k in range(config.rounds)])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    size = f"{config.model.name} on {config.data.name}, cell={cell.backend}"
    return Section("Training steps", "train.py", [TimingRow(size, medians)], unit="tokens/s")


def time_run(config: BenchConfig) -> float:
    """The median of train/tokens_per_second in the metrics.csv of a run, with its output hidden."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(config)
    with (Path(config.run_dir) / "metrics.csv").open(newline="") as file:
        rows = [float(row["train/tokens_per_second"] or 0) for row in csv.DictReader(file)]
    return statistics.median(rate for rate in rows if rate)


def time_bare_loop(config: BenchConfig) -> float:
    """Median tokens per second of the same model, batches, optimizer and clipping without a trainer."""
    L.seed_everything(config.seed, verbose=False)
    datamodule = build_data(config.data, config.seed)
    datamodule.prepare_data()
    datamodule.setup("fit")
    limited = with_step_limits(config, len(datamodule.train_dataloader()))
    model: Any = build_model(limited, datamodule.info)
    model.log_step = lambda *args, **kwargs: None
    (optimizer,), (schedule,) = model.configure_optimizers()
    interval = config.trainer.log_every_n_steps

    rates, tokens, start, step = [], 0, time.perf_counter(), 0
    while step < config.steps:
        for index, batch in enumerate(datamodule.train_dataloader()):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision.name == "bf16-mixed"):
                loss = model.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            model.configure_gradient_clipping(optimizer)
            optimizer.step()
            schedule["scheduler"].step()
            step += 1
            tokens += int(model.count_tokens(batch))
            if step % interval == 0:
                rates.append(tokens / (time.perf_counter() - start))
                tokens, start = 0, time.perf_counter()
            if step == config.steps:
                break
    return statistics.median(rates)
