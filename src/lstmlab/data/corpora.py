"""The corpora of the character language model: each is one UTF-8 file, whose first part trains."""

import gzip
import hashlib
import json
import platform
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from glob import escape, iglob
from itertools import islice
from os.path import isfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lstmlab.atomic import replace_file
from lstmlab.schema import ShakespeareConfig, StdlibConfig, TextFileConfig

SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CHUNK = 1 << 22  # characters held in memory at once
MOST_FILES = 50_000  # of a corpus: "/" is a mistake


class Corpus(NamedTuple):
    path: Path
    name: str  # what is shown of it, beside its sha256
    train: int | None = None  # characters that train; None: all but the share data.val_fraction


def stdlib(config: StdlibConfig, cache: Path) -> Corpus:
    """Write the interpreter's own top-level modules, mixed by a hash of their names, to one file.

    Whole modules are held out, the share `val_fraction` of them, small and large. The validation part is a
    stretch from the middle of each of these, so that a limit leaves it as varied as it is.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    names = [name for name in sys.stdlib_module_names if (folder / f"{name}.py").is_file()]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in names}
    by_size = sorted(names, key=lambda name: len(texts[name]))
    counted = np.floor(np.arange(len(names) + 1) * config.val_fraction + 0.5)  # modules held out so far
    held_out = {name for name, more in zip(by_size, np.diff(counted), strict=True) if more}
    train = int(config.max_chars * (1 - config.val_fraction))
    limit = min(config.max_chars - train, config.max_val_chars or config.max_chars)

    first = "".join(texts[name] for name in names if name not in held_out)[:train]
    parts = [texts[name] for name in names if name in held_out]
    ends = np.cumsum([len(part) for part in parts])
    lengths = np.diff(np.rint(ends * min(1, limit / ends[-1])).astype(int), prepend=0)
    last = "".join(
        part[(len(part) - length) // 2 :][:length] for part, length in zip(parts, lengths, strict=True)
    )
    version = platform.python_version()
    path = cache / f"stdlib-{version}-{config.max_chars}-{config.val_fraction}-{config.max_val_chars}.txt"
    with replace_file(path) as file:
        file.write((first + last).encode())
    return Corpus(path, f"stdlib of Python {version}", len(first))


def shakespeare(config: ShakespeareConfig, cache: Path) -> Corpus:
    """Find Tiny Shakespeare in data.path or fetch it from the hub, and check that it is the one."""
    if config.path is not None:
        path = Path(config.path)
        path = path / "input.txt" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"data.path={config.path}: no file input.txt there")
    else:
        path = cache / "shakespeare.txt"
        if not path.exists():
            from lstmlab.data.files import read_splits  # with pyarrow, which no other text needs

            files = {split: f"{split}/*.parquet" for split in ("train", "validation", "test")}
            splits = read_splits(config, files, {"text": str}, "data=stdlib")
            with replace_file(path) as file:
                file.writelines("".join(part["text"]).encode() for part in splits.values())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise ValueError(f"{path} is not Tiny Shakespeare: its sha256 is {found}, not {SHAKESPEARE_SHA256}")
    return Corpus(path, config.name)


def textfile(config: TextFileConfig, cache: Path) -> Corpus:
    """The file that data.path names; several, or a compressed one, are written to one file.

    With data.split=each_file the first parts of all files come first and then their ends, of which each
    keeps its share if validation is limited.
    """
    files = find_texts(config.path)
    if len(files) == 1 and files[0].suffix != ".gz":
        return Corpus(files[0], config.name)
    counts = [sum(map(len, read_characters(file))) for file in files]
    if not sum(counts):
        raise ValueError(f"data.path={config.path} holds no text")
    settings: list[Any] = [config.split, config.val_fraction, config.max_val_chars]
    settings += [str(file.absolute()) for file in files]
    path = cache / f"textfile-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}.txt"
    cuts, kept = counts, 1.0
    if config.split == "each_file":
        cuts = [int(count * (1 - config.val_fraction)) for count in counts]
        held_out = sum(counts) - sum(cuts)
        kept = min(1.0, (config.max_val_chars or held_out) / held_out)
    with replace_file(path) as joined:
        train = sum(copy_text(file, joined, 0, cut) for file, cut in zip(files, cuts, strict=True))
        for file, cut, count in zip(files, cuts, counts, strict=True):
            copy_text(file, joined, cut, cut + round((count - cut) * kept))
    name = f"{config.name}, {len(files)} {'files' if len(files) > 1 else 'file'}"
    return Corpus(path, name, train if config.split == "each_file" else None)


def copy_text(source: Path, target: BinaryIO, start: int, stop: int) -> int:
    """Append characters `start` to `stop`, and a line break if there is none; returns their number."""
    count, last = 0, "\n"
    for piece in read_characters(source, start, stop):
        target.write(piece.encode())
        count, last = count + len(piece), piece[-1]
    target.write(b"\n" * (last != "\n"))
    return count + (last != "\n")


def find_texts(path: str) -> list[Path]:
    """The file, all files of the folder or those that match the glob `path`, without hidden ones."""
    named = Path(path).expanduser()
    if named.is_file():
        return [named]
    pattern = f"{escape(str(named))}/**/*" if named.is_dir() else str(named)
    found = list(islice(filter(isfile, iglob(pattern, recursive=True)), MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise ValueError(f"data.path={path} holds more than {MOST_FILES:,} files; name a smaller folder")
    files = sorted(map(Path, found))
    if not files:
        what = "a folder without files" if named.is_dir() else "no such file, and none that matches"
        raise FileNotFoundError(f"data.path={path}: {what}")
    return files


def read_characters(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Characters `start` to `stop` of a UTF-8 file, which may be compressed by gzip, piece by piece."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            position = 0
            while (stop is None or position < stop) and (
                piece := file.read(CHUNK if stop is None else min(CHUNK, stop - position))
            ):
                if wanted := piece[max(0, start - position) :]:
                    yield wanted
                position += len(piece)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error}; a glob such as 'FOLDER/*.txt' leaves other files out"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ValueError(f"{path} is damaged, or not compressed by gzip") from None


CORPORA: dict[str, Callable[[Any, Path], Corpus]] = {
    "stdlib": stdlib,
    "shakespeare": shakespeare,
    "textfile": textfile,
}
