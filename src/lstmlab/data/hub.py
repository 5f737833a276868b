"""Data sets of the Hugging Face hub."""

import os
import ssl
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen


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


def is_reachable() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=10).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the hub's client has its own certificates
    except OSError:
        return False
    return True


def load(hub: str, revision: str, way_out: str, options: dict[str, Any]) -> Any:
    if not is_reachable():
        # The client would try six times, which takes half a minute, before it looks into its cache
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub, revision=revision, **options)
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise ConnectionError(
            f"could not fetch {hub} at {revision} from the hub ({reason}); {way_out}"
        ) from error
