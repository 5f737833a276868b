"""Is the text of a language model new, and is it language? Measures beside the training text."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lstmlab.data.features import WORD
from lstmlab.data.rows import Rows

CONTEXT = 5  # characters of context of the n-gram model
COPIED = 30  # a run of this many characters is hardly the same by chance


class Measured(NamedTuple):
    """The measures of a group of texts."""

    name: str
    texts: list[str]
    loss: float  # of the language model, in nats per character
    words: int  # in all texts
    known_words: float  # the share of them that occur in the training text
    new_words: list[str]  # the other ones, each once
    longest_copy: int  # in characters
    mean_copy: float  # the mean of `find_copied_runs` over all positions
    copied: float  # the mean share of a text that lies in copies of at least COPIED characters
    distinct: list[float]  # distinct-1, -2 and -3


def cut_windows(held_out: Rows, samples: int, prompt: int, length: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced windows of one long row, without overlap: prompts (samples, prompt) and what follows them
    (samples, length). If the row is too short, both are shortened in proportion."""
    step = held_out.ids.size(1) // samples
    width = min(prompt + length, step)
    cut = width * prompt // (prompt + length)
    windows = held_out.ids[0].unfold(0, width, step)[:samples]
    return windows[:, :cut], windows[:, cut:]


def write_texts(
    model: Any, prompts: Tensor, truth: Tensor, corpus: str, temperatures: Sequence[float]
) -> tuple[list[str], dict[str, Tensor]]:
    """The prompts (B, P) as texts, and ids (B, T) by name: the truth, the text of the model at each
    temperature, and that of n-grams of the corpus."""
    vocabulary, T = np.array(list(model.vocabulary)), truth.size(1)
    heads = ["".join(row) for row in vocabulary[prompts]]
    groups = {"held-out text": truth}
    for t in temperatures:
        groups[f"the model, temperature {t}"] = torch.cat(list(model.sample_ids(prompts, T, t)), 1)
    known = {character: i for i, character in enumerate(model.vocabulary)}
    ngrams = [write_ngram_text(corpus, head, T, CONTEXT, seed) for seed, head in enumerate(heads)]
    ids = torch.tensor([[known[character] for character in text] for text in ngrams])
    return heads, groups | {f"n-grams, {CONTEXT} characters of context": ids}


@torch.inference_mode()
def measure_texts(model: Any, prompts: Tensor, groups: dict[str, Tensor], corpus: str) -> list[Measured]:
    """Compare each group of ids (B, T), which continue the prompts (B, P), with the training text."""
    vocabulary = np.array(list(model.vocabulary))
    texts = {name: ["".join(row) for row in vocabulary[ids]] for name, ids in groups.items()}
    runs = iter(find_copied_runs([text for group in texts.values() for text in group], corpus))
    lexicon, measured = set(split_words(corpus)), []
    for name, ids in groups.items():
        logits, _ = model(torch.cat([prompts, ids], 1)[:, :-1])  # (B, P + T − 1, V)
        loss = F.cross_entropy(logits[:, -ids.size(1) :].flatten(0, 1).float(), ids.flatten())
        found = [split_words(text) for text in texts[name]]
        new = [word for text in found for word in text if word not in lexicon]
        count = sum(map(len, found))
        copies = [next(runs) for _ in found]
        measured.append(
            Measured(
                name,
                texts[name],
                loss.item(),
                count,
                1 - len(new) / max(1, count),
                list(dict.fromkeys(new)),
                int(max(run.max() for run in copies)),
                float(np.mean(copies)),
                float(np.mean([measure_coverage(run, COPIED) for run in copies])),
                [measure_distinct(found, n) for n in (1, 2, 3)],
            )
        )
    return measured


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, with apostrophes inside, in lower case. Words at either end of the text are
    left out, since they may be cut."""
    return [m[0].lower() for m in WORD.finditer(text) if m.start() > 0 and m.end() < len(text)]


def measure_distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Distinct-n: the share of different n-grams among all n-grams of lists of words; nan without any.

    Li et al. 2016 divide by the number of words instead. It falls with length, so compare equal lengths only.
    """
    ngrams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else float("nan")


def find_copied_runs(texts: Sequence[str], corpus: str) -> list[np.ndarray]:
    """For each text (T,): the length in characters of the longest run that starts at each position and
    occurs in the corpus. These are the matching statistics of Chang & Lawler 1994.

    All texts are sorted into one suffix array by prefix doubling (Manber & Myers 1993). The longest match
    of a suffix is one of its nearest neighbours from the corpus. This takes O(N log N log T) time.
    """
    parts: list[Any] = []
    for number, text in enumerate([corpus, *texts]):
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        parts += [points.astype(np.int64), [-1 - number]]  # each ends in a character of its own
    _, rank = np.unique(np.concatenate(parts), return_inverse=True)
    N, ranks = len(rank), []  # ranks[k][i]: the rank of the 2^k characters from i on
    for k in range(max(map(len, texts)).bit_length()):
        ranks.append(rank.astype(np.int32))
        # 0 past the end: a suffix with the last character is unique anyway
        following = np.zeros(N, np.int64)
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


def measure_coverage(runs: np.ndarray, least: int) -> float:
    """The share of characters of a text that lie in a run of at least `least`, from its runs (T,)."""
    reach = np.maximum.accumulate(np.where(runs >= least, np.arange(len(runs)) + runs, 0))
    return float((np.arange(len(runs)) < reach).mean())


def write_ngram_text(corpus: str, prompt: str, length: int, order: int, seed: int) -> str:
    """Continue `prompt` by `length` characters, as Shannon (1948, section 3) did with a book.

    From a random position in the corpus, find the next occurrence of the last `order` characters and take the
    character that follows. If they do not occur, take a random character of the corpus.
    """
    random, text = Random(seed), prompt
    for _ in range(length):
        context, start = text[-order:], random.randrange(len(corpus))
        found = corpus.find(context, start, -1)
        if found < 0:
            found = corpus.find(context, 0, -1)
        text += corpus[start if found < 0 else found + len(context)]
    return text[len(prompt) :]
