"""Evaluate a checkpoint on its validation and test data."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from lstmlab.analysis.interventions import intervene, parse_settings
from lstmlab.callbacks.progress import RunProgress
from lstmlab.checkpoint import load_checkpoint, load_model, rebuild_model
from lstmlab.data import build_data, change_data
from lstmlab.models.base import Task
from lstmlab.schema import EvaluateConfig


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """The metrics of checkpoint `config.ckpt` on its validation data and, if there are any, its test data.

    With `config.average`, those of the mean weights of a run's latest checkpoints, and with `config.ensemble`
    those of several models whose probabilities are averaged. With `config.set`, the gates and states that it
    names are held at their values. With `config.data.test`, the metrics on that file alone.

    Raises what `load_checkpoint`, `build_ensemble` and the data module raise, and ValueError for a
    setting of another task and for a point that the model does not have.
    """
    model: Any = load_evaluated(config)
    if config.beam_size is not None:
        if "beam_size" not in type(model.config.model).model_fields:
            raise ValueError(
                f"beam_size={config.beam_size} is for model=seq2seq; "
                f"{config.asked} holds model={model.config.model.name}"
            )
        model.config = model.config.replace({"model.beam_size": config.beam_size})

    datamodule = load_evaluation_data(config, model)
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        callbacks=[RunProgress(stderr=True)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with intervene(model, parse_settings(config.set or "", model)):
        metrics: list[Any] = []
        if config.data.test is None:
            metrics += trainer.validate(model, datamodule, verbose=False)
        if is_overridden("test_step", model) and is_overridden("test_dataloader", datamodule):
            metrics += trainer.test(model, datamodule, verbose=False)
    return {name: value for part in metrics for name, value in part.items()}


def load_evaluated(config: EvaluateConfig) -> Task:
    """The model of `config.ckpt`, or the ensemble of `config.ensemble`."""
    if config.ensemble is None:
        path, backend = str(config.ckpt), config.backend if config.set is None else "scratch"
        return rebuild_model(load_checkpoint(path, config.average), path, backend, config.accelerator)
    try:
        models = {path: load_model(path, config.backend, config.accelerator) for path in config.ensemble}
    except (OSError, ValueError) as error:
        raise type(error)(str(error).replace("ckpt=", "ensemble=", 1)) from error
    from lstmlab.models.ensemble import build_ensemble  # imports every task

    return build_ensemble(models)


def load_evaluation_data(config: EvaluateConfig, model: Task) -> Any:
    """The data module that the model was trained with, changed by the `data` group of the command.

    Raises ValueError if the text has changed: it would be split at another place, so the model may have been
    trained on some of its validation part. Raises ValueError for `data.test`, too, unless the data are pairs
    that a file can hold.
    """
    changes = config.data.to_plain()
    test = changes.pop("test", None)
    data = change_data(model.config.data, changes)
    datamodule = build_data(data, model.config.seed, model.info)
    if test is not None:
        if not {"source", "target"} <= type(data).model_fields.keys():
            raise ValueError(
                f"data.test={test} is for translation (data=multi30k, data=pairs); "
                f"{config.asked} was trained on data={data.name}"
            )
        datamodule.load_test(test)
    elif "source" in model.info and config.data.path is None:
        datamodule.prepare_data()
        if datamodule.info["source"] != model.info["source"]:
            raise ValueError(
                f"{config.asked} was trained on {model.info['source']}, but this is "
                f"{datamodule.info['source']}; the model may have been trained on its validation part"
            )
    return datamodule
