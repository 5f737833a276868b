"""A run killed by SIGKILL at any moment resumes from last.ckpt and ends as if it had never been killed.

pytest tests/test_kill.py --kills=20     20 kills of each task
"""

import random
import signal
import time
from pathlib import Path

import pytest

from lstmlab import checkpoint
from lstmlab.schema import TrainConfig
from same_end import TASKS, assert_same_end, overrides, resumed, start


def run_to_end(settings: TrainConfig) -> float:
    """Run to the end. Returns the seconds from config.yaml on."""
    process, started = start(settings), time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


@pytest.mark.parametrize("name", TASKS)
def test_a_killed_run_ends_the_same(name, config, text_file, request):
    often = ["threads=1", "callbacks.last.every_n_steps=2"]
    whole = config(*overrides(name, text_file), *often)
    seconds = run_to_end(whole)
    kills = 0
    while kills < request.config.getoption("--kills"):
        settings = config(*overrides(name, text_file), *often)
        folder = Path(settings.run_dir)
        process = start(settings)
        time.sleep(random.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:  # finished before the kill
            seconds *= 0.9
            continue
        assert process.exitcode == -signal.SIGKILL
        last = folder / "checkpoints/last.ckpt"
        step = checkpoint.load_checkpoint(str(last))["global_step"] if last.exists() else None
        kills += 1
        run_to_end(resumed(settings))
        assert_same_end(settings, whole)
        print(f"{name}: kill {kills}, resumed after step {step}, same end")
