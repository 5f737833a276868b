"""Data sets of the Hugging Face hub."""

from typing import Any


def fetch(hub: str, revision: str, files: dict[str, str], offline: str) -> Any:
    """The splits of data set `hub` at `revision` that `files` names, each by a glob such as train-*.parquet.

    A `datasets.DatasetDict`. Those files alone are fetched, once, into the cache of `datasets`. Raises
    ConnectionError, in one sentence, if they cannot be had; `offline` is what can be used instead.
    """
    patterns = {split: f"**/{pattern}" for split, pattern in files.items()}
    # Its checks would miss the splits that are not asked for
    options = {"data_files": patterns, "verification_mode": "no_checks"}
    return load(hub, revision, f"give a folder with its files by data.path=FOLDER, or use {offline}", options)


def load_all_splits(hub: str, configuration: str | None, revision: str) -> Any:
    """All splits of data set `hub`, a `datasets.DatasetDict`. Raises what `fetch` raises."""
    way_out = "name one of several configurations by data.hub_config=, or give the files by data.path=FOLDER"
    return load(hub, revision, way_out, {"name": configuration})


def load(hub: str, revision: str, way_out: str, options: dict[str, Any]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub, revision=revision, **options)
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise ConnectionError(
            f"could not fetch {hub} at {revision} from the hub ({reason}); {way_out}"
        ) from error
