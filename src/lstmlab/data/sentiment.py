"""Reviews and what they think of the film: what the sentiment data sets share, and IMDB."""

import html
import re
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lstmlab.data.batching import BucketedData, Ragged
from lstmlab.data.files import read_splits
from lstmlab.data.tokenization import encode, fit_and_encode, load_tokenizer

LABELS = ["negative", "positive"]
TAG = re.compile(r"</?[a-zA-Z][^>]*>")


class SentimentBatch(NamedTuple):
    tokens: Tensor  # (B, T) int64, padded with 0
    lengths: Tensor  # (B,) int64
    labels: Tensor  # (B,): numbers of classes, int64; of two classes float32: 1 positive, 0 negative


class SentimentDataset(Dataset):
    def __init__(self, reviews: Ragged, labels: list[int], max_length: int, classes: int):
        self.reviews, self.max_length = reviews, max_length
        self.labels = np.array(labels, np.float32 if classes == 2 else np.int64)
        self.lengths = np.minimum(reviews.lengths, max_length)

    def __len__(self) -> int:
        return len(self.reviews)

    def __getitem__(self, rows: np.ndarray) -> SentimentBatch:
        tokens, lengths = self.reviews.pad(rows, self.max_length)
        return SentimentBatch(tokens, lengths, torch.from_numpy(self.labels[rows]))


class SentimentData(BucketedData):
    """Texts as tokens. A subclass gives `read`: (texts, labels) of the splits `train`, `val` and `test`.

    Labels are numbers of `classes`, which `read` may set. A text longer than `max_length`
    tokens keeps its first quarter of that and, for the rest, its end (head + tail, Sun et al. 2019: openings
    and conclusions carry the verdict).
    """

    classes: list[str] = LABELS
    strip_markup = True  # HTML is removed from the texts

    def read(self) -> dict[str, tuple[list[str], list[int]]]:
        raise NotImplementedError

    def load(self) -> dict[str, SentimentDataset]:
        splits = self.read()
        texts = {split: column for split, (column, _) in splits.items()}
        if self.strip_markup:
            texts = {split: [clean(text) for text in column] for split, column in texts.items()}
        self.tokenizer, encoded = fit_and_encode(texts, ["train"], self.config, self.trained)
        return {
            split: SentimentDataset(encoded[split], labels, self.config.max_length, len(self.classes))
            for split, (_, labels) in splits.items()
        }

    @property
    def info(self) -> dict:
        labels = self.datasets["train"].labels.astype(np.int64)
        return {
            "tokenizer": self.tokenizer.to_str(),
            "vocab_size": self.tokenizer.get_vocab_size(),
            "max_length": self.config.max_length,
            "labels": self.classes,
            "label_counts": np.bincount(labels, minlength=len(self.classes)).tolist(),  # of training
            "strip_markup": self.strip_markup,
        } | self.described


def clean(text: str) -> str:
    """The text without HTML tags and entities."""
    return html.unescape(TAG.sub(" ", text))


def encode_reviews(info: dict, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Any texts as the model was trained on them: tokens (B, T) and lengths (B,)."""
    if info.get("strip_markup", True):
        texts = [clean(text) for text in texts]
    reviews = encode(load_tokenizer(info["tokenizer"]), texts)
    return reviews.pad(np.arange(len(texts)), info["max_length"])


class IMDB(SentimentData):
    """`data=imdb`: 25,000 reviews to train on and 25,000 to test on, of other films (Maas et al. 2011).

    `val_size` of the training reviews, the same for every seed, validate. The test set is as
    published. Training reviews that occur in it too (123) and repetitions (96) are left out, so that
    nothing is both trained and tested on.
    """

    def read(self) -> dict[str, tuple[list[str], list[int]]]:
        files = {"train": "train-*.parquet", "test": "test-*.parquet"}
        columns = {"text": str, "label": int}
        splits = read_splits(self.config, files, columns, "data=reviews")
        for split, table in splits.items():
            if wrong := set(table["label"]) - {0, 1}:
                raise ValueError(f"{split} of data={self.config.name} has label {min(wrong)}, not 0 or 1")
        test, train = splits["test"], splits["train"]
        tested = set(test["text"])
        reviews = {
            text: label
            for text, label in zip(train["text"], train["label"], strict=True)
            if text not in tested
        }
        texts, held_out = list(reviews), self.config.val_size
        if held_out >= len(texts):
            raise ValueError(
                f"data.val_size={held_out} must be less than the {len(texts)} training reviews that are "
                "neither repeated nor in test"
            )
        order = np.random.default_rng(0).permutation(len(texts))  # the file is sorted by label

        def part(rows: np.ndarray) -> tuple[list[str], list[int]]:
            return [texts[i] for i in rows], [reviews[texts[i]] for i in rows]

        return {
            "train": part(order[held_out:]),
            "val": part(order[:held_out]),
            "test": (test["text"], test["label"]),
        }
