"""The copy task (Arjovsky et al. 2016): remember symbols over a stretch of blanks."""

from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lstmlab.data.batching import TrainingLoader, evaluation_loader
from lstmlab.schema import CopyConfig

TRAIN, VAL, TEST = range(3)  # the first number of every seed


class CopyBatch(NamedTuple):
    tokens: Tensor  # (B, T), T = length + delay + 1 + length: symbols, blanks, the marker, blanks
    targets: Tensor  # (B, length): the symbols, to be given at the last `length` steps


def present(targets: np.ndarray, symbols: int, delay: int) -> np.ndarray:
    """The tokens (B, T) that show `targets` (B, length) and, `delay` steps later, ask for them."""
    size, length = targets.shape
    blank, marker = symbols, symbols + 1
    tokens = np.full((size, length + delay + 1 + length), blank)
    tokens[:, :length] = targets
    tokens[:, length + delay] = marker
    return tokens


def copy_batch(
    seed: tuple[int, ...], size: int, symbols: int, length: int, delay: int | tuple[int, int]
) -> CopyBatch:
    """`size` sequences that `seed` decides; their common delay too, if it is a range (both ends in it)."""
    rng = np.random.default_rng(seed)
    steps = delay if isinstance(delay, int) else int(rng.integers(delay[0], delay[1] + 1))
    targets = rng.integers(0, symbols, (size, length))
    return CopyBatch(torch.from_numpy(present(targets, symbols, steps)), torch.from_numpy(targets))


class CopyDataset(Dataset):
    """Item (seed, size, delay) is that batch: made when asked for, the same whenever asked for."""

    def __init__(self, symbols: int, length: int):
        self.symbols, self.length = symbols, length

    def __getitem__(self, item: tuple) -> CopyBatch:
        seed, size, delay = item
        return copy_batch(seed, size, self.symbols, self.length, delay)


class CopyData(L.LightningDataModule):
    """`data=copy`: training batches that never come again; a validation and a test set that never change.

    The test set holds `test_size` sequences for each delay in `test_delay`. A batch has one delay:
    T - 2 length - 1. Raises ValueError for invalid delays, and for other symbols than `info`, that of
    a checkpoint, names.
    """

    def __init__(self, config: CopyConfig, seed: int = 0, info: dict | None = None):
        super().__init__()
        self.config, self.seed = config, seed
        if info is not None and info["symbols"] != config.symbols:
            raise ValueError(f"data.symbols={config.symbols}, but the model knows {info['symbols']} symbols")
        delay, tests = config.delay, config.test_delay
        if isinstance(delay, tuple) and (len(delay) != 2 or delay[0] > delay[1]):
            raise ValueError(f"data.delay={list(delay)} must be a number of steps or a range [low, high]")
        if tests == ():
            raise ValueError("data.test_delay=[] must be a number of steps or a list of them")
        self.delay = delay
        self.test_delays = list(tests) if isinstance(tests, tuple) else [delay if tests is None else tests]
        self.dataset = CopyDataset(config.symbols, config.length)

    @property
    def info(self) -> dict:
        return {
            "symbols": self.config.symbols,
            "length": self.config.length,
            "num_tokens": self.config.symbols + 2,
            "max_delay": self.delay if isinstance(self.delay, int) else self.delay[1],
            "test_delays": [d if isinstance(d, int) else list(d) for d in self.test_delays],
        }

    def train_dataloader(self) -> TrainingLoader:
        count, size = self.config.train_batches, self.config.batch_size

        def plan(epoch: int) -> list:
            numbers = range(epoch * count, (epoch + 1) * count)
            return [((TRAIN, self.seed, number), size, self.delay) for number in numbers]

        return TrainingLoader(self.dataset, plan, count, self.config.num_workers)

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.dataset, self._fixed(VAL, self.config.val_size, self.delay))

    def test_dataloader(self) -> DataLoader:
        size = self.config.test_size
        items = [item for delay in self.test_delays for item in self._fixed(TEST, size, delay)]
        return evaluation_loader(self.dataset, items)

    def _fixed(self, part: int, total: int, delay: int | tuple[int, int]) -> list:
        size = self.config.batch_size
        return [
            ((part, number), min(size, total - start), delay)
            for number, start in enumerate(range(0, total, size))
        ]
