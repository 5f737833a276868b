import numpy as np
import pytest
from omegaconf import OmegaConf

from lstmlab.config import PROJECT
from lstmlab.data.parts import split_missing
from lstmlab.schema import ClassesConfig


def settings(**changes) -> ClassesConfig:
    written = OmegaConf.load(PROJECT / "conf/data/classes.yaml")
    return ClassesConfig.model_validate(
        OmegaConf.to_container(OmegaConf.merge(written, {"cache": ""}, changes))
    )


def test_what_is_split_off_is_a_share_of_each_group():
    groups = np.array([0] * 200 + [1] * 50 + [2] * 4 + [3])
    np.random.default_rng(1).shuffle(groups)
    rows = {"row": list(range(len(groups)))}
    parts, made = split_missing({"train": rows}, settings(), groups)
    assert made == ["test", "val"] and list(parts) == ["train", "val", "test"]
    taken = {part: table["row"] for part, table in parts.items()}
    assert sorted(row for part in taken.values() for row in part) == rows["row"]
    counts = {part: np.bincount(groups[rows], minlength=4).tolist() for part, rows in taken.items()}
    assert counts == {"train": [160, 40, 2, 1], "val": [20, 5, 1, 0], "test": [20, 5, 1, 0]}
    assert split_missing({"train": rows}, settings(), groups)[0] == parts
    given = split_missing({"train": rows, "test": {"row": [-1]}}, settings(), groups)
    assert given[1] == ["val"] and given[0]["test"] == {"row": [-1]}


def test_too_few_rows_to_split():
    with pytest.raises(ValueError, match=r"a.csv has 2 rows, too few to split off test; .* data.test=FILE"):
        split_missing({"train": {"row": [0, 1]}}, settings(path="a.csv"), np.zeros(2, int))
