"""A long run needs no more memory and no more files than a short one, and is no slower.

pytest tests/test_soak.py --soak=60 -s     an hour of each task
"""

import csv
import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from same_end import TASKS, overrides, start

LONG = [
    "threads=1",
    "scheduler=constant",
    "trainer.max_epochs=1000000",
    "trainer.limit_train_batches=null",
    "trainer.val_check_interval=200",
    "trainer.log_every_n_steps=20",
    "callbacks.early_stopping=null",
]


def needs(process) -> tuple[int, int]:
    """Bytes of memory, and open files."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def logged(settings: dict) -> list[tuple[int, float]]:
    """Steps, and tokens a second."""
    with (Path(settings["run_dir"]) / "metrics.csv").open(newline="") as file:
        name = "train/tokens_per_second"
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("name", TASKS)
def test_soak(name, config, text_file, request):
    given = [o for o in overrides(name, text_file) if not o.startswith("scheduler.patience")]
    settings = config(*given, *LONG)
    seconds = 60 * request.config.getoption("--soak")
    process = start(settings)
    samples = []
    while not (Path(settings["run_dir"]) / "checkpoints/last.ckpt").exists():
        time.sleep(0.05)  # what is loaded late is loaded after a validation
        assert process.is_alive()
    for _ in range(40):
        time.sleep(seconds / 40)
        samples.append(needs(process))
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM

    rows = logged(settings)
    last, _ = rows[-1]
    memory = [statistics.median(m for m, _ in part) for part in (samples[10:18], samples[-8:])]
    # the median: a file that is being written is open for a moment
    files = [statistics.median(f for _, f in part) for part in (samples[10:18], samples[-8:])]
    half = len(rows) // 2
    speed = statistics.median(r for _, r in rows[half:]) / statistics.median(r for _, r in rows[:half])
    growth = memory[1] / memory[0] - 1
    print(f"{name}: {last} steps, memory {memory[0] / 2**20:.1f} MiB, {growth:+.2%}, ", end="")
    print(f"files {files[0]:g} → {files[1]:g}, speed × {speed:.2f}")
    assert growth < 0.01
    assert files[1] <= files[0]
    assert speed > 0.5  # of what else runs on this machine nothing is known
