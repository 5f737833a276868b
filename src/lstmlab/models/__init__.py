"""One LightningModule per task; see `build_model`."""

import importlib

from lstmlab.models.base import Task
from lstmlab.schema import CheckpointConfig

__all__ = ["Task", "build_model"]


def build_model(config: CheckpointConfig, info: dict) -> Task:
    """The model that `config.model` names, untrained. `info`: what its data module knows (vocabulary …)."""
    module, name = config.model.module.split(".")
    return getattr(importlib.import_module(f"lstmlab.models.{module}"), name)(config, info)
