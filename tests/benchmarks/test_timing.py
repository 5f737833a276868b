import json
import time

import pytest
import torch

from lstmlab.benchmarks.timing import Row, Section, agree, alternate, report, times_better


def test_contenders_that_disagree_are_not_timed():
    def right():
        return [torch.tensor([1.0, 100.0])]

    agree({"a": right, "b": lambda: [torch.tensor([1.0, 100.005])]})
    with pytest.raises(RuntimeError, match=r"not timed: result 0 of b is 0\.1 off that of a"):
        agree({"a": right, "b": lambda: [torch.tensor([1.0, 100.1])]})
    with pytest.raises(RuntimeError, match="result 0 of b is nan off"):
        agree({"a": right, "b": lambda: [torch.tensor([torch.nan, 100.0])]})


def test_contenders_alternate_and_the_median_counts():
    called = []
    pauses = iter([0, 0, 0.04, 0.03, 0.3])  # two to warm up, then three rounds

    def slow():
        called.append("slow")
        time.sleep(next(pauses))

    def fast():
        called.append("fast")
        time.sleep(0.025)

    pauses = iter([0.03, 0.03, 0.04, 0.03, 0.3])
    medians = alternate({"slow": slow, "fast": fast}, rounds=3)
    assert called == ["slow"] * 2 + ["fast"] * 2 + ["slow", "fast"] * 3
    assert 39 < medians["slow"] < 300  # milliseconds: one slow round does not count


def test_the_report(tmp_path):
    times = Section(
        "Work", "ours", [Row("small", {"theirs": 3.0, "ours": 2.0}, {"theirs": 0.5, "ours": 0.75})]
    )
    rates = Section("Rate", "ours", [Row("all", {"theirs": 100.0, "ours": 400.0})], unit="characters/s")
    assert times_better(times, times.rows[0], "theirs") == 1.5
    assert times_better(rates, rates.rows[0], "theirs") == 4
    text = report("cells", [times, rates], str(tmp_path))
    assert "|  | ours, ms | theirs |\n| --- | --- | --- |\n| small | 2 (75%) | 1.50× (50%) |" in text
    assert "| all | 400 | 4.00× |" in text
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["machine"]["torch"] == torch.__version__
    assert written["sections"][0]["rows"][0]["medians"] == {"theirs": 3.0, "ours": 2.0}
    assert (tmp_path / "bench.png").stat().st_size > 1000
