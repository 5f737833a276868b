"""What a run prints at its start and at its end."""

import re
import shlex

import pytest

from conftest import SMALL, TINY


@pytest.mark.parametrize("model", ["copytask", "sentiment", "seq2seq"])
def test_what_to_type_next_can_be_pasted(command, tmp_path, model):
    """With a folder whose name needs quotes."""
    cache = [] if model == "copytask" else [f"data.cache={tmp_path}/cache"]
    small = [
        f"model={model}",
        *TINY[model],
        *SMALL,
        *cache,
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
    ]
    code, printed, error = command("train", *small, "hydra.run.dir='my run'")
    assert (code, error) == (0, "")
    start, end = printed.split("\nBest step: ")
    for name in ("model", "cell", "engine", "device", "data", "steps", "folder"):
        assert re.search(rf"^{name} +\S", start, re.MULTILINE), name
    lines = [shlex.split(line) for line in end.partition("Next:\n")[2].splitlines()]
    assert [line[1] for line in lines] == ["src/predict.py", "src/evaluate.py", "src/analyze.py"]
    for _, script, *arguments in lines[:2]:
        code, printed, _ = command(script[4:-3], *arguments, *cache if "evaluate" in script else ())
        assert code == 0 and printed
