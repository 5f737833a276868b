from collections.abc import Callable
from typing import Any, cast

import pytest
from omegaconf import OmegaConf

from lstmlab.config import PROJECT
from lstmlab.data.copy_task import CopyData
from lstmlab.data.dates import Dates
from lstmlab.data.reviews import Reviews
from lstmlab.data.sentiment import IMDB
from lstmlab.data.translation import Multi30k

CLASSES = {"copy": CopyData, "imdb": IMDB, "reviews": Reviews, "multi30k": Multi30k, "dates": Dates}


@pytest.fixture
def module(tmp_path) -> Callable[..., Any]:
    """module("reviews", train_size=100, …): that data set with these keys changed, its files ready."""

    def build(name: str, seed: int = 0, info: dict | None = None, **changes):
        group = OmegaConf.merge(OmegaConf.load(PROJECT / f"conf/data/{name}.yaml"), changes)
        group = OmegaConf.merge(group, {"cache": str(tmp_path / "cache")})
        built = CLASSES[name](cast(dict, OmegaConf.to_container(group)), seed, info)
        built.prepare_data()
        built.setup("fit")
        return built

    return build
