"""One LightningModule a task; see `model_class`."""

import importlib

from lstmlab.models.base import Task

__all__ = ["Task", "model_class"]

CLASSES = {
    "charlm": "CharLM",
    "copytask": "CopyTask",
    "sentiment": "Sentiment",
    "seq2seq": "Seq2Seq",
}


def model_class(name: str) -> type[Task]:
    """The LightningModule of `model=NAME`; only its own file is imported."""
    return getattr(importlib.import_module(f"lstmlab.models.{name}"), CLASSES[name])
