import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import SMALL, ask
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.data import build_data
from lstmlab.models.copytask import CopyTask
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train
from lstmlab.schema import TrainConfig

TINY = [
    *SMALL,
    "model=copytask",
    "data.length=3",
    "data.delay=4",
    "data.batch_size=16",
    "data.val_size=20",
    "data.test_size=20",
    "trainer.max_steps=3",
]


def build(settings: TrainConfig) -> tuple[CopyTask, Any]:
    torch.manual_seed(0)
    module = build_data(settings.data)
    return CopyTask(settings, module.info).double().eval(), module


@pytest.mark.parametrize("bidirectional", [False, True])
def test_metrics_match_their_definition(config, bidirectional):
    """Computed for one sequence and one symbol at a time, from the outputs of the last `length` steps."""
    model, module = build(config(*TINY, "data.symbols=3", f"cell.bidirectional={bidirectional}"))
    batch = next(iter(module.val_dataloader()))
    losses, right = [], []
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        shown = torch.zeros(1, len(tokens), 5, dtype=torch.double)
        shown[0, torch.arange(len(tokens)), tokens] = 1
        output, _ = model.cell(shown)
        for k, target in enumerate(targets):
            p = model.projection(output[0, 3 + 4 + 1 + k]).softmax(0)
            losses.append(-p[target].log().item())
            right.append(p.argmax().item() == target.item())
    measured = {name: value.item() for name, value in model.compute_metrics(batch).items()}
    whole = [all(right[i : i + 3]) for i in range(0, len(right), 3)]
    assert measured == pytest.approx(
        {
            "loss": sum(losses) / len(losses),
            "loss_over_chance": sum(losses) / len(losses) / math.log(3),
            "symbol_accuracy": sum(right) / len(right),
            "sequence_accuracy": sum(whole) / len(whole),
        },
        abs=1e-6,
    )


def test_metrics_are_those_of_the_best_checkpoint_over_all_sequences(config):
    """The best checkpoint here is the first, with the largest loss. Batches of 16 and 4 count by sequence."""
    best = ["model.monitor_mode=max", "optimizer.lr=0.05", "trainer.max_steps=20", "data.test_delay=[4,6]"]
    settings = config(*TINY, *best, "trainer.val_check_interval=10", "callbacks.early_stopping=null")
    metrics = train(settings)
    states = [
        torch.load(f"{settings.run_dir}/checkpoints/{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    ]
    assert states == [10, 20]
    model: Any = load_model(f"{settings.run_dir}/checkpoints/best.ckpt")
    module = build_data(settings.data)
    for part, loader, suffix, delay in [
        ("val", module.val_dataloader(), "", 4),
        ("test", module.test_dataloader(), "", 4),
        ("test", module.test_dataloader(), "_delay6", 6),
    ]:
        losses, right, whole = [], [], []
        for batch in loader:
            if batch.tokens.shape[1] == 2 * 3 + delay + 1:
                for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
                    with torch.no_grad():
                        log_p = model(tokens[None])[0].log_softmax(1)
                    losses += [-log_p[k, target].item() for k, target in enumerate(targets)]
                    right += (log_p.argmax(1) == targets).tolist()
                    whole.append(all(right[-3:]))
        assert len(whole) == 20
        assert metrics[f"{part}/loss{suffix}"] == pytest.approx(np.mean(losses), abs=1e-6)
        assert metrics[f"{part}/symbol_accuracy{suffix}"] == pytest.approx(np.mean(right))
        assert metrics[f"{part}/sequence_accuracy{suffix}"] == pytest.approx(np.mean(whole))


def test_a_short_memory_is_learnt(config):
    """Chance is 1 in 2 for a symbol, 1 in 8 for a sequence."""
    metrics = train(
        config(
            *TINY,
            "cell.hidden_size=32",
            "optimizer.lr=0.02",
            "trainer.max_steps=150",
            "data.train_batches=150",
        )
    )
    assert metrics["val/symbol_accuracy"] > 0.8 and metrics["test/sequence_accuracy"] > 0.6
    assert metrics["test/loss_over_chance"] == pytest.approx(metrics["test/loss"] / math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("delay", "test_delay", "suffixes"),
    [
        (4, "null", [""]),
        (4, "[4,9]", ["", "_delay9"]),
        (4, "9", ["_delay9"]),
        ("[2,6]", "null", [""]),
        ("[2,6]", "[4,9]", ["_delay4", "_delay9"]),
    ],
)
def test_metrics_are_named_after_their_delay(config, delay, test_delay, suffixes):
    metrics = train(config(*TINY, f"data.delay={delay}", f"data.test_delay={test_delay}"))
    names = {name for name in metrics if name.startswith("test/sequence_accuracy")}
    assert names == {f"test/sequence_accuracy{suffix}" for suffix in suffixes}


@pytest.mark.parametrize("kind", ["lstm", "rnn", "mogrifier", "mingru"])
def test_the_backends_agree_on_a_checkpoint(config, kind):
    settings = config(*TINY, "data.test_delay=[4,9]", f"cell.kind={kind}")
    metrics = train(settings)
    for backend in KINDS[kind].backends:
        again = evaluate(ask(settings.run_dir, backend))
        assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-5)


def test_evaluation_at_other_delays(config):
    settings = config(*TINY)
    metrics = train(settings)
    again = evaluate(ask(settings.run_dir, test_delay=[4, 7]))
    assert again["test/loss"] == pytest.approx(metrics["test/loss"], abs=1e-6)
    other = train(config(*TINY, "data.test_delay=7"))
    assert again["test/loss_delay7"] == pytest.approx(other["test/loss_delay7"], abs=1e-6)
    with pytest.raises(ValueError, match=r"data.path=x: data=copy has no such key"):
        evaluate(ask(settings.run_dir, path="x"))


def test_chrono_takes_its_steps_from_the_task(config):
    settings = config(*TINY, "cell.init=chrono", "data.delay=[2,40]", "cell.hidden_size=500")
    model, _ = build(settings)
    forget = model.cell.get_parameter("bias_ih_l0").chunk(4)[1]
    assert math.log(45) < forget.max() < math.log(3 + 40 + 1 + 3 - 1)
    assert forget.min() > 0
    model, _ = build(config(*TINY, "cell.init=chrono", "cell.chrono_steps=9", "cell.hidden_size=500"))
    assert math.log(7.5) < model.cell.get_parameter("bias_ih_l0").chunk(4)[1].max() < math.log(8)


@pytest.mark.parametrize(
    ("symbols", "text", "wrong", "message"),
    [
        (2, "011", "012", "'2', but this model reads 0, 1"),
        (2, " 0 1 1", "0110", "holds 4 symbols, but this model remembers 3"),
        (2, "101", "", "text= is empty, but this model reads 0, 1"),
        (12, "11 0 7", "11 0 12", "'12', but this model reads 0, 1, …, 11"),
        (12, "11 0 7", "电影", "'电影'"),
    ],
)
def test_predict_recalls_symbols(config, command, symbols, text, wrong, message):
    settings = config(*TINY, f"data.symbols={symbols}")
    train(settings)
    ckpt = f"{settings.run_dir}/checkpoints/best.ckpt"
    code, out, _ = command("predict", f"ckpt={ckpt}", f"text={text}")
    assert code == 0 and "symbols correct after 4 steps" in out

    shown = [int(piece) for piece in (text.split() if symbols > 10 else text.replace(" ", ""))]
    tokens = [*shown, *[symbols] * 4, symbols + 1, *[symbols] * 3]
    with torch.no_grad():
        recalled = load_model(ckpt)(torch.tensor([tokens]))[0].argmax(1).tolist()
    first, second = out.splitlines()
    assert first.split() == [(" " if symbols > 10 else "").join(map(str, recalled))] or symbols > 10
    assert second.startswith(f"{sum(a == b for a, b in zip(recalled, shown, strict=True))} of 3")

    code, _, error = command("predict", f"ckpt={ckpt}", f"text={wrong}")
    assert code == 1 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.delay=-1", "data.delay=-1"),
        ("data.delay=[5,3]", "data.delay=[5, 3]"),
        ("data.symbols=1", "data.symbols=1"),
        ("data.test_delay=far", "data.test_delay=far"),
        ("data=stdlib", "data=stdlib does not fit model=copytask"),
    ],
)
def test_invalid_settings_are_refused(command, override, message):
    code, _, error = command("train", "model=copytask", override)
    assert code == 1 and message in error and error.count("\n") == 1


def test_examples_are_written(config, capsys):
    settings = config(*TINY, "data.batch_size=8")
    train(settings)
    text = (Path(settings.run_dir) / "examples.md").read_text()
    assert text.startswith("## Step 3\n\n| prediction | truth |\n| --- | --- |\n")
    assert len(text.strip().splitlines()) == 4 + 8
    assert "| prediction | truth |" in capsys.readouterr().out
