"""Baselines without a neural network, on the same data and split: a network should do better.

Text: character n-grams with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999). Reviews: a
linear classifier of the words and bigrams that occur, weighted by naive Bayes (Wang & Manning 2012).
"""

import sys
from collections.abc import Iterator

import numpy as np

from lstmlab.benchmarks.timing import write_results
from lstmlab.data import build_data
from lstmlab.data.sentiment import SentimentData, clean
from lstmlab.data.text import COLD_WINDOW, ColdWindows, TextData
from lstmlab.data.tokenization import WORD
from lstmlab.schema import TrainConfig
from lstmlab.tables import markdown

ORDERS = 10
INVERSE_REGULARISATION = (0.01, 0.1, 1, 10)  # the best on the validation part is taken


def measure_floors(config: TrainConfig) -> str:
    """Write bench.json into the run's folder. Returns the table in Markdown.

    Raises the errors of the data, and ValueError if scikit-learn is needed and not installed.
    """
    module = build_data(config.data)
    if isinstance(module, TextData):
        module.prepare_data()
        module.setup("fit")
        rows, source = score_ngrams(module), module.info["source"]
    else:
        rows, source = score_classifiers(module), config.data.name
    write_results("floors", config.run_dir, data=source, rows=rows)
    cells = [[name, *(f"{value:.5g}" for value in values)] for name, *values in map(dict.values, rows)]
    table = markdown(list(rows[0]), cells)
    return f"**Baselines without a network, on {source}**\n\n{table}\n\n{config.run_dir}"


# --- text: n-grams ---


def score_ngrams(module: TextData) -> list[dict]:
    """Losses of n-grams of 1 to ORDERS characters, in nats per character as model=charlm reports them.

    The text before a cold window is not seen, so its first characters are predicted by lower orders.
    """
    meta, cold_windows = module.meta, module.val_sets[1]
    assert isinstance(cold_windows, ColdWindows)
    train = np.fromfile(module.encoded, meta["dtype"], count=meta["train"])
    text, V = cold_windows.tokens, len(meta["vocabulary"])
    rows: list[dict] = []
    context = np.arange(len(text) - 1) % COLD_WINDOW + 1  # characters that a cold window shows
    cold = np.empty(len(text) - 1)
    for n, p in enumerate(predict_ngrams(train, text, V, ORDERS), 1):
        stateful = -np.log(p[1:])  # a network does not predict the first character either
        cold = np.where(context >= n - 1, stateful, cold)
        losses = {
            "val/loss_stateful": float(stateful.mean()),
            "val/loss_cold": float(cold[: len(cold_windows.starts) * COLD_WINDOW].mean()),
        }
        rows.append({"model": f"{n}-grams", **losses})
        print(f"{n}-grams: {losses['val/loss_stateful']:.4f} nats", file=sys.stderr, flush=True)
    return rows


def predict_ngrams(train: np.ndarray, text: np.ndarray, V: int, orders: int) -> Iterator[np.ndarray]:
    """p(x_t | x_{t-n+1} … x_{t-1}) of each character of `text` (T,), for n = 1 to `orders`: (T,) each.

    Smoothing is interpolated modified Kneser-Ney. Both texts are ids below V. Within the n-gram model, the
    lower orders do not count how often a gram occurs but how many different characters precede it. If fewer
    than n - 1 characters precede t, p is that of the lower order.

    A gram is represented by a number, its rank among all grams of its length. A gram of `train` that starts
    at i is looked up by the rank of the gram without its last character, and that character.
    """
    ranks, seen = np.zeros(len(train) + 1, np.int64), np.zeros(len(text) + 1, np.int64)  # the empty gram
    p, lower = np.full((2, len(text)), 1 / V)
    distinct = 1
    for n in range(1, orders + 1):
        shorter, longer = distinct, ranks[:-1] * V + train[n - 1 :]  # (N - n + 1,)
        grams, ranks, counts = np.unique(longer, return_inverse=True, return_counts=True)
        distinct = len(grams)
        pairs = train[:-n].astype(np.int64) * distinct + ranks[1:]  # a character, then a gram
        # Without the counts NumPy 2.4 would hash, which is a hundred times slower
        pairs, _ = np.unique(pairs, return_counts=True)
        preceding = np.bincount(pairs % distinct, minlength=distinct)

        context, sought = seen[:-1], seen[:-1] * V + text[n - 1 :]  # (T - n + 1,)
        places = np.searchsorted(grams, sought).clip(max=distinct - 1)
        # After -1 too, because sought is negative there
        seen = np.where(grams[places] == sought, places, -1)
        p[n - 1 :] = interpolate(counts, grams // V, shorter, seen, context, lower[n - 1 :])
        lower[n - 1 :] = interpolate(preceding, grams // V, shorter, seen, context, lower[n - 1 :])
        yield p.copy()


def interpolate(
    counts: np.ndarray,
    contexts: np.ndarray,
    shorter: int,
    seen: np.ndarray,
    context: np.ndarray,
    lower: np.ndarray,
) -> np.ndarray:
    """p(w | h) = (c(hw) - D(c(hw)) + p(w | h') · Σ_v D(c(hv))) / Σ_v c(hv), where h' is h without its first.

    For each gram hw of the training text: `counts` c and `contexts` h, one of `shorter`. For each character
    of a text: the gram `seen`, its `context` (-1: not in the training text) and `lower`, p(w | h'), which is
    p(w | h) as well where every c(hv) is 0.
    """
    discounted = estimate_discounts(counts)[np.minimum(counts, 3)]
    # The zero at the end is what -1 finds
    kept = np.append(counts - discounted, 0)
    freed = np.append(np.bincount(contexts, discounted, shorter), 0)
    total = np.append(np.bincount(contexts, counts, shorter), 0)[context]
    return np.where(total > 0, (kept[seen] + freed[context] * lower) / np.maximum(total, 1), lower)


def estimate_discounts(counts: np.ndarray) -> np.ndarray:
    """D(0) = 0, D(1), D(2), D(3 and more) of Chen & Goodman, from how many grams occur 1, 2, 3, 4 times.

    If the grams are too few for a positive estimate, D is 0, 1/2, 1, 3/2.
    """
    n = [np.count_nonzero(counts == k) for k in range(5)]
    if all(n[1:]):
        Y = n[1] / (n[1] + 2 * n[2])
        D = np.array([0, *(k - (k + 1) * Y * n[k + 1] / n[k] for k in (1, 2, 3))])
        if (D[1:] > 0).all():
            return D
    return np.array([0, 0.5, 1, 1.5])


# --- reviews: a linear classifier ---


def score_classifiers(module: SentimentData) -> list[dict]:
    """Accuracies of logistic regressions on the words and bigrams of whole, lower-cased reviews.

    They train on the training reviews of model=sentiment, with the regularisation that is best on its
    validation part. Raises ValueError if scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        message = f"suite=floors on reviews needs scikit-learn; pip install -e '.[dev]' ({error})"
        raise ValueError(message) from error

    splits = module.read()
    if len(module.classes) > 2:
        raise ValueError(f"suite=floors tells two classes apart, but the data have {len(module.classes)}")
    texts = {split: [clean(text) for text in column] for split, (column, _) in splits.items()}
    labels = {split: np.array(column) for split, (_, column) in splits.items()}
    rows = []
    for n, held in [(1, "words"), (2, "words and bigrams")]:
        bag = CountVectorizer(token_pattern=WORD, ngram_range=(1, n), binary=True, dtype=np.float64)
        plain = {"train": bag.fit_transform(texts["train"])}
        plain |= {split: bag.transform(texts[split]) for split in ("val", "test")}
        ratio = log_count_ratio(plain["train"], labels["train"])
        weighted = {split: X.multiply(ratio).tocsr() for split, X in plain.items()}
        for name, features in [(held, plain), (f"{held}, weighted by naive Bayes", weighted)]:
            dual = features["train"].shape[0] < features["train"].shape[1]  # the faster of the two problems
            tried = []
            for C in INVERSE_REGULARISATION:
                model = LogisticRegression(C=C, solver="liblinear", dual=dual, max_iter=1000, random_state=0)
                model.fit(features["train"], labels["train"])
                tried.append((model.score(features["val"], labels["val"]), C, model))
            accuracy, C, model = max(tried, key=lambda scored: scored[0])
            tested = model.score(features["test"], labels["test"])
            rows.append({"model": name, "C": C, "val/accuracy": accuracy, "test/accuracy": tested})
            print(f"{name}: {tested:.2%}", file=sys.stderr, flush=True)
    return rows


def log_count_ratio(X, y: np.ndarray) -> np.ndarray:
    """r = log((p / ‖p‖₁) / (q / ‖q‖₁)) (F,), p = 1 + Σ x over the rows of X (·, F) of y = 1, q of y = 0."""
    p, q = 1 + X.T @ y, 1 + X.T @ (1 - y)
    return np.log((p / p.sum()) / (q / q.sum()))
