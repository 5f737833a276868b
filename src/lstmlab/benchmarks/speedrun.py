"""How long a run trains until it predicts Tiny Shakespeare well: val/loss_cold below `TARGET`."""

import contextlib
import io
import time
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

import lightning as L

from lstmlab.benchmarks.timing import run_jobs, write_results
from lstmlab.runs.train import train
from lstmlab.schema import BenchConfig
from lstmlab.tables import markdown

TARGET = 1.55  # nats per character


@dataclass
class Attempt:
    """One run until it was below `TARGET`, or to its end."""

    seed: int
    seconds: float  # on the wall
    processor_seconds: float  # of all threads of this process
    steps: int
    tokens: int
    loss: float  # val/loss_cold of the last validation


class Stopwatch(L.Callback):
    """Ends training at the first validation at which val/loss_cold is below `TARGET`.

    The clock runs from the first batch after the start, or after a validation, to the next validation. So it
    counts the loading of batches, training steps, logging and what callbacks do in between, but neither the
    set-up nor validations, what callbacks do at their end, or checkpoints.
    """

    def __init__(self, seed: int):
        self.attempt = Attempt(seed, 0.0, 0.0, 0, 0, float("inf"))
        self.start: tuple[float, float] | None = None

    def on_train_batch_start(self, trainer, pl_module, batch: Any, batch_idx: int) -> None:
        if self.start is None:
            self.start = time.perf_counter(), time.process_time()
        self.attempt.tokens += int(pl_module.count_tokens(batch))

    def on_validation_start(self, trainer, pl_module) -> None:
        assert self.start is not None
        self.attempt.seconds += time.perf_counter() - self.start[0]
        self.attempt.processor_seconds += time.process_time() - self.start[1]
        self.attempt.steps, self.start = trainer.global_step, None

    def on_validation_end(self, trainer, pl_module) -> None:
        self.attempt.loss = float(trainer.callback_metrics["val/loss_cold"])
        trainer.should_stop |= self.attempt.loss < TARGET


def measure_speedrun(config: BenchConfig) -> str:
    """Train `config.rounds` times, with the seeds from `config.seed` on, and write bench.json.

    Returns a table in Markdown, and whether all runs came below `TARGET`.
    """
    seeds = range(config.seed, config.seed + config.rounds)
    attempts = run_jobs([(f"seed {seed}", 1.0, partial(run_seed, config, seed)) for seed in seeds])
    rows = [asdict(attempt) for attempt in attempts]
    write_results("speedrun", config.run_dir, target=TARGET, rows=rows)
    table = markdown(list(rows[0]), [[f"{round(value, 4):,}" for value in row.values()] for row in rows])
    seconds, processor = (fmean(row[key] for row in rows) for key in ("seconds", "processor_seconds"))
    above = ", ".join(str(attempt.seed) for attempt in attempts if attempt.loss >= TARGET)
    verdict = f"not below {TARGET}: seed {above}" if above else f"all are below {TARGET}"
    means = f"Mean: {seconds:.1f} s, {processor:.1f} s of processor time; {verdict}."
    return f"**Training until val/loss_cold is below {TARGET}**\n\n{table}\n\n{means}\n\n{config.run_dir}"


def run_seed(config: BenchConfig, seed: int) -> Attempt:
    watch = Stopwatch(seed)
    changes = {"seed": seed, "run_dir": f"{config.run_dir}/{seed}", "trainer.enable_progress_bar": False}
    with contextlib.redirect_stdout(io.StringIO()):
        train(config.replace(changes), watch)
    return watch.attempt
