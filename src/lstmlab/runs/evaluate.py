"""The metrics of a checkpoint on its validation and test data."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from lstmlab import checkpoint, data


def evaluate(config: dict[str, Any]) -> dict[str, float]:
    """The metrics of checkpoint `config["ckpt"]` on its validation data, and its test data if it has some.

    Raises what `checkpoint.load` and the data module raise, and ValueError if the text is no longer the one
    that was trained on: it would be cut elsewhere, so that some of its validation part was trained on.
    """
    model = checkpoint.load_model(config["ckpt"], config["backend"], config["accelerator"])
    if config["beam_size"] is not None:
        if "beam_size" not in model.config["model"]:
            raise ValueError(
                f"beam_size={config['beam_size']} is for model=seq2seq; "
                f"ckpt={config['ckpt']} is of model={model.config['model']['name']}"
            )
        model.config["model"]["beam_size"] = config["beam_size"]
    given = {key: value for key, value in config["data"].items() if value is not None}
    if unread := sorted(given.keys() - model.config["data"].keys() - {"cache"}):
        raise ValueError(
            f"data.{unread[0]}={given[unread[0]]}: data={model.config['data']['name']} has no such key"
        )
    datamodule = data.build(model.config["data"] | given, model.config["seed"], model.info)
    if "source" in model.info and "path" not in given:
        datamodule.prepare_data()
        if datamodule.info["source"] != model.info["source"]:
            raise ValueError(
                f"ckpt={config['ckpt']} was trained on {model.info['source']}, but here is "
                f"{datamodule.info['source']}, some of whose validation part it may have been trained on"
            )
    trainer = L.Trainer(
        accelerator=config["accelerator"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    metrics = trainer.validate(model, datamodule, verbose=False)
    if is_overridden("test_step", model):
        metrics += trainer.test(model, datamodule, verbose=False)
    return {name: value for part in metrics for name, value in part.items()}
