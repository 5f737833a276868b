"""Data sets of the Hugging Face hub."""

from typing import Any


def fetch(hub: str, revision: str, files: dict[str, str], offline: str) -> Any:
    """The splits of data set `hub` at `revision` that `files` names, each by a glob such as train-*.parquet.

    A `datasets.DatasetDict`. Those files alone are fetched, once, into the cache of `datasets`. Raises
    ConnectionError, in one sentence, if they cannot be had; `offline` is what can be used instead.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            hub,
            revision=revision,
            data_files={split: f"**/{pattern}" for split, pattern in files.items()},
            verification_mode="no_checks",  # which would miss the splits that are not asked for
        )
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"could not fetch {hub} at {revision} from the hub ({reason}); "
            f"give a folder with its files by data.path=FOLDER, or use {offline}"
        ) from error
