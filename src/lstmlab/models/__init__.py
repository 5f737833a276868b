"""One LightningModule per task; see `model_class`."""

import importlib
from typing import Any

CLASSES = {
    "charlm": "CharLM",
    "copytask": "CopyTask",
    "sentiment": "Sentiment",
    "seq2seq": "Seq2Seq",
}


def model_class(name: str) -> Any:
    """The LightningModule of `model=NAME`; only its own file is imported."""
    return getattr(importlib.import_module(f"lstmlab.models.{name}"), CLASSES[name])
