"""Generated sequences: the data of `model=copytask`, which need no file."""

from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lstmlab.data.batching import TrainingLoader, evaluation_loader
from lstmlab.data.sequence_tasks import TASKS, SequenceTask
from lstmlab.schema import GeneratedConfig

TRAIN, VAL, TEST = range(3)  # the first number of every seed


class SequenceBatch(NamedTuple):
    tokens: Tensor  # (B, T)
    targets: Tensor  # (B, K): the answers at the last K steps, or `sequence_tasks.IGNORED`


class GeneratedDataset(Dataset):
    """Item (seed, B, n) is that batch: made when asked for, the same whenever asked for.

    n: the size of its sequences, or a range (both ends in it) from which the batch draws one.
    """

    def __init__(self, task: SequenceTask):
        self.task = task

    def __getitem__(self, item: tuple) -> SequenceBatch:
        seed, B, n = item
        rng = np.random.default_rng(seed)
        tokens = self.task.draw(rng, B, n if isinstance(n, int) else int(rng.integers(n[0], n[1] + 1)))
        return SequenceBatch(torch.from_numpy(tokens), torch.from_numpy(self.task.solve(tokens)))


class GeneratedData(L.LightningDataModule):
    """Training batches that never come again; a validation and a test set that never change.

    The test set holds `test_size` sequences of each size in data.test_delay or data.test_length. Raises
    ValueError for invalid sizes, and for another task than that of `info`, that of a checkpoint.
    """

    def __init__(self, config: GeneratedConfig, seed: int = 0, info: dict | None = None):
        super().__init__()
        self.config, self.seed = config, seed
        self.options = {key: getattr(config, key) for key in config.of_task}
        self.task: SequenceTask = TASKS[config.name](**self.options)
        for key, value in self.options.items():
            if info is not None and info["options"].get(key) != value:
                raise ValueError(f"data.{key}={value}, but the model was trained with {info['options']}")
        unit = self.task.unit
        trained, tested = getattr(config, unit), getattr(config, f"test_{unit}")
        if isinstance(trained, tuple) and (len(trained) != 2 or trained[0] > trained[1]):
            raise ValueError(f"data.{unit}={list(trained)} must be a number of steps or a range [low, high]")
        if tested == ():
            raise ValueError(f"data.test_{unit}=[] must be a number of steps or a list of them")
        self.trained = trained
        self.tested = list(tested) if isinstance(tested, tuple) else [trained if tested is None else tested]
        self.dataset = GeneratedDataset(self.task)

    @property
    def info(self) -> dict:
        return {
            "task": self.config.name,
            "options": self.options,
            "longest": self.trained if isinstance(self.trained, int) else self.trained[1],
            "tested": [n if isinstance(n, int) else list(n) for n in self.tested],
        }

    def name_size(self, T: int) -> str:
        """The ending of the name of a test metric: _delay200, or nothing for sizes that were trained on."""
        if self.trained in self.tested and not isinstance(self.trained, int):
            return ""
        n = T - self.task.count_steps(0)
        return "" if n == self.trained else f"_{self.task.unit}{n}"

    def train_dataloader(self) -> TrainingLoader:
        count, size = self.config.train_batches, self.config.batch_size

        def plan(epoch: int) -> list:
            numbers = range(epoch * count, (epoch + 1) * count)
            return [((TRAIN, self.seed, number), size, self.trained) for number in numbers]

        return TrainingLoader(self.dataset, plan, count, self.config.num_workers)

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.dataset, self._fixed(VAL, self.config.val_size, self.trained))

    def test_dataloader(self) -> DataLoader:
        size = self.config.test_size
        items = [item for n in self.tested for item in self._fixed(TEST, size, n)]
        return evaluation_loader(self.dataset, items)

    def _fixed(self, part: int, total: int, n: int | tuple[int, int]) -> list:
        size = self.config.batch_size
        starts = enumerate(range(0, total, size))
        return [((part, number), min(size, total - start), n) for number, start in starts]
