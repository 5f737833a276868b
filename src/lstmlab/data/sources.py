"""A user's own data: columns of CSV, TSV, JSON lines or Parquet files, or of any data set of the hub.

`datasets` reads them, all but JSON lines: its reader turns a text such as 2026-11-22 into a time. Before it
reads, the encoding is checked, since its errors name no line.
"""

import csv
import io
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lstmlab.data.hub import load_all_splits
from lstmlab.schema import SourceConfig

Columns = dict[str, list[Any]]  # the values by name; None where there is none

NAMES = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
PART = re.compile(rf"(?<![a-z0-9])({'|'.join(name for names in NAMES.values() for name in names)})(?![a-z])")
QUOTED = re.compile(r'(?:^|\t)"((?:[^"]|"")*"(?=\t|\r?$))?', re.MULTILINE)  # group 1: it is closed


class WrongColumns(ValueError):
    """A source does not have the columns that it is to be read for: one sentence."""


def read_parts(config: SourceConfig, columns: list[str]) -> dict[str, Columns]:
    """The `columns` of the parts train, val and test, as far as the source has them; train it always has.

    Raises OSError or ValueError, in one sentence, for what cannot be found or read.
    """
    if config.path is None and config.train is None:
        parts = read_hub(config, columns)
    else:
        parts = {
            part: read_files(files, part, columns) for part, files in find_files(config).items() if files
        }
    for part, table in parts.items():
        if not len(table[columns[0]]):
            raise ValueError(f"{part} of {describe_source(config)} has no rows")
    return parts


def describe_source(config: SourceConfig) -> str:
    """What the user named: a path, a file or a data set of the hub."""
    if config.path is None and config.train is None:
        return f"{config.hub} ({config.hub_config})" if config.hub_config else str(config.hub)
    return str(config.path or config.train)


# --- files ---


def find_files(config: SourceConfig) -> dict[str, list[Path]]:
    """The files of each part: those that data.train, data.val and data.test name, or else those of data.path.

    In a folder a part is told by its name in the path of a file: train.csv, data/test-00000-of-00001.parquet.
    """
    named = {part: [Path(file).expanduser()] for part in NAMES if (file := getattr(config, part))}
    for part, (file,) in named.items():
        if not file.is_file():
            raise FileNotFoundError(
                f"data.{part}={file}: {'a folder, not a file' if file.is_dir() else 'no such file'}"
            )
    if config.path is None:
        return named
    path = Path(config.path).expanduser()
    if path.is_file():
        return {"train": [path]} | named
    if not path.is_dir():
        raise FileNotFoundError(f"data.path={path}: no such file or folder")

    found: dict[str, list[Path]] = {part: [] for part in NAMES}
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS)
    for file in files:
        if match := PART.search(file.relative_to(path).as_posix().lower()):
            part = next(part for part, names in NAMES.items() if match[1] in names)
            found[part].append(file)
    if len(files) == 1 and not any(found.values()):
        found["train"] = files
    found |= named
    if not found["train"]:
        holds = ", ".join(file.name for file in files[:5]) or f"no file that ends in {', '.join(READERS)}"
        raise FileNotFoundError(
            f"data.path={path} has no file to train on, such as train.csv: it holds {holds}"
        )
    for part, members in found.items():
        if len({file.suffix.lower() for file in members}) > 1:
            raise ValueError(
                f"data.path={path} has files of two kinds for {part}, "
                f"{', '.join(file.name for file in members)}; name one with data.{part}=FILE"
            )
    return found


def read_files(files: list[Path], part: str, columns: list[str]) -> Columns:
    """The columns of the files of one part, one after the other."""
    merged: Columns = {name: [] for name in columns}
    for file in files:
        read = READERS.get(file.suffix.lower())
        if read is None:
            raise ValueError(
                f"{file} is not a file to read for {part}: its name must end in {', '.join(READERS)}"
            )
        for name, values in read(file, columns).items():
            merged[name] += values
    return merged


def check_columns(columns: list[str], known: Iterable[str], source: object, more: str = "") -> None:
    known = list(known)
    for name in columns:
        if name not in known:
            shown = ", ".join(known) or "none at all"
            raise WrongColumns(f"{source} has no column {name}, only {shown}{more}")
        if known.count(name) > 1:
            raise WrongColumns(f"{source} has {known.count(name)} columns named {name}; rename all but one")


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError, with the line, if it is not UTF-8."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        wrong = text.find("\0")
        line = 1 + text.count("\n", 0, max(wrong, 0))
    except UnicodeDecodeError as error:
        wrong, line = error.start, 1 + content.count(b"\n", 0, error.start)
    if wrong >= 0:
        raise ValueError(f"line {line} of {path} is not UTF-8 text; save the file as UTF-8")
    return text


def read_csv(path: Path, columns: list[str] | None = None) -> Columns:
    """Columns, or all of them, of a file whose first line names them; every value is a string.

    A CSV file is separated by commas, semicolons or tabs, whichever its first line has most of. In a TSV file
    quotes are characters like any other, unless all fields that open with one are closed by one.
    """
    text = read_text(path)
    lines = io.StringIO(text, newline="")
    first = next((line for line in lines if line.strip()), "")
    tabs = path.suffix.lower() == ".tsv"
    separator = "\t" if tabs else max(",;\t", key=first.count)
    literal = tabs and not all(match[1] for match in QUOTED.finditer(text))
    quoting: Any = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
    lines.seek(text.find(first))
    header = next(csv.reader(lines, delimiter=separator, quoting=quoting), [])
    names = [name.strip() for name in header]
    columns = names if columns is None else columns
    check_columns(columns, names, path, "; its first line must name the columns")
    numbered = [f"{number}" for number in range(len(header))]  # whatever the names are

    from pandas.errors import ParserWarning

    with warnings.catch_warnings():
        # Rows with more fields than the first line has names: pandas would cut them
        warnings.simplefilter("error", ParserWarning)
        values = read_dataset(
            path,
            "from_csv",
            [numbered[names.index(name)] for name in columns],
            features=dict.fromkeys(numbered, "string"),
            keep_default_na=False,
            sep=separator,
            quoting=quoting,
            names=numbered,
            header=0,
            index_col=False,
        )
    return {name: values[numbered[names.index(name)]] for name in columns}


def read_json_lines(path: Path, columns: list[str] | None = None) -> Columns:
    """Columns, or all of them, of a file with one JSON object per line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f'line {number} of {path} must be a JSON object such as {{"text": "…"}}')
            rows.append(row)
    known = list(dict.fromkeys(key for row in rows for key in row))
    columns = known if columns is None else columns
    if rows:
        check_columns(columns, known, path)
    return {name: [row.get(name) for row in rows] for name in columns}


def read_parquet(path: Path, columns: list[str] | None = None) -> Columns:
    from pyarrow.parquet import read_schema

    with explained(path):
        known = read_schema(path).names
    columns = known if columns is None else columns
    whole = [name if name in known else name.partition(".")[0] for name in columns]
    check_columns([name for name, top in zip(columns, whole, strict=True) if top not in known], known, path)
    return read_dataset(path, "from_parquet", columns, columns=list(dict.fromkeys(whole)))


READERS: dict[str, Callable[..., Columns]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
}


def read_dataset(path: Path, reader: str, keep: list[str], **options: Any) -> Columns:
    """The columns `keep` of what `datasets.Dataset.from_csv` or `from_parquet` makes of a file."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would print what it then raises
    if types := options.pop("features", None):
        options["features"] = datasets.Features({name: datasets.Value(kind) for name, kind in types.items()})
    with explained(path), tempfile.TemporaryDirectory() as folder:
        read = getattr(datasets.Dataset, reader)
        return extract_columns(read(str(path), cache_dir=folder, **options), keep, path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong into an OSError of one sentence: the libraries raise errors of many kinds."""
    try:
        yield
    except WrongColumns:
        raise
    except Exception as error:
        cause: BaseException = error
        while (below := cause.__cause__ or cause.__context__) is not None:
            cause = below
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        if "corresponds to no data" in reason:
            reason = "it has no rows"
        if "Length of header" in reason:
            reason = "a row has more fields than the first line; quote a text that holds the separator"
        raise OSError(f"cannot read {path}: {reason}") from error


def extract_columns(dataset: Any, columns: list[str], source: object) -> Columns:
    """Columns of a `datasets.Dataset`; `translation.en` is the field `en` of the column `translation`.

    A class that is stored as a number becomes its name, and -1 None.
    """
    dataset = dataset.flatten()
    check_columns(columns, dataset.column_names, source)
    table = dataset.with_format("arrow")[:]
    extracted: Columns = {}
    for name in columns:
        values, feature = table[name].to_pylist(), dataset.features[name]
        classes = getattr(feature, "names", None)  # of a ClassLabel
        if classes is not None:
            values = [None if value is None or value < 0 else classes[value] for value in values]
        extracted[name] = values
    return extracted


# --- the hub ---


def read_hub(config: SourceConfig, columns: list[str]) -> dict[str, Columns]:
    """The columns of the splits of data.hub, whose validation split may have any of its usual names."""
    assert config.hub is not None  # by SourceConfig.conflict
    splits = load_all_splits(config.hub, config.hub_config, config.revision)
    parts = {}
    for part, names in NAMES.items():
        if split := next((name for name in names if name in splits), None):
            parts[part] = extract_columns(splits[split], columns, f"{split} of {config.hub}")
    if "train" not in parts:
        raise ValueError(f"data.hub={config.hub} has no split train, only {', '.join(splits)}")
    return parts
