import re
import shutil

import pytest
from hydra import compose, initialize_config_dir

from lstmlab.benchmarks import compiled
from lstmlab.cells.library import load_kernel
from lstmlab.config import PROJECT, to_plain
from lstmlab.schema import check


@pytest.mark.skipif(load_kernel() is None or shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_step_of_charlm_is_one_graph_for_every_length():
    overrides = ["suite=compile", "run_dir=x", "cell=fused", "cell.hidden_size=16", "data.batch_size=4"]
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        settings = check("bench", to_plain(compose("bench", [*overrides, "data.sequence_length=20"])))
    section = compiled.measure_compiled_step(settings, rounds=1)
    assert re.search(r"[\d.]+ s to compile, graphs for T = 20, 2, 17, 100, 256: 1$", section.title)
    assert set(section.rows[0].medians) == {"eager", "torch.compile"}
