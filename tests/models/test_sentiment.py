import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from conftest import SMALL, Times, ask
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.data import build_data
from lstmlab.data.sentiment import SentimentBatch, encode_reviews
from lstmlab.models.sentiment import Sentiment
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train

POOLINGS = ["last", "max", "mean", "attention"]


@pytest.fixture
def small(tmp_path):
    return [
        *SMALL,
        "model=sentiment",
        "data=reviews",
        "data.train_size=80",
        "data.val_size=30",
        "data.test_size=40",
        "data.batch_size=16",
        f"data.cache={tmp_path}/cache",
        "trainer.max_steps=3",
        "trainer.log_every_n_steps=1",
    ]


@pytest.fixture
def settings(config, small):
    """A trained run, with attention."""
    trained = config(*small, "model.pooling=attention")
    train(trained)
    return trained


def plain_logit(model: Sentiment, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One review without padding, its pooling as defined. Returns the logit and the attention (T,)."""
    with torch.no_grad():
        output, _ = model.cell(model.embedding(row)[None])
        steps, H, weights = output[0], model.cell.hidden_size, None
        if model.pooling == "last":
            pooled = torch.cat([steps[-1, :H], steps[0, H:]])
        elif model.pooling == "max":
            pooled = torch.stack([steps[:, k].max() for k in range(steps.shape[1])])
        elif model.pooling == "mean":
            pooled = sum(steps) / len(steps)
        else:
            W, b, v = (model.score.get_parameter(name) for name in ("0.weight", "0.bias", "2.weight"))
            scores = [v[0] @ (W @ h + b).tanh() for h in steps]
            weights = torch.stack(scores).exp() / sum(score.exp() for score in scores)
            pooled = sum(w * h for w, h in zip(weights, steps, strict=True))
        return model.projection.weight[0] @ pooled + model.projection.bias[0], weights


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("backend", "layers", "bidirectional"),
    [
        ("torch", 1, True),
        ("torch", 2, False),
        ("scratch", 3, True),
        ("fused", 2, True),
        ("fused", 1, False),
    ],
)
def test_a_padded_batch_is_its_rows(config, small, pooling, backend, layers, bidirectional):
    """Logits, loss and attention in float64, whatever stands on the padding."""
    overrides = [f"cell={backend}", f"cell.num_layers={layers}", f"cell.bidirectional={bidirectional}"]
    torch.manual_seed(0)
    config = config(*small, *overrides, f"model.pooling={pooling}")
    model = Sentiment(config, {"vocab_size": 50}).double().eval()
    lengths = torch.tensor([5, 1, 12, 3])
    tokens = torch.randint(4, 50, (4, 12))  # not 0 behind the ends
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    logits, weights = model(tokens, lengths)
    rows = [plain_logit(model, row[:n]) for row, n in zip(tokens, lengths, strict=True)]
    torch.testing.assert_close(logits, torch.stack([logit for logit, _ in rows]))
    losses = [-F.logsigmoid(z if y else -z) for (z, _), y in zip(rows, labels, strict=True)]
    expected = torch.stack(losses).mean()
    loss, _ = model.loss(SentimentBatch(tokens, lengths, labels))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    if pooling != "attention":
        assert weights is None
        return
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.double))
    for row, (_, alone), n in zip(weights, rows, lengths, strict=True):
        torch.testing.assert_close(row[:n], alone)
        assert not row[n:].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_dropout_is_before_the_stack_and_behind_the_pooling(config, small, pooling):
    torch.manual_seed(0)
    model = Sentiment(config(*small, f"model.pooling={pooling}"), {"vocab_size": 50}).double().eval()
    assert isinstance(model.dropout, nn.Dropout)
    model.dropout = Times()
    tokens = torch.randint(4, 50, (1, 9))
    logits, _ = model(tokens, torch.tensor([9]))
    with torch.no_grad():
        model.embedding.weight *= 2
        model.projection.weight *= 2
    torch.testing.assert_close(logits, plain_logit(model, tokens[0])[0][None])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_metrics_against_sklearn(config, small, pooling):
    """Of the best checkpoint, on validation and on test."""
    settings = config(*small, f"model.pooling={pooling}", "trainer.max_steps=20", "optimizer.lr=0.01")
    metrics = train(settings)
    model = load_model(settings.run_dir + "/checkpoints/best.ckpt")
    module = build_data(settings.data)
    module.prepare_data()
    module.setup()
    for part in ("val", "test"):
        truth, p = [], []
        for batch in getattr(module, f"{part}_dataloader")():
            with torch.no_grad():
                p += model(batch.tokens, batch.lengths)[0].sigmoid().tolist()
            truth += batch.labels.tolist()
        assert len(truth) == {"val": 30, "test": 40}[part]
        said = [float(each > 0.5) for each in p]
        expected = {
            "accuracy": sum(a == b for a, b in zip(said, truth, strict=True)) / len(truth),
            "f1": f1_score(truth, said),
            "auroc": roc_auc_score(truth, p),
            "loss": F.binary_cross_entropy(torch.tensor(p), torch.tensor(truth)).item(),
        }
        measured = {name: metrics[f"{part}/{name}"] for name in expected}
        assert measured == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru", "minlstm", "slstm"])
def test_the_backends_agree_on_a_checkpoint(config, small, kind):
    settings = config(*small, f"cell.kind={kind}")
    metrics = train(settings)
    for backend in KINDS[kind].backends:
        again = evaluate(ask(settings.run_dir, backend, cache=settings.data.cache))
        assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-5)
        assert "test/auroc" in again and "val/f1" in again


def test_word_dropout_leaves_out_a_share_of_the_words(config, small):
    settings = config(*small, "model.word_dropout=0.3", "model.dropout=0")
    module = build_data(settings.data, 0)
    module.prepare_data()
    module.setup("fit")
    torch.manual_seed(0)
    model = Sentiment(settings, module.info | {"vocab_size": 5000})
    tokens, lengths = torch.arange(1, 4001).view(40, 100), torch.full((40,), 100)
    for training, share in ((True, 0.7), (False, 1.0)):
        model.train(training).zero_grad()
        model(tokens, lengths)[0].sum().backward()
        gradient = model.embedding.weight.grad
        assert gradient is not None
        seen = (gradient[1:4001] != 0).any(1).float().mean()
        assert abs(seen - share) < 0.03  # 4 standard deviations


def test_adversarial_loss(config, small):
    """The mean of the loss and of that on embeddings ε along each review's own gradient, in float64."""
    settings = config(*small, "model.dropout=0", "model.adversarial=0.5", "cell=fused")
    torch.manual_seed(0)
    model = Sentiment(settings, {"vocab_size": 50}).double()
    model.log_step = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    tokens, lengths = torch.randint(4, 50, (4, 9)), torch.tensor([9, 2, 5, 7])
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])

    def loss(vectors, rows):
        logits, _ = model.classify(vectors, lengths[rows])
        return F.binary_cross_entropy_with_logits(logits, labels[rows].double())

    expected = 0.0
    for row, n in enumerate(lengths):
        one = slice(row, row + 1)
        x = model.embedding(tokens[one]).detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(x, one), x)
        assert not g[:, n:].any()
        expected += (loss(x, one).item() + loss(x + 0.5 * g / g.norm(), one).item()) / 2 / len(lengths)
    assert model.training_step(SentimentBatch(tokens, lengths, labels), 0).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_the_losses_of_a_training(config, small):
    """Of weights that stay as they are, review by review; the last batch is short."""
    frozen = ["optimizer=sgd", "optimizer.lr=1e-30", "model.dropout=0", "data.batch_size=32", "seed=3"]
    settings = config(*small, *frozen)
    train(settings)
    model: Any = load_model(settings.run_dir + "/checkpoints/last.ckpt")
    module = build_data(settings.data, 3)
    module.prepare_data()
    module.setup("fit")
    expected = []
    for tokens, lengths, labels in module.train_dataloader():
        logits = [plain_logit(model, row[:n])[0] for row, n in zip(tokens, lengths, strict=True)]
        losses = [-F.logsigmoid(z if y else -z).item() for z, y in zip(logits, labels, strict=True)]
        expected.append(sum(losses) / len(losses))
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        found = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert found == pytest.approx(expected, abs=1e-6) and len(found) == 3


def test_one_batch_is_learnt_by_heart(config, small):
    overrides = ["debug=overfit", "trainer.max_epochs=60", "data.batch_size=64"]
    settings = config(*small, *overrides, "model.dropout=0", "optimizer.lr=0.02", "trainer.max_steps=null")
    train(settings)
    with (Path(settings.run_dir) / "metrics.csv").open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 60 and losses[-1] < 0.05


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_attention_takes_words_from_the_review(config, small, command, tokenizer):
    settings = config(*small, "model.pooling=attention", f"data.tokenizer={tokenizer}")
    train(settings)
    ckpt = settings.run_dir + "/checkpoints/best.ckpt"
    text = "Well, it isn't <b>boring</b> at all!"
    code, out, _ = command("predict", f"ckpt={ckpt}", f"text={text}")
    first, *lines = out.splitlines()
    assert code == 0
    weights = [float(line.split(maxsplit=1)[0]) for line in lines]
    assert weights == sorted(weights, reverse=True) and sum(weights) < 1.01
    words = [line.split(maxsplit=1)[1] for line in lines]
    assert all(word in ("<unk>", "␣") or word in text.lower() for word in words) and "b" not in words
    model = load_model(ckpt)
    tokens, lengths = encode_reviews(model.info, [text])
    with torch.no_grad():
        logits, expected = model(tokens, lengths)
    p = logits.sigmoid().item()
    assert first == f"{'positive' if p > 0.5 else 'negative'}, probability {max(p, 1 - p):.3f}"
    assert weights == pytest.approx(
        expected[0].sort(descending=True).values[: len(weights)].tolist(), abs=6e-4
    )


def test_any_text_has_a_result_or_one_sentence(settings, command, tmp_path):
    ckpt = f"ckpt={settings.run_dir}/checkpoints/best.ckpt"
    for text, said in {
        "电影": "knows none of these words",
        "xyzzy plugh": "knows none of these words",
        "boring " * 10_000: "probability",
        "Not bad, isn't it?": "probability",
        "null": "probability",
    }.items():
        code, out, _ = command("predict", ckpt, f"text={text}")
        assert code == 0 and said in out
    for text in ("", "  ", "<br />"):
        code, _, error = command("predict", ckpt, f"text={text}")
        assert code == 1 and "text= is empty" in error and error.count("\n") == 1


def test_files_that_are_not_as_they_should_be(command, tmp_path):
    """One sentence and exit code 1; one review in each split is enough, if one more is held out."""

    def attempt(**columns):
        for split in ("train", "test"):
            pq.write_table(pa.table(columns), tmp_path / f"{split}-0.parquet")
        return command(
            "train", "model=sentiment", "data.val_size=1", "debug=one_batch", *SMALL,
            f"data.path={tmp_path}", f"data.cache={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run",
        )  # fmt: skip

    wrong: list[tuple[dict[str, list], str]] = [
        ({"text": ["good"]}, "no column label"),
        ({"text": ["good"], "label": [1]}, "data.val_size=1"),
        ({"text": ["good"], "label": ["1"]}, "must be of type int"),
        ({"text": [], "label": []}, "no rows"),
    ]
    for columns, said in wrong:
        code, _, error = attempt(**columns)
        assert code == 1 and said in error and error.count("\n") == 1
    (tmp_path / "train-0.parquet").write_bytes((tmp_path / "test-0.parquet").read_bytes()[:50])
    code, _, error = command("train", "model=sentiment", f"data.path={tmp_path}")
    assert code == 1 and "cannot read" in error and error.count("\n") == 1


def test_examples(settings):
    text = (Path(settings.run_dir) / "examples.md").read_text()
    assert text.startswith("## Step 3\n\n| text | prediction | p(positive) | truth |\n")
    rows = [line.strip("| ").split(" | ") for line in text.strip().splitlines()[4:]]
    assert len(rows) == 8
    module = build_data(settings.data)
    module.setup()
    known = {
        module.tokenizer.decode(module.tokenizer.encode(text).ids): label
        for text, label in zip(*module.read()["val"], strict=True)
    }
    for review, prediction, p, truth in rows:
        assert prediction == ("positive" if float(p) > 0.5 else "negative")
        assert truth == ("positive" if known[review] else "negative")
