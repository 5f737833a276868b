"""BPE dropout (Provilkov et al. 2020): words fall into other subwords each time that they are read."""

import json

import numpy as np
from tokenizers import Tokenizer

from lstmlab.data.batching import Ragged
from lstmlab.data.tokenization import UNK

CHUNK = 1 << 15  # words that are encoded together: their arrays fit into the CPU's cache
NONE = np.int64(2**31 - 1)  # the rank of a pair that no merge joins


class BPEDropout:
    """Texts that byte-pair encoding with dropout encodes, each time in another way.

    Of the merges that are possible in a word, each is left out with probability `p`, and the first of the
    others is made; this is repeated, with new draws, until none is left (Algorithm 1). `p` = 0 is plain BPE.
    The library `tokenizers` has a BPE with dropout too, but it cannot be given a seed, so a run could not be
    repeated or resumed exactly. It also gives some merges a second chance.

    Args:
        tokenizer: byte-level BPE, as `train_tokenizer` makes it.
        texts: those to encode.
        p: the probability, from 0 to 1.
    """

    def __init__(self, tokenizer: Tokenizer, texts: list[str], p: float):
        model, self.p = json.loads(tokenizer.to_str())["model"], p
        ids, self.V = model["vocab"], len(model["vocab"])
        pairs = np.array([[ids[a], ids[b], ids[a + b]] for a, b in model["merges"]], np.int64).reshape(-1, 3)
        keys = pairs[:, 0] * self.V + pairs[:, 1]
        self.order = np.argsort(keys)  # rank of each of the `keys`
        self.keys, self.merged = keys[self.order], pairs[:, 2]  # merged: by rank

        normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
        numbers: dict[str, int] = {}  # of the different words
        words = [[numbers.setdefault(w, len(numbers)) for w, _ in split(normalize(text))] for text in texts]
        self.words = Ragged.of(words)  # of each text
        self.symbols = Ragged.of([[ids[byte] for byte in word] for word in numbers])

    def encode(self, rng: np.random.Generator) -> Ragged:
        """The ids of each text, without BOS and EOS; a text without any token is one `UNK`."""
        words = self.words.flat
        parts = [self._merge(words[start : start + CHUNK], rng) for start in range(0, len(words), CHUNK)]
        counts = np.concatenate([[0], *(part.lengths for part in parts)]).cumsum()  # (words + 1,)
        offsets = counts[self.words.offsets]
        flat = np.concatenate([np.zeros(0, np.int32), *(part.flat for part in parts)])
        empty = np.flatnonzero(np.diff(offsets) == 0)
        flat = np.insert(flat, offsets[empty], UNK)
        return Ragged(flat, offsets + np.searchsorted(empty, np.arange(len(offsets))))

    def _merge(self, words: np.ndarray, rng: np.random.Generator) -> Ragged:
        """The ids of each of these words. All words make one merge at a time, side by side."""
        whole = self.symbols.take(words)
        result = np.full(len(whole.flat), -1, np.int32)
        symbols, lengths, places = whole.flat, whole.lengths, whole.offsets[:-1]  # places: in `result`
        starts = places
        ranks = self._rank(symbols, np.append(symbols[1:], 0))  # of each symbol with the next
        ranks[starts + lengths - 1] = NONE
        while len(starts):
            possible = np.flatnonzero(ranks < NONE)
            tried = possible[rng.random(len(possible)) >= self.p]
            keys = np.full(len(symbols), NONE << 32)
            keys[tried] = ranks[tried] << 32 | tried  # of two merges of one rank, the left one comes first
            best = np.minimum.reduceat(keys, starts)  # (words,)
            ended = best == NONE << 32
            over = np.repeat(ended, lengths)  # (symbols,)
            result[np.repeat(places - starts, lengths)[over] + np.flatnonzero(over)] = symbols[over]

            best, lengths, places = best[~ended], lengths[~ended] - 1, places[~ended]
            left = best & 0xFFFFFFFF  # one in each word; the symbol behind it goes
            symbols[left] = self.merged[best >> 32]
            kept = ~over
            kept[left + 1] = False
            left = kept.cumsum()[left] - 1
            symbols, ranks, starts = symbols[kept], ranks[kept], lengths.cumsum() - lengths
            for at, inner in ((left, left < starts + lengths - 1), (left - 1, left > starts)):
                ranks[at[inner]] = self._rank(symbols[at[inner]], symbols[at[inner] + 1])
            ranks[starts + lengths - 1] = NONE
        there = result >= 0
        counts = np.add.reduceat(there, whole.offsets[:-1], dtype=np.int64)
        return Ragged(result[there], np.concatenate([[0], counts.cumsum()]))

    def _rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The rank of the merge of each pair of symbols, or NONE."""
        keys = left.astype(np.int64) * self.V + right
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[found] == keys, self.order[found], NONE)
