"""callbacks=averaging in whole runs."""

from functools import partial
from pathlib import Path

import pytest
import torch

from conftest import SMALL, ask
from lstmlab import checkpoint
from lstmlab.callbacks.examples import Examples
from lstmlab.callbacks.throughput import Throughput
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train
from same_end import TASKS, overrides

AVERAGING = ["callbacks=averaging", "callbacks.averaging.decay=0.8"]
MORE = {
    "charlm": ["cell=fused", "model.tie_weights=true"],
    "copytask": ["cell=scratch"],
    "sentiment": ["cell.kind=gru"],
    "seq2seq": ["cell=fused", "cell.kind=peephole", "model.tie_weights=all"],
}


@pytest.fixture
def weights(monkeypatch):
    """The weights at each step, in training and where examples are shown: weights["shown"][step][name]."""
    seen: dict[str, dict[int, dict[str, torch.Tensor]]] = {"training": {}, "shown": {}}

    def watch(callback: type, hook: str, kept: dict) -> None:
        original = getattr(callback, hook)

        def record(self, trainer, pl_module, *rest) -> None:
            kept[trainer.global_step] = {k: v.double() for k, v in pl_module.state_dict().items()}
            original(self, trainer, pl_module, *rest)

        monkeypatch.setattr(callback, hook, record)

    watch(Throughput, "on_train_batch_end", seen["training"])
    watch(Examples, "on_validation_end", seen["shown"])
    return seen


@pytest.mark.parametrize(("name", "from_step"), [("charlm", 0), *((name, 4) for name in TASKS)])
def test_shown_and_saved_weights_are_the_average(name, from_step, config, text_file, weights):
    """Compared with an average of the weights at each step, in double precision."""
    given = [*overrides(name, text_file), *MORE[name], *AVERAGING]
    settings = config(*given, f"callbacks.averaging.from_step={from_step}")
    metrics = train(settings)
    steps = range(1, max(weights["training"]) + 1)
    expected: dict[int, dict[str, torch.Tensor]] = {}
    for step in steps:
        now, before = weights["training"][step], expected.get(step - 1)
        if before is None or step <= from_step:
            expected[step] = now
        else:
            expected[step] = {key: 0.8 * before[key] + 0.2 * now[key] for key in now}
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    for step, shown in weights["shown"].items():
        close(shown, expected[step])
    folder = Path(settings.run_dir) / "checkpoints"
    for file in ("best.ckpt", "last.ckpt"):
        saved = checkpoint.load_checkpoint(str(folder / file))
        average, current = (
            {key: value.double() for key, value in saved[part].items()}
            for part in ("state_dict", "current_model_state")
        )
        close(average, expected[saved["global_step"]])
        torch.testing.assert_close(current, weights["training"][saved["global_step"]], rtol=0, atol=0)
    assert saved["global_step"] == steps[-1] > from_step + 5
    assert max((average[key] - current[key]).abs().max() for key in average) > 1e-3
    found = evaluate(ask(str(folder / "best.ckpt"), cache=getattr(settings.data, "cache", "")))
    losses = [key for key in found if "loss" in key]
    assert losses and all(found[key] == pytest.approx(metrics[key], rel=1e-4) for key in losses)


@pytest.mark.parametrize("change", ["callbacks.averaging=null", "callbacks.averaging.decay=0.9"])
def test_a_run_resumes_with_its_average(change, config, command):
    """Without the callback, a resumed run would train from the average."""
    short = [*TASKS["copytask"], *SMALL, "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    settings = config("model=copytask", *short, *AVERAGING)
    train(settings)
    code, _, error = command(
        "train", f"resume={settings.run_dir}", change, "trainer.max_steps=9", "exact=false"
    )
    assert code == 1 and f"{change.replace('null', 'None')} cannot change within a run" in error
