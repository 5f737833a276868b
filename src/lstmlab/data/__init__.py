"""One LightningDataModule a data set; see `build`."""

import importlib
from typing import Any

CLASSES = {
    "stdlib": "text.TextData",
    "shakespeare": "text.TextData",
    "textfile": "text.TextData",
    "copy": "copy_task.CopyData",
    "imdb": "sentiment.IMDB",
    "reviews": "reviews.Reviews",
    "multi30k": "translation.Multi30k",
    "dates": "dates.Dates",
}


def build(config: dict, seed: int = 0, info: dict | None = None) -> Any:
    """The LightningDataModule of a `data` group; its `name` chooses the class.

    After setup, its `info` holds what a model must know (vocabulary …), in plain containers.

    With `info`, that of a checkpoint, the data are encoded with that checkpoint's vocabulary.
    """
    module, name = CLASSES[config["name"]].split(".")
    return getattr(importlib.import_module(f"lstmlab.data.{module}"), name)(config, seed, info)
