import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import Times, ask
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.data import build_data
from lstmlab.data.text import TextBatch
from lstmlab.models.charlm import CharLM
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train
from lstmlab.schema import TrainConfig

PLAIN = ["model.dropout=0", "cell.dropout=0"]


@pytest.fixture
def model(config, small):
    torch.manual_seed(0)
    return CharLM(config(*small, *PLAIN), {"vocabulary": "\ufffdabcdefgh"}).double().eval()


def rows(settings: TrainConfig, column: str) -> list[float]:
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_windows_with_carried_state_equal_one_long_text(model):
    ids = torch.randint(9, (2, 31))
    whole, _ = model(ids[:, :-1])
    expected = F.cross_entropy(whole.flatten(0, 1), ids[:, 1:].flatten())
    state, total = None, torch.tensor(0.0)
    for start in (0, 10, 20):
        batch = TextBatch(ids[:, start : start + 10], ids[:, start + 1 : start + 11])
        loss, state = model.loss(batch, state)
        total += loss / 3
    torch.testing.assert_close(total.double(), expected, atol=1e-6, rtol=0)


def test_dropout_before_and_after_the_stack(model):
    """Each is applied once; nn.LSTM computes the rest."""
    assert isinstance(model.dropout, torch.nn.Dropout)
    model.dropout = Times()
    ids = torch.randint(9, (2, 7))
    plain = torch.nn.LSTM(64, 8, 2, batch_first=True).double()
    plain.load_state_dict(model.cell.state_dict())
    expected = model.projection(2 * plain(2 * model.embedding(ids))[0])
    torch.testing.assert_close(model(ids)[0], expected)


@pytest.mark.parametrize("embedding_size", [8, 5])
def test_tied_weights(config, small, embedding_size):
    settings = config(*small, "model.tie_weights=true", f"model.embedding_size={embedding_size}")
    model = CharLM(settings, {"vocabulary": "\ufffdabc"})
    assert model.projection.weight is model.embedding.weight
    logits, _ = model(torch.tensor([[1, 2]]))
    assert logits.shape == (1, 2, 4)


def test_greedy_sampling_takes_the_most_probable_character(model):
    written = "abc"
    for _ in range(40):
        ids = torch.tensor([[model.vocabulary.index(c) for c in written]])
        logits = model(ids)[0][0, -1]
        logits[0] = -math.inf
        written += model.vocabulary[logits.argmax()]
    assert "".join(model.sample("abc", 40, temperature=0)) == written[3:]
    assert "".join(model.sample("abc", 40, top_k=1)) == written[3:]


def test_sampling_follows_the_probabilities(model):
    """2,000 first characters compared with softmax(logits / temperature), without UNKNOWN."""
    logits = model(torch.tensor([[1, 2]]))[0][0, -1] / 0.5
    logits[0] = -math.inf
    drawn = [next(model.sample("ab", 1, temperature=0.5, seed=seed)) for seed in range(2000)]
    counts = torch.tensor([drawn.count(c) for c in model.vocabulary]) / 2000
    torch.testing.assert_close(counts.double(), logits.softmax(-1), atol=0.04, rtol=0)


def test_top_k_draws_from_the_most_probable(model):
    """top_k=3 does not count UNKNOWN, though it is the most probable here: 2,000 draws."""
    with torch.no_grad():
        model.projection.bias[0] += 100
    logits = model(torch.tensor([[1, 2]]))[0][0, -1]
    best = logits[1:].topk(3).indices + 1
    drawn = [next(model.sample("ab", 1, top_k=3, seed=seed)) for seed in range(2000)]
    assert set(drawn) == {model.vocabulary[i] for i in best}
    shares = torch.tensor([drawn.count(model.vocabulary[i]) / 2000 for i in best])
    torch.testing.assert_close(shares.double(), logits[best].softmax(0), atol=0.04, rtol=0)


def test_rows_are_continued_independently(model):
    """Each row has its own state and its own draws."""
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 3]])
    written = torch.cat(list(model.sample_ids(prompts, 40, temperature=0)), 1)
    alone = [torch.cat(list(model.sample_ids(row[None], 40, temperature=0)), 1)[0] for row in prompts]
    assert written.equal(torch.stack(alone)) and not written[0].equal(written[1])
    drawn = torch.cat(list(model.sample_ids(prompts, 40, temperature=0.5)), 1)
    assert drawn.shape == (3, 40) and not drawn[0].equal(drawn[2]) and 0 not in drawn


def test_sampling_has_a_seed_and_a_length(model):
    texts = ["".join(model.sample("a", 50, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 50 and "\ufffd" not in texts[0]
    with pytest.raises(ValueError, match="'x'"):
        list(model.sample("ax", 5))
    with pytest.raises(ValueError, match="empty"):
        list(model.sample("", 5))


@pytest.mark.parametrize("kind", KINDS)
def test_backends_have_the_same_loss_curve_and_open_each_others_checkpoints(config, small, kind):
    """12 steps without dropout: the losses agree to 1e-5, and so does the validation of one checkpoint."""
    curves = {}
    for backend in KINDS[kind].backends:
        overrides = [f"cell={backend}", f"cell.kind={kind}", "trainer.log_every_n_steps=1"]
        settings = config(*small, *PLAIN, *overrides, "trainer.max_steps=12")
        metrics = train(settings)
        curves[backend] = rows(settings, "train/loss")
        assert len(curves[backend]) == 12
        torch.testing.assert_close(curves[backend], curves["scratch"], atol=1e-5, rtol=0)
        other = "fused" if backend == "scratch" else "scratch"
        again = evaluate(ask(settings.run_dir, other, cache=settings.data.cache))
        for name in ("val/loss_stateful", "val/loss_cold", "val/perplexity"):
            assert again[name] == pytest.approx(metrics[name], rel=1e-5)


def test_the_state_is_reset_at_the_start_of_an_epoch(config, small):
    """With frozen weights the second epoch repeats the first exactly, from the start of each stream."""
    settings = config(
        *small,
        *PLAIN,
        "model.reset_probability=0",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "optimizer=sgd",
        "optimizer.lr=1e-30",
    )
    train(settings)
    losses = rows(settings, "train/loss")
    half = len(losses) // 2
    assert losses[:half] == losses[half:] and len(set(losses)) > half // 2
    model = load_model(settings.run_dir + "/checkpoints/last.ckpt")
    module = build_data(settings.data)
    module.prepare_data()
    module.setup("fit")
    ids = torch.from_numpy(np.fromfile(module.encoded, module.meta["dtype"]).astype("int64"))[:5400]
    length = (5400 - 1) // 4
    with torch.no_grad():
        logits = torch.cat([model(ids[None, k * length : (k + 1) * length])[0] for k in range(4)])
        targets = torch.stack([ids[k * length + 1 : (k + 1) * length + 1] for k in range(4)])
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (4, length)
    expected = [each[:, t : t + 20].mean().item() for t in range(0, length, 20)]
    assert losses[:half] == pytest.approx(expected, abs=1e-5)


def test_some_streams_start_again_at_each_step(config, small, monkeypatch):
    """A stream that is reset is read from a zero state, and any other from the state that it had."""
    model = CharLM(config(*small, *PLAIN, "model.reset_probability=0.4"), {"vocabulary": "\ufffdabcdefgh"})
    monkeypatch.setattr(model.double(), "log_step", lambda *_, **__: None)
    windows = torch.randint(9, (2, 8, 6), generator=torch.Generator().manual_seed(0))
    first, second = (TextBatch(window[:, :-1], window[:, 1:]) for window in windows)
    torch.manual_seed(0)
    model.training_step(first, 0)
    found = model.training_step(second, 1)
    starts = torch.rand(8, 1, generator=torch.Generator().manual_seed(0)).flatten() < 0.4
    past = model.loss(first, None)[1]
    expected = []
    for row, start in enumerate(starts):
        state = None if start else tuple(member[:, row : row + 1] for member in past)
        expected.append(model.loss(TextBatch(*(member[row : row + 1] for member in second)), state)[0])
    assert 0 < starts.sum() < 8
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_validation_losses_equal_those_of_one_forward_pass(config, small, text_file):
    """On a text of 66 cold windows, which make two batches, and some more characters."""
    text_file.write_text(text_file.read_text(encoding="utf-8") * 3, encoding="utf-8")
    sizes = ["data.val_fraction=0.95", "data.max_val_chars=17000", "trainer.log_every_n_steps=1"]
    settings = config(*small, *sizes, "trainer.max_steps=5", "cell.num_layers=2")
    metrics = train(settings)
    model = load_model(settings.run_dir + "/checkpoints/best.ckpt")
    module = build_data(settings.data)
    module.prepare_data()
    module.setup("fit")
    ids = torch.from_numpy(module.val_sets[1].tokens.astype("int64"))
    assert len(ids) == 17_000
    with torch.no_grad():
        stateful = F.cross_entropy(model(ids[None, :-1])[0][0], ids[1:])
        windows = ids[:-1].unfold(0, 256, 256)  # (66, 256), each from a zero state
        cold = F.cross_entropy(model(windows)[0].flatten(0, 1), ids[1 : 1 + windows.numel()])
    assert len(windows) == 66 and abs(stateful - cold) > 1e-4
    assert metrics["val/loss_stateful"] == pytest.approx(stateful.item(), abs=1e-6)
    assert metrics["val/loss_cold"] == pytest.approx(cold.item(), abs=1e-6)
    assert metrics["val/perplexity"] == pytest.approx(stateful.exp().item(), rel=1e-5)
    assert metrics["val/bits_per_character"] == pytest.approx(stateful.item() / math.log(2), rel=1e-5)


def test_predict_continues_a_prompt(config, small, command, text_file, capsys):
    settings = config(*small, "trainer.max_steps=5")
    train(settings)
    validation = text_file.read_text(encoding="utf-8")[5400 : 5400 + 256]
    # Training ends with a sample that continues this line
    start = "at temperature 0.8:\n\n" + validation.rpartition("\n")[2]
    printed = capsys.readouterr().out
    after = printed.index(start) + len(start) + 500
    assert printed[after:].startswith(f"\n\n{settings.run_dir}: metrics.csv, ")
    text_file.unlink()
    ckpt = f"ckpt={settings.run_dir}/checkpoints/best.ckpt"
    code, out, _ = command("predict", ckpt, "text=line 1: é", "length=30", "temperature=0")
    assert code == 0 and out.startswith("line 1: é") and len(out) == 9 + 30 + 1
    drawn = [command("predict", ckpt, "text=line", "top_k=9", f"seed={seed}")[1] for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    code, _, error = command("predict", ckpt, "text=Line?")
    assert code == 1 and "'?'" in error
    code, _, error = command("predict", ckpt, "text=line", "beam_size=3")
    assert code == 1 and "beam_size" in error and "temperature" in error
