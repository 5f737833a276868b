"""Understand, train and trust recurrent networks in PyTorch. `load` opens a trained model."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lstmlab.runs.predict import Predictor


def load(ckpt: str, backend: str | None = None, accelerator: Literal["cpu", "gpu"] = "cpu") -> "Predictor":
    """The trained model in a run's folder or a checkpoint, ready to be asked.

        model = lstmlab.load("logs/sentiment/DATE")
        model.predict(["Not bad, isn't it?"])

    Raises FileNotFoundError, or ValueError for what is no checkpoint of this version.
    """
    from lstmlab.runs.predict import Predictor  # with torch, which `import lstmlab.cells` alone would load

    return Predictor(ckpt, backend, accelerator)
