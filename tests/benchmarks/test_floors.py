import json
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lstmlab.benchmarks.floors import estimate_discounts, log_count_ratio, predict_ngrams


def text(length: int, V: int, seed: int) -> np.ndarray:
    """Ids, some frequent and some rare, so that counts of every size occur."""
    return np.random.default_rng(seed).geometric(0.4, length).clip(max=V).astype(np.uint8) - 1


def reference_discounts(counts: Counter) -> list[float]:
    """Chen & Goodman 1999, equation 26."""
    n1, n2, n3, n4 = (sum(count == k for count in counts.values()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return [0, 0.5, 1, 1.5]
    Y = n1 / (n1 + 2 * n2)
    D = [1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3]
    return [0, *D] if min(D) > 0 else [0, 0.5, 1, 1.5]


def reference(train: str, V: int, n: int):
    """p(w | h) of the n-gram model, written as in the equations, from dictionaries."""
    occurring = {k: Counter(train[i : i + k] for i in range(len(train) - k + 1)) for k in range(1, n + 1)}
    counts = {n: occurring[n]}
    for k in range(1, n):
        counts[k] = Counter(gram[1:] for gram in occurring[k + 1])

    D = {k: reference_discounts(found) for k, found in counts.items()}

    def p(w: str, h: str) -> float:
        k = len(h) + 1
        lower = p(w, h[1:]) if h else 1 / V
        following = {gram: c for gram, c in counts[k].items() if gram[:-1] == h}
        total = sum(following.values())
        if total == 0:
            return lower
        freed = sum(D[k][min(c, 3)] for c in following.values())
        c = following.get(h + w, 0)
        return (c - D[k][min(c, 3)] + freed * lower) / total

    return p


def as_string(ids: np.ndarray) -> str:
    return "".join(chr(97 + i) for i in ids)


def test_against_the_equations():
    V, orders = 7, 5
    train, validation = text(400, V, 0), text(80, V, 1)
    validation[30:33] = V - 1  # never trained on
    train[train == V - 1] = 0
    found = list(predict_ngrams(train, validation, V, orders))
    assert len(found) == orders
    characters = as_string(validation)
    models = [reference(as_string(train), V, n) for n in range(1, orders + 1)]
    for n, p in enumerate(found, 1):
        order = [min(n, t + 1) for t in range(len(characters))]  # limited by how many characters precede
        expected = [models[k - 1](characters[t], characters[t - k + 1 : t]) for t, k in enumerate(order)]
        np.testing.assert_allclose(p, expected, rtol=1e-12)


@pytest.mark.parametrize("length", [50, 2000])
def test_probabilities_sum_to_one(length):
    """After a context that is frequent, one that ends the training text, and one that is unknown."""
    V = 6
    train = text(length, V - 1, 2)
    contexts = [np.zeros(4, np.uint8), train[-4:], np.full(4, V - 1, np.uint8)]
    for context in contexts:
        last = [
            [p[-1] for p in predict_ngrams(train, np.append(context, w).astype(np.uint8), V, 5)]
            for w in range(V)
        ]
        assert np.min(last) > 0
        np.testing.assert_allclose(np.sum(last, 0), np.ones(5), rtol=1e-12)


def test_discounts():
    counts = np.repeat([1, 2, 3, 4, 9], [60, 20, 9, 5, 30])  # Y = 60 / 100
    np.testing.assert_allclose(
        estimate_discounts(counts), [0, 0.6, 2 - 3 * 0.6 * 9 / 20, 3 - 4 * 0.6 * 5 / 9]
    )
    for few in ([1, 2, 4], np.repeat([1, 2, 3, 4], [5, 1, 1, 9])):  # no 3; D(3) < 0
        np.testing.assert_equal(estimate_discounts(np.array(few)), [0, 0.5, 1, 1.5])


def test_text(command, text_file, tmp_path):
    arguments = ["suite=floors", "data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}"]
    code, out, err = command("bench", *arguments, "hydra.run.dir=bench")
    assert code == 0 and "10-grams: " in err
    rows = json.loads((tmp_path / "bench/bench.json").read_text())["rows"]
    assert [row["model"] for row in rows] == [f"{n}-grams" for n in range(1, 11)]
    assert f"| 5-grams | {rows[4]['val/loss_stateful']:.5g} | {rows[4]['val/loss_cold']:.5g} |" in out

    # By the equations, over 600 characters, the last 87 of which are in no cold window
    characters = text_file.read_text(encoding="utf-8")
    train, validation = characters[:5400], characters[5400:]
    V = len(set(train)) + 1
    models = [reference(train, V, n) for n in (1, 2, 3)]
    places = range(1, len(validation))
    stateful = [-np.log(models[min(t, 2)](validation[t], validation[max(0, t - 2) : t])) for t in places]
    assert rows[2]["val/loss_stateful"] == pytest.approx(np.mean(stateful), rel=1e-9)
    cold = [
        -np.log(models[1](validation[t], validation[t - 1])) if (t - 1) % 256 == 0 else stateful[t - 1]
        for t in places[:512]
    ]
    assert rows[2]["val/loss_cold"] == pytest.approx(np.mean(cold), rel=1e-9)


def test_shakespeare(command, real_data, tmp_path):
    path = f"data.path={real_data / 'shakespeare'}"
    command(
        "bench", "suite=floors", "data=shakespeare", path, f"data.cache={tmp_path}", "hydra.run.dir=bench"
    )
    rows = json.loads((tmp_path / "bench/bench.json").read_text())["rows"]
    assert min(row["val/loss_stateful"] for row in rows) == pytest.approx(1.5165, abs=1e-3)


def test_log_count_ratio():
    X, y = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0]]), np.array([1, 0, 0])
    p, q = np.array([2, 1, 2]) / 5, np.array([2, 3, 1]) / 6
    np.testing.assert_allclose(log_count_ratio(X, y), np.log(p / q))


@pytest.fixture
def reviews(tmp_path) -> list[str]:
    """Reviews in which no single word tells the label, but a pair of words does."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = [
            (first, second, *rng.choice(99, 3)) for first in (0, 1) for second in (0, 1) for _ in range(50)
        ]
        texts = [
            f"No {a} {b}, {('Not', 'very')[first]} {('bad', 'GOOD')[second]}!<br />And {c}"
            for first, second, a, b, c in rows
        ]
        labels = [int(first == second) for first, second, *_ in rows]
        pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / f"{split}-0.parquet")
    return ["suite=floors", "data=imdb", f"data.path={tmp_path}", "data.val_size=60"]


def test_reviews(command, reviews, tmp_path):
    code, out, err = command("bench", *reviews, "hydra.run.dir=bench")
    assert code == 0 and "words and bigrams: 100.00%" in err
    rows = json.loads((tmp_path / "bench/bench.json").read_text())["rows"]
    found = {row["model"]: (row["val/accuracy"], row["test/accuracy"]) for row in rows}
    assert [name for name, accuracy in found.items() if accuracy == (1, 1)] == [
        "words and bigrams",
        "words and bigrams, weighted by naive Bayes",
    ]
    assert max(found["words"]) < 0.7 and max(found["words, weighted by naive Bayes"]) < 0.7
    assert "| words and bigrams | 0.01 | 1 | 1 |" in out


def test_scikit_learn_is_missing(command, reviews, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    code, _, err = command("bench", *reviews)
    assert code == 1 and "suite=floors on reviews needs scikit-learn; pip install -e '.[dev]' (" in err
