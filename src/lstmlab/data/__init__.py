"""One LightningDataModule a data set; see `build`."""

import importlib

import lightning as L

CLASSES = {
    "stdlib": "text.TextData",
    "shakespeare": "text.TextData",
    "textfile": "text.TextData",
}


def build(config: dict, seed: int = 0, info: dict | None = None) -> L.LightningDataModule:
    """The data module for a `data` group; its `name` chooses the class.

    With `info`, that of a checkpoint, the data are encoded with that checkpoint's vocabulary.
    """
    module, name = CLASSES[config["name"]].split(".")
    return getattr(importlib.import_module(f"lstmlab.data.{module}"), name)(config, seed, info)
