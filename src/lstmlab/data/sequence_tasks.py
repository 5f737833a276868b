"""Sequences with the right answers: hold symbols, select them, count, store a bit, compose permutations."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmlab.data.features import Features, symbols_held

IGNORED = -100  # a target where no answer is asked for; torch's cross_entropy leaves it out


class SequenceTask:
    """Sequences (B, T) of token ids and the answers (B, K) that are asked for at their last K steps.

    unit: what the size of a sequence counts, as in data.delay and data.length.
    tokens, answers: the names of the ids.
    recall: K, or None where K = T.
    """

    unit = "length"
    tokens: Sequence[str]
    answers: Sequence[str]
    recall: int | None = None

    def draw(self, rng: np.random.Generator, B: int, n: int) -> np.ndarray:
        """The tokens (B, T) of random sequences of size `n`."""
        raise NotImplementedError

    def solve(self, tokens: np.ndarray) -> np.ndarray:
        """The answers (B, K) to tokens (B, T), IGNORED where none is asked for."""
        raise NotImplementedError

    def parse(self, text: str, n: int) -> np.ndarray:
        """The tokens (1, T) that a user has typed; n: the size of the longest sequence of training.

        Raises ValueError for a name that is not one of `tokens`.
        """
        return np.array([read_names(text, self.tokens)])

    def count_steps(self, n: int) -> int:
        """T of a sequence of size n."""
        return n

    def features(self, tokens: np.ndarray) -> Features:
        """What must be kept in mind, (B·T,) each."""
        raise NotImplementedError


def read_names(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of names that stand side by side, or with blanks between them if a name is longer."""
    pieces = text.split() if max(map(len, names)) > 1 else list("".join(text.split()))
    known = ", ".join(names if len(names) <= 10 else [*names[:2], "…", names[-1]])
    if not pieces:
        raise ValueError(f"text= is empty, but this model reads {known}")
    if wrong := [piece for piece in pieces if piece not in names]:
        raise ValueError(f"text= holds {wrong[0]!r}, but this model reads {known}")
    return [names.index(piece) for piece in pieces]


class Copy(SequenceTask):
    """`length` symbols, `delay` blanks, a marker, and blanks at which to repeat the symbols.

    Arjovsky et al. 2016, arXiv 1511.06464.
    """

    unit = "delay"

    def __init__(self, symbols: int, length: int):
        self.symbols, self.length, self.recall = symbols, length, length
        self.answers = [str(symbol) for symbol in range(symbols)]
        self.tokens = [*self.answers, "·", "?"]

    def draw(self, rng: np.random.Generator, B: int, n: int) -> np.ndarray:
        return self.present(rng.integers(0, self.symbols, (B, self.length)), n)

    def present(self, symbols: np.ndarray, delay: int) -> np.ndarray:
        """The tokens (B, T) that show symbols (B, K) and, `delay` steps later, ask for them."""
        B, K = symbols.shape
        tokens = np.full((B, self.count_steps(delay)), self.symbols)
        tokens[:, :K] = symbols
        tokens[:, K + delay] = self.symbols + 1
        return tokens

    def solve(self, tokens: np.ndarray) -> np.ndarray:
        return tokens[:, : self.length]

    def parse(self, text: str, n: int) -> np.ndarray:
        symbols = read_names(text, self.answers)
        if len(symbols) != self.length:
            raise ValueError(f"text= holds {len(symbols)} symbols, but this model remembers {self.length}")
        return self.present(np.array([symbols]), n)

    def count_steps(self, n: int) -> int:
        return 2 * self.length + n + 1

    def features(self, tokens: np.ndarray) -> Features:
        shown = np.arange(self.length)[None].repeat(len(tokens), 0)
        return symbols_held(self.solve(tokens), shown, tokens.shape[1], self.symbols)


class SelectiveCopy(SequenceTask):
    """Symbols scattered over `length` steps of blanks, a marker, and blanks at which to repeat them.

    Gu & Dao 2023, arXiv 2312.00752.
    """

    def __init__(self, symbols: int, items: int):
        self.symbols, self.items, self.recall = symbols, items, items
        self.answers = [str(symbol) for symbol in range(symbols)]
        self.tokens = [*self.answers, "·", "?"]

    def draw(self, rng: np.random.Generator, B: int, n: int) -> np.ndarray:
        tokens = np.full((B, self.count_steps(n)), self.symbols)
        places = rng.random((B, n)).argpartition(self.items - 1, 1)[:, : self.items]
        np.put_along_axis(tokens, places, rng.integers(0, self.symbols, (B, self.items)), 1)
        tokens[:, n] = self.symbols + 1
        return tokens

    def find_symbols(self, tokens: np.ndarray) -> np.ndarray:
        """The steps (B, K) at which the symbols stand."""
        return np.nonzero(tokens < self.symbols)[1].reshape(len(tokens), self.items)

    def solve(self, tokens: np.ndarray) -> np.ndarray:
        return np.take_along_axis(tokens, self.find_symbols(tokens), 1)

    def parse(self, text: str, n: int) -> np.ndarray:
        ids = read_names(text, self.tokens[:-1])
        if (count := sum(i < self.symbols for i in ids)) != self.items:
            raise ValueError(f"text= holds {count} symbols, but this model remembers {self.items}")
        return np.array([[*ids, self.symbols + 1, *[self.symbols] * self.items]])

    def count_steps(self, n: int) -> int:
        return n + 1 + self.items

    def features(self, tokens: np.ndarray) -> Features:
        return symbols_held(self.solve(tokens), self.find_symbols(tokens), tokens.shape[1], self.symbols)


class Parity(SequenceTask):
    """Bits; the answer at each step is whether the number of ones so far is odd."""

    tokens = ("0", "1")
    answers = ("0", "1")

    def draw(self, rng: np.random.Generator, B: int, n: int) -> np.ndarray:
        return rng.integers(0, 2, (B, n))

    def solve(self, tokens: np.ndarray) -> np.ndarray:
        return tokens.cumsum(1) % 2

    def features(self, tokens: np.ndarray) -> Features:
        return {"parity": self.solve(tokens).ravel().astype(np.float32)}


class FlipFlop(SequenceTask):
    """Write a bit (w0, w1), ignore one (i0, i1) or read (r) the last that was written.

    A sequence begins with a write and ends with a read; of the steps between, a tenth write and a tenth read.
    Liu et al. 2023, arXiv 2306.00946.
    """

    tokens = ("w0", "w1", "i0", "i1", "r")
    answers = ("0", "1")

    def draw(self, rng: np.random.Generator, B: int, n: int) -> np.ndarray:
        actions = rng.choice(3, (B, n), p=[0.1, 0.8, 0.1])  # write, ignore, read
        actions[:, 0], actions[:, -1] = 0, 2
        return np.where(actions == 2, 4, 2 * actions + rng.integers(0, 2, (B, n)))

    def solve(self, tokens: np.ndarray) -> np.ndarray:
        return np.where(tokens == 4, self.stored(tokens), IGNORED)

    def stored(self, tokens: np.ndarray) -> np.ndarray:
        """The bit (B, T) last written at each step."""
        last_write = np.maximum.accumulate(np.where(tokens < 2, np.arange(tokens.shape[1]), 0), 1)
        return np.take_along_axis(tokens, last_write, 1)

    def parse(self, text: str, n: int) -> np.ndarray:
        tokens = super().parse(text, n)
        if tokens[0, 0] > 1:
            raise ValueError(f"text={text!r} must begin with w0 or w1")
        return tokens

    def features(self, tokens: np.ndarray) -> Features:
        return {"stored bit": self.stored(tokens).ravel().astype(np.float32)}


class S5(SequenceTask):
    """Swap the first two of five things (s) or rotate all (r): at each step, in which order are they now?

    The two generate the group S5, all 120 orders. Merrill et al. 2024, arXiv 2404.08819.
    """

    tokens = ("s", "r")
    answers = tuple("".join(order) for order in itertools.permutations("12345"))
    moves = np.array([[1, 0, 2, 3, 4], [1, 2, 3, 4, 0]])  # of each token

    def draw(self, rng: np.random.Generator, B: int, n: int) -> np.ndarray:
        return rng.integers(0, 2, (B, n))

    def orders(self, tokens: np.ndarray) -> np.ndarray:
        """The order (B, T, 5) after each step."""
        order, found = np.tile(np.arange(1, 6), (len(tokens), 1)), []
        for move in self.moves[tokens.T]:  # (B, 5)
            order = np.take_along_axis(order, move, 1)
            found.append(order)
        return np.stack(found, 1)

    def solve(self, tokens: np.ndarray) -> np.ndarray:
        digits = 10 ** np.arange(4, -1, -1)
        return np.searchsorted(np.array(self.answers, int), self.orders(tokens) @ digits)

    def features(self, tokens: np.ndarray) -> Features:
        places = self.orders(tokens).reshape(-1, 5)  # (B·T, 5)
        return {f"the thing at place {k + 1}": places[:, k].astype(np.float32) for k in range(5)}


TASKS: dict[str, Any] = {
    "copy": Copy,
    "selective_copy": SelectiveCopy,
    "parity": Parity,
    "flipflop": FlipFlop,
    "s5": S5,
}
