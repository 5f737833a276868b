import json
from pathlib import Path

from hydra import compose, initialize_config_dir

from conftest import SMALL
from lstmlab.benchmarks.train import overhead
from lstmlab.config import PROJECT, plain
from lstmlab.schema import check


def test_a_run_is_timed_against_a_bare_loop(tmp_path, text_file):
    overrides = [f"run_dir={tmp_path}", "rounds=1", "steps=6", "trainer.log_every_n_steps=2", *SMALL]
    overrides += ["data=textfile", f"data.path={text_file}", f"data.cache={tmp_path}"]
    overrides += ["data.batch_size=4", "data.sequence_length=20"]
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        settings = plain(compose("bench", overrides))
    check("bench", settings)
    result = overhead(settings)
    assert json.loads((Path(tmp_path) / "bench.json").read_text()) == result
    rates = result["tokens_per_second"]
    assert result["ratio"] == rates["train.py"] / rates["bare loop"] > 0
