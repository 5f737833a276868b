"""One LightningDataModule per kind of data set; see `build_data`."""

import importlib
from typing import Any

from lstmlab.schema import DataConfig


def build_data(config: DataConfig, seed: int = 0, info: dict | None = None) -> Any:
    """The LightningDataModule of a data set.

    After setup, its `info` holds what a model must know (vocabulary …), in plain containers. With `info`,
    that of a checkpoint, the data are encoded with that checkpoint's vocabulary.
    """
    module, name = config.module.split(".")
    return getattr(importlib.import_module(f"lstmlab.data.{module}"), name)(config, seed, info)
