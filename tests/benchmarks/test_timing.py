import json
from types import SimpleNamespace

import pytest
import torch

from lstmlab.benchmarks import timing
from lstmlab.benchmarks.timing import (
    Section,
    TimingRow,
    check_agreement,
    draw_sections,
    format_section,
    time_in_turn,
    times_better,
    write_report,
)


def test_contenders_that_disagree_are_not_timed():
    def right():
        return [torch.tensor([1.0, 100.0])]

    check_agreement({"a": right, "b": lambda: [torch.tensor([1.0, 100.005])]})
    with pytest.raises(RuntimeError, match=r"not timed: result 0 of b differs from that of a by 0\.1$"):
        check_agreement({"a": right, "b": lambda: [torch.tensor([1.0, 100.1])]})
    with pytest.raises(RuntimeError, match="result 0 of b differs from that of a by nan"):
        check_agreement({"a": right, "b": lambda: [torch.tensor([torch.nan, 100.0])]})


def test_one_wrong_number_of_many_is_enough():
    numbers = torch.zeros(1000)
    check_agreement({"a": lambda: [numbers, numbers], "b": lambda: [numbers, numbers]})
    wrong = numbers.index_fill(0, torch.tensor([7]), -1e-3)
    with pytest.raises(RuntimeError, match=r"result 1 of b differs from that of a by 0\.001$"):
        check_agreement({"a": lambda: [numbers, numbers], "b": lambda: [numbers, wrong]})


def test_contenders_alternate_and_the_median_counts(monkeypatch):
    """On a clock that the contenders set. One that takes under 20 ms is called several times per round."""
    called, now = [], 0.0
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    pauses = iter([9.0, 0.03, 0.04, 0.03, 0.3])  # two to warm up, then three rounds

    def slow() -> None:
        nonlocal now
        called.append("slow")
        now += next(pauses)

    def fast() -> None:
        nonlocal now
        called.append("fast")
        now += 0.009

    medians = time_in_turn({"slow": slow, "fast": fast}, rounds=3)
    assert called == ["slow"] * 2 + ["fast"] * 2 + ["slow", *["fast"] * 3] * 3
    assert medians == pytest.approx({"slow": 40, "fast": 9})  # milliseconds: one slow round does not count


def test_the_report(tmp_path):
    times = Section(
        "Work", "ours", [TimingRow("small", {"theirs": 3.0, "ours": 2.0}, {"theirs": 0.5, "ours": 0.75})]
    )
    rates = Section("Rate", "ours", [TimingRow("all", {"theirs": 100.0, "ours": 400.0})], unit="characters/s")
    assert times_better(times, times.rows[0], "theirs") == 1.5
    assert times_better(rates, rates.rows[0], "theirs") == 4
    text = write_report("cells", [times, rates], str(tmp_path))
    assert "|  | ours, ms | theirs |\n| --- | --- | --- |\n| small | 2 (75%) | 1.50× (50%) |" in text
    assert "| all | 400 | 4.00× |" in text
    assert "geometric mean" not in text
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["machine"]["torch"] == torch.__version__
    assert written["sections"][0]["rows"][0]["medians"] == {"theirs": 3.0, "ours": 2.0}
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_a_mean_of_ratios_is_a_geometric_one():
    rows = [
        TimingRow("small", {"a": 2.0, "ours": 1.0, "b": 5.0}),
        TimingRow("large", {"a": 24.0, "ours": 3.0, "b": 15.0}),
    ]
    said = format_section(Section("Work", "ours", rows))
    assert said.endswith(
        "| small | 1 | 2.00× | 5.00× |\n| large | 3 | 8.00× | 5.00× |\n| geometric mean |  | 4.00× | 5.00× |"
    )
    [axes] = draw_sections([Section("Work", "ours", rows)]).axes
    drawn = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert drawn == {"a": [2.0, 8.0], "b": [5.0, 5.0]}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "large"]
