"""SIGKILL at any moment: the run goes on from last.ckpt, and ends as one that was never killed.

pytest tests/test_kill.py --kills=20     the whole figure: 20 kills of each task
"""

import random
import signal
import time
from pathlib import Path

import pytest

from lstmlab import checkpoint
from lstmlab.schema import TrainConfig
from same_end import TASKS, assert_same_end, overrides, resumed, start


def finish(settings: TrainConfig) -> float:
    """Run to the end; the seconds that it took from its config.yaml on."""
    process, began = start(settings), time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.mark.parametrize("name", TASKS)
def test_kill(name, config, text_file, request):
    often = ["threads=1", "callbacks.last.every_n_steps=2"]
    whole = config(*overrides(name, text_file), *often)
    seconds = finish(whole)
    kills = 0
    while kills < request.config.getoption("--kills"):
        settings = config(*overrides(name, text_file), *often)
        folder = Path(settings.run_dir)
        process = start(settings)
        time.sleep(random.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was quicker this time
            seconds *= 0.9
            continue
        assert process.exitcode == -signal.SIGKILL
        last = folder / "checkpoints/last.ckpt"
        step = checkpoint.load_checkpoint(str(last))["global_step"] if last.exists() else None
        kills += 1
        finish(resumed(settings))
        assert_same_end(settings, whole)
        print(f"{name}: kill {kills}, gone on after step {step}, the same end")
