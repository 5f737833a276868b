"""The checked configuration: it is read by attribute and cannot change."""

import copy
import pickle

import pydantic
import pytest
import yaml

from lstmlab.schema import DataConfig, ModelConfig, check, leaves, names_of_data


def test_nothing_can_change(config):
    settings = config("logger=wandb", "optimizer=adamw", "model=copytask", "data.delay=[1,5]")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.seed = 1
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.cell.hidden_size = 1
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.logger["wandb"].project = "other"
    for mapping in (settings.logger, settings.callbacks):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["more"] = None
    assert settings.optimizer.betas == (0.9, 0.99)
    assert settings.data.delay == (1, 5)
    assert isinstance(settings.logger["wandb"].tags, tuple)


def test_plain_containers_round_trip(config):
    settings = config("logger=[tensorboard,wandb]", "callbacks=averaging", "optimizer=adamw", "seed=3")
    written = yaml.safe_load(yaml.safe_dump(settings.to_plain()))
    assert check("train", written) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) is settings


def test_replace_leaves_the_original_and_checks_the_copy(config):
    settings = config()
    longer = settings.replace({"trainer.max_steps": 7, "seed": 5})
    assert (longer.trainer.max_steps, longer.seed) == (7, 5)
    assert (settings.trainer.max_steps, settings.seed) == (None, 0)
    assert longer.replace({"trainer.max_steps": None, "seed": 0}) == settings
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        settings.replace({"trainer.max_steps": 0})


def test_tasks_and_data_sets_fit_together():
    read, given = ({leaf.reads for leaf in leaves(ModelConfig)}, {leaf.gives for leaf in leaves(DataConfig)})
    assert read == given
    assert names_of_data("text") == ["stdlib", "shakespeare", "textfile", "texts", "imdb_texts"]
