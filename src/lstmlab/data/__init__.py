"""One LightningDataModule per kind of data set; see `build_data`."""

import importlib
from collections.abc import Mapping
from typing import Any

from lstmlab.schema import DataConfig, SourceConfig


def change_data(config: DataConfig, changes: Mapping[str, Any]) -> DataConfig:
    """The same data set with other values for its keys; None leaves a key as it is.

    Raises ValueError for a key that this data set does not have; `cache` is left out where there is none.
    """
    known = type(config).model_fields
    given = {key: value for key, value in changes.items() if value is not None}
    if unknown := sorted(given.keys() - known.keys() - {"cache"}):
        raise ValueError(f"data.{unknown[0]}={given[unknown[0]]}: data={config.name} has no such key")
    if "path" in given and isinstance(config, SourceConfig):  # in place of the files that were trained on
        given |= dict.fromkeys(("train", "val", "test", "hub", "hub_config"))
    return config.replace({key: value for key, value in given.items() if key in known})


def build_data(config: DataConfig, seed: int = 0, info: dict | None = None) -> Any:
    """The LightningDataModule of a data set.

    After setup, its `info` holds what a model must know (vocabulary …), in plain containers. With `info`,
    that of a checkpoint, the data are encoded with that checkpoint's vocabulary.
    """
    module, name = config.module.split(".")
    return getattr(importlib.import_module(f"lstmlab.data.{module}"), name)(config, seed, info)
