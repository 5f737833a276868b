"""A long run uses no more memory and no more files than a short one, and is not slower.

pytest tests/test_soak.py --soak=10000 -s     as many steps of each task
"""

import csv
import os
import signal
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from lstmlab.schema import TrainConfig
from same_end import HARD, TASKS, overrides, start

LONG = [  # a run without end that reads its data many times
    "threads=1",
    "cell.hidden_size=16",
    "scheduler=constant",
    "scheduler.warmup_steps=2",
    "optimizer.lr=0.003",
    "trainer.max_epochs=1000000",
    "trainer.limit_train_batches=null",
    "trainer.accumulate_grad_batches=1",
    "trainer.log_every_n_steps=20",
    "callbacks.early_stopping=null",
    "callbacks.last.every_n_steps=100",
]
MORE = {
    "charlm": [],
    "copytask": ["data.train_batches=100"],
    "sentiment": ["cell=fused", "data.train_size=1600", "data.batch_size=16"],
    "seq2seq": ["cell=fused", "data.train_size=1600", "data.batch_size=16"],
}


class Sample(NamedTuple):
    step: int
    memory: int  # bytes
    files: int  # open files
    seconds: float  # of processor time


def sample(process, settings: TrainConfig) -> Sample:
    steps = [int(row["step"]) for row in logged(settings)]
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return Sample(steps[-1] if steps else 0, pages * os.sysconf("SC_PAGESIZE"), files, seconds)


def rate(samples: list[Sample]) -> float:
    """Steps per second."""
    return (samples[-1].step - samples[0].step) / (samples[-1].seconds - samples[0].seconds)


def logged(settings: TrainConfig) -> list[dict]:
    path = Path(settings.run_dir) / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("train/tokens_per_second")]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("name", TASKS)
def test_long_runs_do_not_grow_or_slow_down(name, config, text_file, request):
    steps = request.config.getoption("--soak")
    given = [o for o in overrides(name, text_file) if o not in HARD or o.startswith("cell.")]
    settings = config(*given, *LONG, *MORE[name], f"trainer.val_check_interval={steps // 20}")
    process = start(settings)
    samples = [sample(process, settings)]
    while samples[-1].step < steps:
        time.sleep(steps / 50_000)
        assert process.is_alive()
        samples.append(sample(process, settings))
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM

    # The first tenth is left out: some modules are imported late. Medians, since files open and close
    early = [s for s in samples if steps / 10 < s.step <= steps / 3]
    late = [s for s in samples if s.step > steps * 0.9]
    memory, later = (statistics.median(s.memory for s in part) for part in (early, late))
    files, files_later = (statistics.median(s.files for s in part) for part in (early, late))
    speed = rate([s for s in samples if s.step > steps / 2]) / rate(early)
    growth = later / memory - 1
    print(f"{name}: {samples[-1].step} steps, memory {memory / 2**20:.1f} MiB, {growth:+.2%}, ", end="")
    print(f"files {files:g} → {files_later:g}, speed × {speed:.2f}")
    assert growth < 0.01
    assert files_later <= files
    assert speed > 0.7
