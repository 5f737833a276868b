"""Is what a language model writes new, and is it language? Measures of a text beside the training text."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from lstmlab.analysis.features import WORD


def words(text: str) -> list[str]:
    """Runs of letters, digits and apostrophes within, in lower case; without those that touch either end of
    the text, since they may have been cut."""
    return [m[0].lower() for m in WORD.finditer(text) if m.start() > 0 and m.end() < len(text)]


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Distinct-n: the different n-grams of lists of words as a share of all, 1 if none repeats; nan of none.

    Li et al. 2016, who divide by the number of words. It falls with the length: compare equal lengths alone.
    """
    ngrams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else float("nan")


def copied_runs(texts: Sequence[str], corpus: str) -> list[np.ndarray]:
    """For each position of each text the length in characters, (T,), of the longest run that starts there
    and occurs in the corpus: the matching statistics of Chang & Lawler 1994.

    All are sorted into one suffix array, by prefix doubling (Manber & Myers 1993); the longest match of a
    suffix is with one of its nearest neighbours from the corpus. O(N log N log T) time.
    """
    parts: list[Any] = []
    for number, text in enumerate([corpus, *texts]):
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        parts += [points.astype(np.int64), [-1 - number]]  # each ends in a character of its own
    _, rank = np.unique(np.concatenate(parts), return_inverse=True)
    N, ranks = len(rank), []  # ranks[k][i]: that of the 2^k characters from i on
    for k in range(max(map(len, texts)).bit_length()):
        ranks.append(rank.astype(np.int32))
        following = np.zeros(N, np.int64)  # past the end: what holds the last character is unique anyhow
        following[: -(1 << k)] = rank[1 << k :]
        _, rank = np.unique(rank * N + following, return_inverse=True)

    order, M = rank.argsort(), len(corpus)
    places, from_corpus = np.arange(N), order < M
    before = np.maximum.accumulate(np.where(from_corpus, places, -1))
    after = np.minimum.accumulate(np.where(from_corpus, places, N)[::-1])[::-1]
    own = order[~from_corpus]
    longest = np.zeros(N, np.int64)
    for nearest in (before[~from_corpus], after[~from_corpus]):
        exists = (nearest >= 0) & (nearest < N)
        i, j = own[exists], order[nearest[exists]]
        common = np.zeros(len(i), np.int64)
        for k in reversed(range(len(ranks))):
            common += (ranks[k][i + common] == ranks[k][j + common]).astype(np.int64) << k
        longest[i] = np.maximum(longest[i], common)
    ends = np.cumsum([M + 1, *(len(text) + 1 for text in texts)])
    return [longest[start : end - 1] for start, end in pairwise(ends)]


def covered(runs: np.ndarray, least: int) -> float:
    """The share of a text's characters that lie in a run of at least `least`; runs (T,) of `copied_runs`."""
    reach = np.maximum.accumulate(np.where(runs >= least, np.arange(len(runs)) + runs, 0))
    return float((np.arange(len(runs)) < reach).mean())


def ngram_text(corpus: str, prompt: str, length: int, order: int, seed: int) -> str:
    """Continue `prompt` by `length` characters, as Shannon (1948, section 3) did with a book.

    Each is the one that follows the next occurrence, from a random place of the corpus on, of the `order`
    characters before it; any one of the corpus if they don't occur.
    """
    random, text = Random(seed), prompt
    for _ in range(length):
        context, start = text[-order:], random.randrange(len(corpus))
        found = corpus.find(context, start, -1)
        if found < 0:
            found = corpus.find(context, 0, -1)
        text += corpus[start if found < 0 else found + len(context)]
    return text[len(prompt) :]
