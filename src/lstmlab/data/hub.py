"""Data sets of the Hugging Face hub."""

from collections.abc import Iterable
from pathlib import Path


def fetch(hub: str, revision: str, patterns: Iterable[str], offline: str) -> Path:
    """A folder with the files of data set `hub` at `revision` that match `patterns`, such as train-*.parquet.

    They are fetched once, into the hub's own cache. Raises ConnectionError, in one sentence, if they cannot
    be had; `offline` is what can be used instead.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(
            snapshot_download(
                hub,
                repo_type="dataset",
                revision=revision,
                allow_patterns=[f"*{pattern}" for pattern in patterns],
            )
        )
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"could not fetch {hub} at {revision} from the hub ({reason}); "
            f"give a folder with its files by data.path=FOLDER, or use {offline}"
        ) from error
