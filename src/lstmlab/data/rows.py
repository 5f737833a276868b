"""Sequences as a model reads them, of whatever task."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Rows(NamedTuple):
    """B sequences. Their N steps are counted row after row, without the padding."""

    ids: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    # What a model should answer: classes (B,), for reviews 1 positive, 0 negative; or target tokens (B, T)
    labels: Tensor | None = None

    @classmethod
    def dense(cls, ids: Tensor) -> "Rows":
        """Rows of equal length, from ids (B, T)."""
        return cls(ids, torch.full((len(ids),), ids.size(1)))

    @property
    def mask(self) -> Tensor:
        """(B, T): True within a row's length. `x[mask]` are the N steps."""
        return torch.arange(self.ids.size(1)) < self.lengths[:, None]

    def head(self, count: int) -> "Rows":
        """The first rows, with at most `count` steps in all. If the first row alone is longer, it is cut."""
        keep = max(1, int((self.lengths.cumsum(0) <= count).sum()))
        lengths = self.lengths[:keep].clamp(max=count)
        labels = None if self.labels is None else self.labels[:keep]
        return Rows(self.ids[:keep, : int(lengths.max())], lengths, labels)

    def side_by_side(self, streams: int) -> "Rows":
        """One long row as `streams` rows. Up to streams − 1 steps at its end are left out."""
        T = self.ids.size(1) // streams
        return Rows.dense(self.ids[:, : streams * T].view(streams, T))

    def end_lines(self, texts: list[str]) -> list[str]:
        """The texts of the N steps, with a line break after the last step of each row."""
        ends = set((self.lengths.cumsum(0) - 1).tolist())
        return [text + "\n" * (step in ends) for step, text in enumerate(texts)]


def choose_rows(lengths: np.ndarray, count: int) -> np.ndarray:
    """Numbers of sequences in a random order that never changes, so many that they hold `count` steps or
    slightly more, or all if they hold fewer."""
    order = np.random.default_rng(0).permutation(len(lengths))
    return order[: 1 + np.searchsorted(lengths[order].cumsum(), count)]
