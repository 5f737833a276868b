"""Pairs of texts: what the translation data sets share, and Multi30k."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lstmlab.data.batching import BucketedData, Ragged, bucketed
from lstmlab.data.bpe_dropout import BPEDropout
from lstmlab.data.files import read_splits
from lstmlab.data.parts import check_texts
from lstmlab.data.sources import read_files
from lstmlab.data.tokenization import (
    BOS,
    EOS,
    PAD,
    UNK,
    delimit,
    encode,
    fit_and_encode,
    load_tokenizer,
)


class TranslationBatch(NamedTuple):
    source: Tensor  # (B, S) int64: tokens, EOS, padding 0
    source_lengths: Tensor  # (B,) int64, EOS counted
    target: Tensor  # (B, T) int64: BOS, tokens, EOS, padding 0
    target_lengths: Tensor  # (B,) int64, BOS and EOS counted


class TranslationDataset(Dataset):
    def __init__(self, source: Ragged, target: Ragged):
        self.source, self.target = source, target
        longer = np.maximum(source.lengths, target.lengths)
        self.lengths = 1000 * longer + source.lengths + target.lengths  # pads less than the sum

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: np.ndarray) -> TranslationBatch:
        return TranslationBatch(*self.source.pad(rows), *self.target.pad(rows))


class ResegmentedPairs(TranslationDataset):
    """Pairs that are encoded again for each epoch. An item of the data set is (epoch, rows).

    source, target: as they are without dropout. dropout: the sources and then the targets. What an epoch
    reads depends on `seed` and its number alone, so a resumed run reads the same.
    """

    def __init__(self, source: Ragged, target: Ragged, dropout: BPEDropout, seed: int):
        super().__init__(source, target)
        self.dropout, self.seed = dropout, seed
        self.epoch, self.pairs = -1, TranslationDataset(source, target)

    def of_epoch(self, epoch: int) -> TranslationDataset:
        if epoch != self.epoch:
            # Another stream of random numbers than that of the order of the batches
            tokens = self.dropout.encode(np.random.default_rng((self.seed, epoch, 1)))
            source, target = np.split(np.arange(len(tokens)), 2)
            self.pairs = delimit_pairs(tokens.take(source), tokens.take(target))
            self.epoch = epoch
        return self.pairs

    def __getitem__(self, item: Any) -> TranslationBatch:
        epoch, rows = item
        return self.of_epoch(epoch)[rows]  # a worker of the loader has its own copy


def delimit_pairs(source: Ragged, target: Ragged) -> TranslationDataset:
    return TranslationDataset(delimit(source, None, EOS), delimit(target, BOS, EOS))


class TranslationData(BucketedData):
    """Pairs as tokens of one vocabulary. A subclass gives `read`: (sources, targets) of each split.

    Pairs with a side of more than `max_length` tokens are left out of training, never of validation or test.
    With `bpe_dropout` the training pairs are encoded again for each epoch; see `BPEDropout`.
    """

    def read(self) -> dict[str, tuple[list[str], list[str]]]:
        raise NotImplementedError

    def load(self) -> dict[str, TranslationDataset]:
        splits = self.read()
        columns: dict[str, list[str]] = {}
        for split, (sources, targets) in splits.items():
            columns |= {f"{split}.source": sources, f"{split}.target": targets}
        self.tokenizer, encoded = fit_and_encode(
            columns,
            ["train.source", "train.target"],
            self.config,
            self.trained,
        )
        limit = self.config.max_length
        source, target = encoded["train.source"], encoded["train.target"]
        fits = np.flatnonzero(np.maximum(source.lengths, target.lengths) <= limit)
        if not len(fits):
            raise ValueError(f"data.max_length={limit} leaves no training pair: all are longer")
        encoded |= {"train.source": source.take(fits), "train.target": target.take(fits)}
        datasets = {
            split: delimit_pairs(encoded[f"{split}.source"], encoded[f"{split}.target"]) for split in splits
        }
        if self.config.bpe_dropout:
            texts = [column[row] for column in splits["train"] for row in fits]
            dropout = BPEDropout(self.tokenizer, texts, self.config.bpe_dropout)
            plain = datasets["train"]
            datasets["train"] = ResegmentedPairs(plain.source, plain.target, dropout, self.seed)
        return datasets

    def plan(self, epoch: int) -> list[Any]:
        dataset = self.datasets["train"]
        if not isinstance(dataset, ResegmentedPairs):
            return super().plan(epoch)
        lengths = dataset.of_epoch(epoch).lengths
        return [(epoch, rows) for rows in bucketed(lengths, self.config.batch_size, self.seed, epoch)]

    def load_test(self, file: str) -> None:
        """Load only a test set, from a file with the columns that `data.source` and `data.target` name.

        Raises OSError or ValueError, in one sentence, for a file that cannot be read or lacks a text.
        """
        columns = [self.config.source, self.config.target]
        if not (path := Path(file).expanduser()).is_file():
            what = "a folder, not a file" if path.is_dir() else "no such file"
            raise FileNotFoundError(f"data.test={file}: {what}")
        table = read_files([path], "test", columns)
        if not table[columns[0]]:
            raise ValueError(f"data.test={file} has no rows")
        check_texts({"test": table}, columns, file)
        assert self.trained is not None  # by a checkpoint
        source, target = (encode(load_tokenizer(self.trained), table[name]) for name in columns)
        self.datasets = {"test": delimit_pairs(source, target)}

    @property
    def info(self) -> dict:
        return {
            "tokenizer": self.tokenizer.to_str(),
            "vocab_size": self.tokenizer.get_vocab_size(),
            "max_length": self.config.max_length,
            "max_target_length": int(self.datasets["train"].target.lengths.max()),
            "pad": PAD,
            "bos": BOS,
            "eos": EOS,
            "unk": UNK,
        } | self.described


def encode_sources(info: dict, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Any texts as source (B, S) and source_lengths (B,), as the model was trained on them.

    Raises ValueError for a text of more tokens than the model was trained on.
    """
    sources = encode(load_tokenizer(info["tokenizer"]), texts)
    longest = int(sources.lengths.max())
    if longest > info["max_length"]:
        raise ValueError(
            f"a text has {longest} tokens, but this model was trained on at most {info['max_length']} "
            "(data.max_length): translate it sentence by sentence"
        )
    return delimit(sources, None, EOS).pad(np.arange(len(texts)))


def decode_targets(info: dict, sequences: list[list[int]]) -> list[str]:
    """The texts of target ids; BOS and padding are skipped, and all from EOS on."""
    ends = [ids.index(EOS) if EOS in ids else len(ids) for ids in sequences]
    return load_tokenizer(info["tokenizer"]).decode_batch(
        [ids[:end] for ids, end in zip(sequences, ends, strict=True)]
    )


class Multi30k(TranslationData):
    """`data=multi30k`: captions of pictures, English and German (Elliott et al. 2016).

    Decoding the target ids gives back the reference, byte for byte, but in lower case with `lowercase`.
    """

    def read(self) -> dict[str, tuple[list[str], list[str]]]:
        source, target = self.config.source, self.config.target
        files = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
        splits = read_splits(self.config, files, {source: str, target: str}, "data=dates")
        return {
            split: (splits[name][source], splits[name][target])
            for split, name in [("train", "train"), ("val", "validation"), ("test", "test")]
        }
