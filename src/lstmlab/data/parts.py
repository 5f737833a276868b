"""Training, validation and test rows of a user's own data: checked, completed, described."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from lstmlab.data.sources import NAMES, Columns, describe_source
from lstmlab.schema import SourceConfig

SEED = 0  # of what is split off: the same rows for every seed of a run


def check_texts(parts: dict[str, Columns], columns: list[str], source: str) -> None:
    """Raise ValueError at the first value that is not a text, or is an empty one."""
    for part, table in parts.items():
        for name in columns:
            for row, value in enumerate(table[name], 1):
                if not isinstance(value, str):
                    what = "nothing" if value is None else f"{value!r}"
                    raise ValueError(
                        f"row {row} of {part} of {source} has {what} for its {name}, which must be a text"
                    )
                if not value.strip():
                    raise ValueError(
                        f"row {row} of {part} of {source} has an empty {name}; fill it in or remove the row"
                    )


def split_missing(
    parts: dict[str, Columns], config: SourceConfig, groups: np.ndarray
) -> tuple[dict[str, Columns], list[str]]:
    """All three parts; what is missing is split off from train, whose rows are of `groups` (n,).

    Each group gives the same share, and keeps two rows. Beside the parts come the names of those split off.
    """
    rng, rows = np.random.default_rng(SEED), np.arange(len(groups))
    train, parts, made = parts["train"], dict(parts), []
    for part, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        if part in parts:
            continue
        shuffled = rng.permutation(rows)
        held: list[np.ndarray] = []
        for group in np.unique(groups):
            members = shuffled[groups[shuffled] == group]
            count = max(1, round(fraction * np.count_nonzero(groups == group)))
            held.append(members[: max(0, min(count, len(members) - 2))])
        chosen = np.sort(np.concatenate(held))
        if not len(chosen):
            raise ValueError(
                f"{describe_source(config)} has {len(groups)} rows, too few to split off {part}; "
                f"give it with data.{part}=FILE"
            )
        rows = np.setdiff1d(rows, chosen)
        parts[part] = take_rows(train, chosen)
        made.append(part)
    parts["train"] = take_rows(train, rows)
    return {part: parts[part] for part in NAMES}, made


def take_rows(table: Columns, rows: Iterable[int]) -> Columns:
    rows = list(rows)
    return {name: [values[row] for row in rows] for name, values in table.items()}


def complete_parts(
    parts: dict[str, Columns], config: SourceConfig, info: dict | None, groups: np.ndarray
) -> tuple[dict[str, Columns], list[str]]:
    """All three parts, and the names of those that were split off: see `split_missing`.

    info: that of a checkpoint, or None. Where that was trained on other data than these, a single file is
    validated and tested on as a whole.
    """
    if info is not None and info["digest"] != hash_parts(parts) and parts.keys() == {"train"}:
        return dict.fromkeys(NAMES, parts["train"]), []
    return split_missing(parts, config, groups)


def leave_out_repeated(parts: dict[str, Columns], column: str) -> tuple[dict[str, Columns], list[str]]:
    """The parts, where no training text occurs in another part, and what there is to say about that."""
    texts = {part: table[column] for part, table in parts.items()}
    held_out, notes = {*texts["val"], *texts["test"]}, []
    rows = [row for row, text in enumerate(texts["train"]) if text not in held_out]
    if repeated := len(texts["train"]) - len(rows):
        notes.append(f"training texts left out since they occur in val or test too: {repeated:,}")
    if shared := len({*texts["val"]} & {*texts["test"]}):
        notes.append(f"texts of val that occur in test too: {shared:,}")
    return parts | {"train": take_rows(parts["train"], rows)}, notes


def describe_parts(config: SourceConfig, parts: dict[str, Columns], made: list[str], notes: list[str]) -> str:
    """One line: the source, the size of each part and what was done."""
    sizes = ", ".join(
        f"{len(next(iter(table.values()))):,} rows to {verb}" + " (split off)" * (part in made)
        for (part, table), verb in zip(parts.items(), ("train", "validate", "test"), strict=True)
    )
    return "; ".join([f"{describe_source(config)}: {sizes}", *notes])


def hash_parts(parts: dict[str, Columns]) -> str:
    """The first digits of the sha256 of all that was read, by which changed data are noticed."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:12]
