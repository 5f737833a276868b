"""Text for the language model, from a corpus to streams of ids: those of characters."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lstmlab import distributed
from lstmlab.atomic import replace_file
from lstmlab.data.batching import evaluation_loader
from lstmlab.data.corpora import CORPORA, Corpus
from lstmlab.schema import TextConfig

UNKNOWN = "\ufffd"  # id 0: a character that the training part does not hold. Never generated
COLD_WINDOW = 256  # characters, as nanoGPT reports it
STATEFUL_WINDOW = 1024  # the state is carried on, so the length changes nothing but the speed
CHUNK = 1 << 22  # characters held in memory at once


class TextBatch(NamedTuple):
    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T): the inputs, one step on


class Streams(Dataset):
    """Item i is window i, (B, T) and its targets, of B contiguous streams cut from `tokens[start:stop]`.

    The file is mapped anew for each item: a mapping that stays would keep all that was ever read in
    the process's memory, and a 1 GB corpus would cost 1 GB.
    """

    def __init__(self, path: Path, dtype: str, start: int, stop: int, batch: int, length: int):
        self.path, self.dtype, self.length = path, dtype, length
        self.per_stream = (stop - start - 1) // batch
        self.starts = start + self.per_stream * np.arange(batch)

    def __len__(self) -> int:
        return -(-self.per_stream // self.length)

    def __getitem__(self, index: int) -> TextBatch:
        first = index * self.length
        length = min(self.length, self.per_stream - first)
        tokens = np.memmap(self.path, self.dtype, mode="r")
        windows = tokens[self.starts[:, None] + np.arange(first, first + length + 1)]  # (B, T + 1)
        windows = torch.from_numpy(windows.astype(np.int64))
        return TextBatch(windows[:, :-1], windows[:, 1:])


class ColdWindows(Dataset):
    """Item i is 64 neighbouring windows of 256 characters, each to be read from a zero state."""

    def __init__(self, path: Path, dtype: str, start: int, stop: int):
        offset = start * np.dtype(dtype).itemsize
        self.tokens = np.fromfile(path, dtype, count=stop - start, offset=offset)
        self.starts = np.arange(0, len(self.tokens) - COLD_WINDOW, COLD_WINDOW)

    def __len__(self) -> int:
        return -(-len(self.starts) // 64)

    def __getitem__(self, index: int) -> TextBatch:
        starts = self.starts[64 * index : 64 * (index + 1), None]
        windows = torch.from_numpy(self.tokens[starts + np.arange(COLD_WINDOW + 1)].astype(np.int64))
        return TextBatch(windows[:, :-1], windows[:, 1:])


class TextData(L.LightningDataModule):
    """`stdlib`, `shakespeare` or `textfile`: the first part of the corpus trains, the last validates.

    The vocabulary is that of the training part, or that of a checkpoint's `info`.
    Raises ValueError or OSError, in one sentence, for a text that is missing, not UTF-8 or too short.

    A subclass for another kind of text gives `prepare_data`, which sets `info`, the file `encoded` of ids,
    `meta` and `stop`, where the validation part ends.
    """

    unit = "characters"
    held_out = "val_fraction"  # the key that says how much validates

    def __init__(self, config: Any, seed: int = 0, info: dict | None = None):
        super().__init__()
        self.config = config
        self.checkpoint = info

    def prepare_data(self) -> None:
        config: TextConfig = self.config
        cache = Path(config.cache)
        cache.mkdir(parents=True, exist_ok=True)
        corpus = CORPORA[config.name](config, cache)
        vocabulary = None if self.checkpoint is None else self.checkpoint["vocabulary"]
        self.encoded, self.meta = encode(corpus, config.val_fraction, cache, vocabulary)
        train, total = self.meta["train"], self.meta["total"]
        self.stop = min(total, train + (config.max_val_chars or total))
        source = f"{corpus.name}, sha256 {self.meta['sha256'][:12]}"
        self.info = {"vocabulary": self.meta["vocabulary"], "source": source}

    def setup(self, stage: str) -> None:
        config, meta, stop = self.config, self.meta, self.stop
        train, total = meta["train"], meta["total"]
        batch, length = config.batch_size, config.sequence_length
        if train < batch * length + 1:
            raise ValueError(
                f"data={config.name} has {train} {self.unit} to train on, fewer than "
                f"data.batch_size={batch} × data.sequence_length={length} + 1; make one of them smaller"
            )
        if stop - train <= COLD_WINDOW:
            raise ValueError(
                f"data.{self.held_out}={getattr(config, self.held_out)} leaves {stop - train} of {total} "
                f"{self.unit} for validation, which needs more than {COLD_WINDOW}"
            )
        file, dtype = self.encoded, meta["dtype"]
        self.train_set = Streams(file, dtype, 0, train, batch, length)
        self.val_sets = [
            Streams(file, dtype, train, stop, 1, STATEFUL_WINDOW),
            ColdWindows(file, dtype, train, stop),
        ]

    def read_ids(self, start: int, count: int) -> np.ndarray:
        """At most `count` ids of the text from number `start` on, int64."""
        dtype = np.dtype(self.meta["dtype"])
        return np.fromfile(self.encoded, dtype, count, offset=start * dtype.itemsize).astype(np.int64)

    def train_dataloader(self) -> StatefulDataLoader:
        # each pass draws a seed: not from dropout's random numbers
        return StatefulDataLoader(
            self.train_set,
            batch_size=None,
            collate_fn=distributed.own_rows_collate(),  # streams are rows
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> list[DataLoader]:
        return [evaluation_loader(val_set) for val_set in self.val_sets]


def characters(path: Path, limit: int | None = None) -> Iterator[np.ndarray]:
    """The code points of a UTF-8 file, at most `limit` of them, in chunks of uint32."""
    with path.open(encoding="utf-8", newline="") as file:
        while chunk := file.read(CHUNK if limit is None else min(CHUNK, limit)):
            limit = None if limit is None else limit - len(chunk)
            yield np.frombuffer(chunk.encode("utf-32-le"), np.uint32)


def encode(
    corpus: Corpus, val_fraction: float, cache: Path, vocabulary: str | None = None
) -> tuple[Path, dict]:
    """Encode a text once into a file of ids that can be memory-mapped, keyed by its content.

    Without a `vocabulary`, it is made of the characters of the training part. Returns that file and
    what describes it: `vocabulary` (a string; the id is the index, 0 is UNKNOWN), `dtype`, `train` and
    `total` (characters), `sha256`.
    """
    path = corpus.path
    digest, total = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            bytes_ = np.frombuffer(block, np.uint8)
            total += int(np.count_nonzero(bytes_ & 0xC0 != 0x80))  # all but continuation bytes
    key = f"{digest.hexdigest()[:16]}-{corpus.train or val_fraction}"
    if vocabulary is not None:
        key += "-" + hashlib.sha256(vocabulary.encode()).hexdigest()[:8]
    encoded, described = cache / f"{key}.bin", cache / f"{key}.json"
    if encoded.exists() and described.exists():
        return encoded, json.loads(described.read_text())
    if total == 0:
        raise ValueError(f"{path} is empty")

    train = corpus.train or int(total * (1 - val_fraction))
    try:
        if vocabulary is None:
            seen = np.zeros(0x110000, bool)  # one flag a code point
            for points in characters(path, limit=train):
                seen[points] = True
            seen[ord(UNKNOWN)] = False  # it comes first
            vocabulary = UNKNOWN + "".join(map(chr, np.flatnonzero(seen)))
        size = len(vocabulary)
        dtype = np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.uint32
        ids = np.zeros(0x110000, dtype)
        ids[[ord(character) for character in vocabulary]] = np.arange(size)
        with replace_file(encoded) as file:
            file.writelines(ids[points].tobytes() for points in characters(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    meta = {
        "vocabulary": vocabulary,
        "dtype": np.dtype(dtype).name,
        "train": train,
        "total": total,
        "sha256": digest.hexdigest(),
    }
    with replace_file(described) as file:
        file.write(json.dumps(meta).encode())
    return encoded, meta
