"""What a model reaches that is no network, on the same data and split: a network should do better.

Text: character n-grams, interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999). Reviews: a linear
classifier of the words and pairs of words that occur, weighted by naive Bayes (Wang & Manning 2012).
"""

import sys
from collections.abc import Iterator

import numpy as np

from lstmlab import data
from lstmlab.benchmarks.timing import write
from lstmlab.data.sentiment import SentimentData, clean
from lstmlab.data.text import COLD_WINDOW, ColdWindows, TextData
from lstmlab.data.tokenization import WORD
from lstmlab.tables import markdown

ORDERS = 10
INVERSE_REGULARISATION = (0.01, 0.1, 1, 10)  # the best one on the validation part is taken


def report(config: dict) -> str:
    """Write bench.json into the run's folder; the table, to be printed.

    Raises what the data raise, and ValueError if scikit-learn is needed and not installed.
    """
    module = data.build(config["data"])
    if isinstance(module, TextData):
        module.prepare_data()
        module.setup("fit")
        rows, source = language(module), module.info["source"]
    else:
        rows, source = sentiment(module), config["data"]["name"]
    write("floors", config["run_dir"], data=source, rows=rows)
    cells = [[name, *(f"{value:.5g}" for value in values)] for name, *values in map(dict.values, rows)]
    return f"**No network, on {source}**\n\n{markdown(list(rows[0]), cells)}\n\n{config['run_dir']}"


# --- text: n-grams ---


def language(module: TextData) -> list[dict]:
    """Losses in nats a character as model=charlm reports them, of n-grams of 1 to ORDERS characters.

    What stands before a cold window is not seen: its first characters are predicted by lower orders.
    """
    meta, cold_windows = module.meta, module.val_sets[1]
    assert isinstance(cold_windows, ColdWindows)
    train = np.fromfile(module.encoded, meta["dtype"], count=meta["train"])
    text, V = cold_windows.tokens, len(meta["vocabulary"])
    rows: list[dict] = []
    context = np.arange(len(text) - 1) % COLD_WINDOW + 1  # characters that a cold window shows
    cold = np.empty(len(text) - 1)
    for n, p in enumerate(kneser_ney(train, text, V, ORDERS), 1):
        stateful = -np.log(p[1:])  # a network predicts no first character either
        cold = np.where(context >= n - 1, stateful, cold)
        losses = {
            "val/loss_stateful": float(stateful.mean()),
            "val/loss_cold": float(cold[: len(cold_windows.starts) * COLD_WINDOW].mean()),
        }
        rows.append({"model": f"{n}-grams", **losses})
        print(f"{n}-grams: {losses['val/loss_stateful']:.4f} nats", file=sys.stderr, flush=True)
    return rows


def kneser_ney(train: np.ndarray, text: np.ndarray, V: int, orders: int) -> Iterator[np.ndarray]:
    """p(x_t | x_{t-n+1} … x_{t-1}) of each character of `text` (T,), for n = 1 to `orders`: (T,) each.

    Both texts are ids below V. Within the n-gram model all lower orders count not how often a gram occurs
    but how many different characters precede it. Where fewer than n - 1 characters precede t, p is that of
    the model of the lower order.

    A gram is a number: its place among all grams of its length. One of `train` that starts at i is known by
    that of the gram before it, which lacks the last character, and by that character.
    """
    ranks, seen = np.zeros(len(train) + 1, np.int64), np.zeros(len(text) + 1, np.int64)  # the empty gram
    p, lower = np.full((2, len(text)), 1 / V)
    distinct = 1
    for n in range(1, orders + 1):
        shorter, longer = distinct, ranks[:-1] * V + train[n - 1 :]  # (N - n + 1,)
        grams, ranks, counts = np.unique(longer, return_inverse=True, return_counts=True)
        distinct = len(grams)
        pairs = train[:-n].astype(np.int64) * distinct + ranks[1:]  # a character, then a gram
        pairs, _ = np.unique(pairs, return_counts=True)  # else NumPy 2.4 hashes, a hundred times slower
        preceding = np.bincount(pairs % distinct, minlength=distinct)

        context, sought = seen[:-1], seen[:-1] * V + text[n - 1 :]  # (T - n + 1,)
        places = np.searchsorted(grams, sought).clip(max=distinct - 1)
        seen = np.where(grams[places] == sought, places, -1)  # and after -1 too: there sought is below 0
        p[n - 1 :] = interpolated(counts, grams // V, shorter, seen, context, lower[n - 1 :])
        lower[n - 1 :] = interpolated(preceding, grams // V, shorter, seen, context, lower[n - 1 :])
        yield p.copy()


def interpolated(
    counts: np.ndarray,
    contexts: np.ndarray,
    shorter: int,
    seen: np.ndarray,
    context: np.ndarray,
    lower: np.ndarray,
) -> np.ndarray:
    """p(w | h) = (c(hw) - D(c(hw)) + p(w | h') · Σ_v D(c(hv))) / Σ_v c(hv), h' being h without its first.

    Of each gram hw: `counts` c and `contexts` h, one of `shorter`. Of each character of a text: which gram
    was `seen` and after which `context` (-1: one that training does not hold), and `lower`, p(w | h'), which
    p(w | h) is where no c(hv) > 0.
    """
    discounted = discounts(counts)[np.minimum(counts, 3)]
    # one more, a zero, which -1 finds
    kept = np.append(counts - discounted, 0)
    freed = np.append(np.bincount(contexts, discounted, shorter), 0)
    total = np.append(np.bincount(contexts, counts, shorter), 0)[context]
    return np.where(total > 0, (kept[seen] + freed[context] * lower) / np.maximum(total, 1), lower)


def discounts(counts: np.ndarray) -> np.ndarray:
    """D(0) = 0, D(1), D(2), D(3 and more) of Chen & Goodman, from how many grams occur 1, 2, 3, 4 times.

    Too few grams give no estimate or a negative one: then 1/2, 1, 3/2.
    """
    n = [np.count_nonzero(counts == k) for k in range(5)]
    if all(n[1:]):
        Y = n[1] / (n[1] + 2 * n[2])
        D = np.array([0, *(k - (k + 1) * Y * n[k + 1] / n[k] for k in (1, 2, 3))])
        if (D[1:] > 0).all():
            return D
    return np.array([0, 0.5, 1, 1.5])


# --- reviews: a linear classifier ---


def sentiment(module: SentimentData) -> list[dict]:
    """Accuracies of logistic regressions on the n-grams of words that a review holds, whole and lower-cased.

    Trained on the training reviews of model=sentiment, with the regularisation that is best on its validation
    part. Raises ValueError if scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise ValueError(f"suite=floors of reviews needs pip install -e '.[dev]': {error}") from error

    splits = module.read()
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
            dual = features["train"].shape[0] < features["train"].shape[1]  # the faster problem to solve
            tried = []
            for C in INVERSE_REGULARISATION:
                model = LogisticRegression(C=C, solver="liblinear", dual=dual, max_iter=1000, random_state=0)
                model.fit(features["train"], labels["train"])
                tried.append((model.score(features["val"], labels["val"]), C, model))
            accuracy, C, model = max(tried, key=lambda found: found[0])
            tested = model.score(features["test"], labels["test"])
            rows.append({"model": name, "C": C, "val/accuracy": accuracy, "test/accuracy": tested})
            print(f"{name}: {tested:.2%}", file=sys.stderr, flush=True)
    return rows


def log_count_ratio(X, y: np.ndarray) -> np.ndarray:
    """r = log((p / ‖p‖₁) / (q / ‖q‖₁)) (F,), p = 1 + Σ x over the rows of X (·, F) of y = 1, q of y = 0."""
    p, q = 1 + X.T @ y, 1 + X.T @ (1 - y)
    return np.log((p / p.sum()) / (q / q.sum()))
