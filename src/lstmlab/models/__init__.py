"""One LightningModule per task; see `build_model`."""

import importlib
from typing import Any

from lstmlab.schema import CheckpointConfig


def build_model(config: CheckpointConfig, info: dict) -> Any:
    """The untrained model that `config.model` names. `info`: what the data module tells it (vocabulary …)."""
    module, name = config.model.module.split(".")
    return getattr(importlib.import_module(f"lstmlab.models.{module}"), name)(config, info)
