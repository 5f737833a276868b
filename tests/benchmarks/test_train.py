from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from conftest import SMALL
from lstmlab.benchmarks.train import measure_training
from lstmlab.config import PROJECT, to_plain
from lstmlab.schema import check


@pytest.mark.parametrize(
    ("cell", "other"), [(["cell=torch"], "fused"), (["cell=fused", "cell.recompute=true"], "torch")]
)
def test_a_run_is_timed_against_bare_loops(tmp_path, text_file, cell, other):
    overrides = [f"run_dir={tmp_path}", "suite=train", "rounds=1", "steps=6", "trainer.log_every_n_steps=2"]
    overrides += ["data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}", *SMALL]
    overrides += ["data.batch_size=4", "data.sequence_length=20", *cell]
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        settings = check("bench", to_plain(compose("bench", overrides)))
    (row,) = measure_training(settings).rows
    assert row.size == f"charlm on textfile, {cell[0]}"
    assert list(row.medians) == ["a bare loop", f"a bare loop, cell={other}", "train.py"]
    assert min(row.medians.values()) > 0
    assert (Path(tmp_path) / "0" / "metrics.csv").exists()
