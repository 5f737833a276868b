"""A user's own texts with their labels, of any number of classes."""

from collections import Counter
from typing import Any

import numpy as np

from lstmlab.data.parts import (
    check_texts,
    complete_parts,
    describe_parts,
    hash_parts,
    leave_out_repeated,
)
from lstmlab.data.sentiment import SentimentData
from lstmlab.data.sources import describe_source, read_parts
from lstmlab.schema import ClassesConfig


class Classes(SentimentData):
    """`data=classes`: the columns `text` and `label` of files or of a data set of the hub.

    What has no part of its own to validate or to test on is split off from training, stratified, with a fixed
    seed. A validation or test part without any label counts as missing. Training texts that also occur in one
    of the others are left out.
    """

    def __init__(self, config: ClassesConfig, seed: int = 0, info: dict | None = None):
        super().__init__(config, seed, info)
        self.strip_markup = config.strip_markup

    def read(self) -> dict[str, tuple[list[str], list[int]]]:
        config, source = self.config, describe_source(self.config)
        parts = read_parts(config, [config.text, config.label])
        check_texts(parts, [config.text], source)
        labels, notes = f"its {config.label}", []
        for part in ("val", "test"):
            if part in parts and all(label is None or label == "" for label in parts[part][config.label]):
                del parts[part]
                notes.append(f"{part} has no labels and is not used")
        for part, table in parts.items():
            where = f"{part} of {source}"
            table[config.label] = [
                name_label(label, f"row {row} of {where} has {label!r} for {labels}")
                for row, label in enumerate(table[config.label], 1)
            ]
        if self.checkpoint is None:
            self.classes = find_classes(parts["train"][config.label], config, source)
        else:
            self.classes = self.checkpoint["labels"]
        for part, table in parts.items():
            if unknown := sorted(set(table[config.label]) - set(self.classes)):
                among = ", ".join(self.classes[:10])
                raise ValueError(
                    f"{part} of {source} has the label {unknown[0]}, which training does not have: {among}"
                )

        numbers = {name: number for number, name in enumerate(self.classes)}
        groups = np.array([numbers[label] for label in parts["train"][config.label]])
        digest = hash_parts(parts)
        parts, made = complete_parts(parts, config, self.checkpoint, groups)
        if self.checkpoint is None or digest == self.checkpoint["digest"]:
            parts, more = leave_out_repeated(parts, config.text)
            notes += more
            if gone := sorted({*self.classes} - {*parts["train"][config.label]}):
                raise ValueError(
                    f"every training text of the class {gone[0]} of {source} occurs in val or test "
                    "too, and would be left out"
                )
        notes = [f"{len(numbers)} classes", *notes, f"sha256 {digest}"]
        self.described = {"source": describe_parts(config, parts, made, notes), "digest": digest}
        return {
            part: (table[config.text], [numbers[label] for label in table[config.label]])
            for part, table in parts.items()
        }


def name_label(label: Any, found: str) -> str:
    """A label, which is a word, a whole number or a truth value, as the name of its class."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    name = str(label).strip() if isinstance(label, str | int) else ""
    if not name:
        raise ValueError(f"{found}; labels are words or whole numbers, and every row needs one")
    return name


def find_classes(labels: list[str], config: ClassesConfig, source: str) -> list[str]:
    """The names of the classes: numbers by size, words by alphabet."""
    counts = Counter(labels)
    if len(counts) == 1:
        raise ValueError(
            f"train of {source} has one class alone, {labels[0]} in column {config.label}; "
            "it takes two to tell apart"
        )
    if len(counts) > len(labels) / 2:
        raise ValueError(
            f"data.label={config.label} has {len(counts):,} different labels in {len(labels):,} rows of "
            f"{source}; name the column that holds the classes"
        )
    try:
        return sorted(counts, key=int)
    except ValueError:
        return sorted(counts)
