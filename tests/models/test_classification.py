"""model=sentiment on texts of more than two classes."""

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from torch.nn import functional as F

from conftest import SMALL, ask
from lstmlab.checkpoint import load_model
from lstmlab.data import build_data
from lstmlab.data.sentiment import SentimentBatch, encode_reviews
from lstmlab.models.sentiment import Sentiment, draw_confusion
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train

WORDS = {
    "Sci/Tech": ["planet", "cell", "theory", "particle"],
    "business": ["shares", "profit", "bank", "merger"],
    "sports": ["goal", "match", "team", "league"],
}
CLASSES = list(WORDS)


@pytest.fixture
def small(tmp_path):
    rng = random.Random(0)
    labels = rng.choices(CLASSES, [1, 3, 6], k=300)
    texts = [" ".join(rng.choice([*WORDS[label], "the", "of", "said"]) for _ in range(9)) for label in labels]
    with (tmp_path / "news.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("headline", "topic"), *zip(texts, labels, strict=True)])
    return [
        *SMALL,
        "model=sentiment",
        "data=classes",
        f"data.path={tmp_path}/news.csv",
        "data.text=headline",
        "data.label=topic",
        "data.val_fraction=0.2",
        "data.test_fraction=0.2",
        "data.batch_size=16",
        f"data.cache={tmp_path}/cache",
        "optimizer.lr=0.01",
        "trainer.max_steps=20",
        "trainer.log_every_n_steps=1",
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_against_sklearn(config, small, weighted):
    settings = config(*small, *["model.class_weights=balanced"] * weighted)
    metrics = train(settings)
    model: Any = load_model(settings.run_dir)
    module = build_data(settings.data)
    module.setup()
    counts = np.array(model.info["label_counts"])
    assert counts.sum() == len(module.datasets["train"]) and len(set(counts)) == 3
    weights = counts.sum() / (3 * counts) if weighted else np.ones(3)
    for part in ("val", "test"):
        truth, rows = [], []
        for batch in getattr(module, f"{part}_dataloader")():
            with torch.no_grad():
                rows += model(batch.tokens, batch.lengths)[0].softmax(1).tolist()
            truth += batch.labels.tolist()
        p = np.array(rows)
        said = p.argmax(1)
        expected = {
            "accuracy": np.mean(said == truth),
            "macro_f1": f1_score(truth, said, average="macro"),
            "auroc": roc_auc_score(truth, p / p.sum(1, keepdims=True), multi_class="ovr"),
            "loss": np.mean(-np.log(p[range(len(truth)), truth]) * weights[truth]),
        }
        measured = {name: metrics[f"{part}/{name}"] for name in expected}
        assert measured == pytest.approx(expected, abs=1e-5)
    assert metrics["test/auroc"] > 0.9
    again = evaluate(ask(settings.run_dir, cache=settings.data.cache))
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-5)


@pytest.mark.parametrize("labels", [["a", "b"], CLASSES])
def test_class_weights(config, small, labels):
    """A text counts N / (C · N_c) times, whatever else is in its batch."""
    info = {"vocab_size": 50, "labels": labels, "label_counts": [1, 4, 5][: len(labels)]}
    torch.manual_seed(0)
    model = Sentiment(config(*small, "model.class_weights=balanced"), info).double().eval()
    tokens, lengths = torch.randint(4, 50, (4, 9)), torch.full((4,), 9)
    truth = torch.tensor([0, 1, 1, len(labels) - 1])
    batch = SentimentBatch(tokens, lengths, truth.float() if len(labels) == 2 else truth)
    loss, logits = model.loss(batch)
    p = model.probabilities(logits)
    torch.testing.assert_close(p.sum(1), torch.ones(4))
    counts = torch.tensor(info["label_counts"]).double()
    weights = counts.sum() / len(labels) / counts
    expected = (-p[range(4), truth].log() * weights[truth]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.targets(batch) is None and "weights" not in model.state_dict()


def test_of_two_classes_there_is_one_logit(config, small):
    """Of three there are three, and the loss is their cross-entropy."""
    tokens, lengths = torch.randint(4, 50, (4, 9)), torch.full((4,), 9)
    two = Sentiment(config(*small), {"vocab_size": 50, "labels": ["a", "b"]})
    assert two(tokens, lengths)[0].shape == (4,) and {*two.val_metrics} == {
        "val/accuracy",
        "val/auroc",
        "val/f1",
    }
    three = Sentiment(config(*small), {"vocab_size": 50, "labels": CLASSES}).eval()
    truth = torch.tensor([0, 1, 1, 2])
    batch = SentimentBatch(tokens, lengths, truth)
    loss, logits = three.loss(batch)
    assert logits.shape == (4, 3) and torch.equal(three.targets(batch), truth)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, F.cross_entropy(logits, truth))


def test_a_run_from_file_to_answer(config, small, command, tmp_path):
    """Examples and the confusion matrix, predict, analyze, export: by the commands alone."""
    code, out, error = command("train", *small, "trainer.max_steps=60", f"hydra.run.dir={tmp_path}/run")
    assert code == 0, error
    assert "news.csv: 180 rows to train, 60 rows to validate (split off), 60 rows to test (split off)" in out
    table = (tmp_path / "run/examples.md").read_text().splitlines()
    assert table[2] == "| text | prediction | p(prediction) | truth |"
    assert all(row.split(" | ")[1] in CLASSES for row in table[4:12])
    assert (tmp_path / "run/examples.png").stat().st_size > 1000

    code, out, _ = command("predict", f"ckpt={tmp_path}/run", "text=the team said goal")
    label, p, others = re.fullmatch(r"(.+), probability (\S+) \((.+)\)\n", out).groups()  # type: ignore[union-attr]
    ranked = [(label, p), *(other.rsplit(" ", 1) for other in others.split(", "))]
    shares = [float(share) for _, share in ranked]
    assert code == 0 and label == "sports" and {name for name, _ in ranked} == {*CLASSES}
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=2e-3)

    code, _, error = command("analyze", f"ckpt={tmp_path}/run", f"data.cache={tmp_path}/cache")
    assert code == 0, error
    report = (tmp_path / "run/analysis/validation/report.md").read_text()
    assert all(f"the text is {name}" in report for name in CLASSES)

    assert command("export", f"ckpt={tmp_path}/run")[0] == 0
    model: Any = load_model(f"{tmp_path}/run")
    session = onnxruntime.InferenceSession(f"{tmp_path}/run/export/model.onnx")
    info = json.loads(session.get_modelmeta().custom_metadata_map["info"])
    assert info["labels"] == CLASSES
    tokens, lengths = encode_reviews(model.info, ["profit of the bank", "goal"])
    [logits] = session.run(None, {"tokens": tokens.numpy(), "lengths": lengths.numpy()})
    with torch.no_grad():
        expected, _ = model(tokens, lengths)
    assert logits.shape == (2, 3) and np.abs(logits - expected.numpy()).max() < 1e-5


def test_the_confusion_matrix_is_of_the_whole_validation_part(config, small):
    settings = config(*small)
    train(settings)
    model: Any = load_model(settings.run_dir)
    module = build_data(settings.data)
    module.setup()
    truth, said = [], []
    model.on_validation_epoch_start()
    model.log = model.log_dict = lambda *_, **__: None  # there is no trainer
    for index, batch in enumerate(module.val_dataloader()):
        with torch.no_grad():
            model.validation_step(batch, index)
            said += model(batch.tokens, batch.lengths)[0].argmax(1).tolist()
        truth += batch.labels.tolist()
    counts = model.confusion.compute()
    assert counts.tolist() == confusion_matrix(truth, said).tolist()
    [axes] = draw_confusion(counts, CLASSES).axes
    assert [text.get_text() for text in axes.texts] == [f"{count}" for count in counts.flatten().tolist()]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == CLASSES
    many = draw_confusion(torch.eye(40), [f"{'long name ' * 5}{n}" for n in range(40)]).axes[0]
    assert not many.texts and len(many.get_yticklabels()[0].get_text()) == 20


def test_a_class_may_be_missing_in_validation(config, small, tmp_path, recwarn):
    lines = (tmp_path / "news.csv").read_text().splitlines()
    kept = [line for line in lines if not line.endswith("Sci/Tech")]
    (tmp_path / "val.csv").write_text("\n".join(kept[:40]) + "\n")
    metrics = train(config(*small, f"data.val={tmp_path}/val.csv"))
    assert 0 < metrics["val/auroc"] <= 1 and not [each for each in recwarn if "positive" in str(each.message)]


def test_an_empty_text_is_refused(config, small, command):
    settings = config(*small, "trainer.max_steps=1")
    train(settings)
    code, _, error = command("predict", f"ckpt={settings.run_dir}", "text= ")
    assert code == 1 and error == "error: text= is empty; give a text to classify\n"
    assert Path(settings.run_dir, "examples.md").exists()
