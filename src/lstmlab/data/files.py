"""The splits of a data set of the hub, from the hub or from a folder with the same files."""

from pathlib import Path

import pyarrow as pa
from pyarrow.json import read_json
from pyarrow.parquet import read_table

from lstmlab.data.hub import fetch
from lstmlab.schema import HubConfig


def read_splits(
    config: HubConfig, files: dict[str, str], columns: dict[str, type], offline: str
) -> dict[str, dict[str, list]]:
    """The `columns` of each split in `files`: {split: {column: values}}.

    `files` names each split's files, as a glob, in the folder `config.path`; if that is null, they are
    fetched from the data set `config.hub` at `config.revision`. Raises OSError or ValueError, in one
    sentence, for what cannot be reached or read; `offline` is the data set to use instead.
    """
    ways_out = f"give the files of {config.hub} by data.path=FOLDER, or use {offline}"
    if config.path is None:
        source, fetched = config.hub, fetch(config.hub, config.revision, files, offline)
        tables = {split: fetched[split].with_format("arrow")[:] for split in files}
    else:
        source, tables = f"data.path={config.path}", _read_folder(config.path, files, ways_out)
    result = {}
    for split, table in tables.items():
        if missing := [name for name in columns if name not in table.column_names]:
            raise ValueError(
                f"{split} of {source} has no column {missing[0]}, only "
                f"{', '.join(table.column_names) or 'none at all'}; {ways_out}"
            )
        result[split] = {name: table[name].to_pylist() for name in columns}
        for name, kind in columns.items():
            for row, value in enumerate(result[split][name]):
                if not isinstance(value, kind):
                    raise ValueError(
                        f"row {row} of {split} of {source} has {value!r} for its {name}, "
                        f"which must be of type {kind.__name__}"
                    )
        if not table.num_rows:
            raise ValueError(f"{split} of {source} has no rows; {ways_out}")
    return result


def _read_folder(path: str, files: dict[str, str], ways_out: str) -> dict[str, pa.Table]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"data.path={path} is not a folder; {ways_out}")
    tables = {}
    for split, pattern in files.items():
        found = sorted(folder.rglob(pattern))
        if not found:
            raise FileNotFoundError(f"data.path={path} holds no {pattern}; {ways_out}")
        read = read_table if pattern.endswith(".parquet") else read_json
        try:
            tables[split] = pa.concat_tables([read(file) for file in found])
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise OSError(f"cannot read {pattern} in data.path={path} ({reason}); {ways_out}") from error
    return tables
