"""What the gates do: when a cell forgets, how long it remembers, and which gates are stuck."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lstmlab.cells import KINDS

SIGMOIDS = {gate for kind in KINDS.values() for gate in kind.sigmoids}  # gates between 0 and 1
# What multiplies the old state: f of an LSTM, z of a GRU, 1 − z of a minGRU
RETAINS = {name: kind.retains for name, kind in KINDS.items() if kind.retains}
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "→"}  # how pictures show tokens of one invisible character


class Saturation(NamedTuple):
    low: Tensor  # share of steps below 0.1
    high: Tensor  # share of steps above 0.9


def kept_by(kind: str) -> str:
    """What multiplies the old memory at each step: as in RETAINS, and of an sLSTM its stabilised f.

    Raises ValueError for a kind in which no gate keeps the memory.
    """
    if kind != "slstm" and kind not in RETAINS:
        raise ValueError(f"kind={kind} has no gate that keeps its memory, so it is no sum over the steps")
    return "f" if kind == "slstm" else RETAINS[kind]


def memory_of(kind: str) -> str:
    """c, or the h of a kind without c. Raises what `kept_by` raises."""
    kept_by(kind)
    return "c" if "c" in KINDS[kind].state._fields else "h"


def find_retained(retains: str, values: dict[str, Tensor]) -> Tensor:
    """The share of the old state that is kept at each step, from the gates by name: see `Kind.retains`."""
    gate = values[retains.removeprefix("1 − ")]
    return 1 - gate if retains.startswith("1 − ") else gate


def measure_saturation(gate: Tensor) -> Saturation:
    """How often each unit's gate is almost closed and almost open: (…, N, H) → (…, H) each."""
    return Saturation((gate < 0.1).float().mean(-2), (gate > 0.9).float().mean(-2))


def compute_half_lives(f: Tensor) -> Tensor:
    """Steps after which half of a memory is left, (…, N, H) → (…, H): ln 2 / |mean over steps of ln f|.

    After t steps the share Π f of the old memory is left. A constant f gives −ln 2 / ln f, and f = 1 gives
    infinity.
    """
    return math.log(2) / f.double().log().mean(-2).abs()


def find_forgetting_steps(f: Tensor, top: int) -> list[tuple[int, float]]:
    """The steps at which a layer forgets the most: f (N, H) → (step, mean of f over units), lowest first."""
    lowest = f.mean(1).topk(min(top, len(f)), largest=False)
    return list(zip(lowest.indices.tolist(), lowest.values.tolist(), strict=True))


def rank_tokens(f: Tensor, tokens: list[str], least: int) -> list[tuple[str, int, float]]:
    """(token, count, mean of f (N, H) at it), lowest mean first; a count below `least` leaves a token out."""
    kinds = sorted(set(tokens))
    numbers = {token: k for k, token in enumerate(kinds)}
    index = torch.tensor([numbers[token] for token in tokens])
    counts = index.bincount()
    means = index.bincount(f.double().mean(1)) / counts
    rows = [row for row in zip(kinds, counts.tolist(), means.tolist(), strict=True) if row[1] >= least]
    return sorted(rows, key=lambda row: row[2])


def split_context(tokens: list[str], step: int, width: int = 30) -> tuple[str, str, str]:
    """The text before a step, its token and the text after it, at most `width` characters on each side."""
    before, after = "".join(tokens[max(0, step - width) : step]), "".join(tokens[step + 1 : step + width])
    return before[-width:], tokens[step], after[:width]
