from pathlib import Path

from hydra import compose, initialize_config_dir

from conftest import SMALL
from lstmlab.benchmarks.train import section
from lstmlab.config import PROJECT, plain
from lstmlab.schema import check


def test_a_run_is_timed_against_bare_loops(tmp_path, text_file):
    overrides = [f"run_dir={tmp_path}", "suite=train", "rounds=1", "steps=6", "trainer.log_every_n_steps=2"]
    overrides += ["data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}", *SMALL]
    overrides += ["data.batch_size=4", "data.sequence_length=20"]
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        settings = plain(compose("bench", overrides))
    check("bench", settings)
    (row,) = section(settings).rows
    assert row.size == "charlm on textfile, cell=torch"
    assert list(row.medians) == ["a bare loop", "a bare loop, cell=fused", "train.py"]
    assert min(row.medians.values()) > 0
    assert (Path(tmp_path) / "0" / "metrics.csv").exists()
