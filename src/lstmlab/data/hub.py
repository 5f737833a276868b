"""Data sets of the Hugging Face hub."""

from typing import Any


def load_splits(hub: str, revision: str, offline: str) -> Any:
    """Fetch all splits of data set `hub` at `revision` (a `datasets.DatasetDict`, cached by `datasets`).

    Raises ConnectionError, in one sentence, if it cannot be had; `offline` is what can be used instead.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub, revision=revision)
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"could not fetch {hub} at {revision} from the hub ({reason}); "
            f"give a folder with its files by data.path=FOLDER, or use {offline}"
        ) from error
