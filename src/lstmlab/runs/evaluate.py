"""The metrics of a checkpoint on its validation and test data."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from lstmlab.checkpoint import load_model
from lstmlab.data import build_data, change_data
from lstmlab.models.base import Task
from lstmlab.schema import EvaluateConfig


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """The metrics of checkpoint `config.ckpt` on its validation data, and on its test data if it has some.

    Raises what `load_model` and the data module raise, and ValueError for a setting that does not fit.
    """
    model: Any = load_model(config.ckpt, config.backend, config.accelerator)
    if config.beam_size is not None:
        if "beam_size" not in type(model.config.model).model_fields:
            raise ValueError(
                f"beam_size={config.beam_size} is for model=seq2seq; "
                f"ckpt={config.ckpt} is of model={model.config.model.name}"
            )
        model.config = model.config.replace({"model.beam_size": config.beam_size})

    datamodule = load_data(config, model)
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    metrics = trainer.validate(model, datamodule, verbose=False)
    if is_overridden("test_step", model):
        metrics += trainer.test(model, datamodule, verbose=False)
    return {name: value for part in metrics for name, value in part.items()}


def load_data(config: EvaluateConfig, model: Task) -> Any:
    """The model's own data module, or what the `data` group of the command names in its place.

    Raises ValueError if the text is no longer the one that was trained on: it would be cut elsewhere, so that
    some of its validation part was trained on.
    """
    data = change_data(model.config.data, config.data.to_plain())
    datamodule = build_data(data, model.config.seed, model.info)
    if "source" in model.info and config.data.path is None:
        datamodule.prepare_data()
        if datamodule.info["source"] != model.info["source"]:
            raise ValueError(
                f"ckpt={config.ckpt} was trained on {model.info['source']}, but here is "
                f"{datamodule.info['source']}, some of whose validation part it may have been trained on"
            )
    return datamodule
