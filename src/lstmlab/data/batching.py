"""Sequences of different lengths: stored flat, batched by length, resumed exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from lstmlab import distributed
from lstmlab.schema import TokensConfig

T = TypeVar("T")
GENERATED = ("test", "val", "train")  # in this order, so that more training data leaves the test set as it is
CHUNK = 50  # batches that are sorted by length together: larger pads less, smaller shuffles better


@dataclass(frozen=True)
class Ragged:
    """Sequences in one array: number i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: np.ndarray  # (N,) int32
    offsets: np.ndarray  # (n + 1,) int64

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        offsets = np.cumsum([0, *map(len, sequences)])
        return cls(np.fromiter(chain.from_iterable(sequences), np.int32, offsets[-1]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Ragged":
        """Sequences `rows`, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(
            self.flat[np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)], offsets
        )

    def pad(self, rows: np.ndarray, max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """Sequences `rows` as ids (B, T), padded with 0, and their lengths (B,), both int64.

        A longer one than `max_length` keeps its first quarter of that and, for the rest, its end.
        """
        starts, full = self.offsets[rows], self.lengths[rows]
        lengths = full if max_length is None else np.minimum(full, max_length)
        steps = np.arange(lengths.max())
        valid = steps < lengths[:, None]  # (B, T)
        skipped = np.where(steps < lengths[:, None] // 4, 0, (full - lengths)[:, None])
        tokens = np.zeros(valid.shape, np.int64)
        tokens[valid] = self.flat[(starts[:, None] + steps + skipped)[valid]]
        return torch.from_numpy(tokens), torch.from_numpy(lengths)


def bucketed(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """All rows in batches of similar length, in an order that (seed, epoch) decides."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), CHUNK * batch_size):
        rows = order[start : start + CHUNK * batch_size]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += np.split(rows, range(batch_size, len(rows), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


class EpochSampler(Sampler[Any]):
    """Hands out `plan(epoch)`, a list of `length` items, from `step` on.

    Lightning's `set_epoch` is no help: it counts one too many after a restart from an epoch's end.
    """

    def __init__(self, plan: Callable[[int], Sequence[Any]], length: int):
        self.plan, self.length = plan, length
        self.epoch, self.step = -1, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        for item in self.plan(self.epoch)[self.step : self.length]:
            self.step += 1
            yield item

    def next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]


class TrainingLoader(StatefulDataLoader):
    """Whole batches `dataset[item]`, `length` an epoch, for the items of `plan(epoch)`; of several processes,
    each has its rows of every batch.

    Each pass is an epoch, also after one that was interrupted. After `load_state_dict` the next pass is the
    rest of the epoch that the state was taken in, be it empty.
    """

    sampler: EpochSampler

    def __init__(self, dataset: Dataset, plan: Callable[[int], Sequence[Any]], length: int, num_workers: int):
        super().__init__(
            dataset,
            batch_size=None,
            sampler=EpochSampler(plan, length),
            num_workers=num_workers,
            collate_fn=distributed.own_rows_collate(),
            generator=torch.Generator(),  # each pass draws a seed: not from dropout's random numbers
        )

    def __iter__(self):
        self.sampler.next_epoch()  # which a state that is to be loaded then puts right
        return super().__iter__()


def evaluation_loader(dataset: Dataset, items: Sequence[Any] | None = None) -> DataLoader:
    """A loader of whole batches `dataset[item]`, always the same, in the order of `items`."""
    return DataLoader(dataset, batch_size=None, sampler=items, generator=torch.Generator())


class BucketedData(L.LightningDataModule):
    """What data sets of ragged sequences share. A subclass gives `load` and `info`, with `described` in it.

    `load` returns the data sets `train`, `val` and `test`; `dataset[rows]` is a batch, and
    `dataset.lengths` (n,) what the batches are sorted by. With `info`, that of a checkpoint, the texts are
    encoded with that checkpoint's tokenizer.
    """

    described: dict[str, str] = {}  # noqa: RUF012  of a user's own data: see `lstmlab.data.parts`

    def __init__(self, config: TokensConfig, seed: int = 0, info: dict | None = None):
        super().__init__()
        self.config: Any = config  # each data set reads keys of its own
        self.seed = seed
        self.checkpoint = info
        self.trained = None if info is None else info["tokenizer"]
        self.datasets: dict[str, Any] = {}

    def load(self) -> dict[str, Any]:
        raise NotImplementedError

    def prepare_data(self) -> None:
        self.setup()  # fills the cache, from which other processes then read

    def setup(self, stage: str | None = None) -> None:
        if not self.datasets:
            self.datasets = self.load()

    def train_dataloader(self) -> TrainingLoader:
        dataset, size = self.datasets["train"], self.config.batch_size
        if 0 < len(dataset) % size < distributed.world_size():
            raise ValueError(
                f"data.batch_size={size} leaves a last batch of {len(dataset) % size} "
                f"of {len(dataset)} rows, fewer than there are processes, {distributed.world_size()}"
            )
        return TrainingLoader(dataset, self.plan, -(-len(dataset) // size), self.config.num_workers)

    def plan(self, epoch: int) -> list[Any]:
        """The items of the training set that an epoch reads, one for each batch."""
        return bucketed(self.datasets["train"].lengths, self.config.batch_size, self.seed, epoch)

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        dataset, size = self.datasets[split], self.config.batch_size
        rows = np.argsort(dataset.lengths, kind="stable")
        return evaluation_loader(dataset, np.split(rows, range(size, len(rows), size)))


def cut(pairs: dict[str, T], sizes: dict[str, int]) -> dict[str, tuple[list[str], list[T]]]:
    """Pairs of generated data as splits of these sizes, one after the other: (keys, values) of each."""
    items = iter(pairs.items())
    parts = {split: list(islice(items, size)) for split, size in sizes.items()}
    return {split: ([a for a, _ in part], [b for _, b in part]) for split, part in parts.items()}
