import pytest

from lstmlab.benchmarks import engines, timing
from lstmlab.cells.library import load_kernel

SIZE = (3, 8, 5, 6)
needs_kernel = pytest.mark.skipif(load_kernel() is None, reason="no C++ compiler for the native kernel")


@needs_kernel
@pytest.mark.parametrize(
    "kind, name, contenders",
    [
        ("lstm", "dense training", ["native", "torch", "nn.LSTM"]),
        ("gru", "ragged training", ["native", "torch", "nn.GRU packed", "nn.GRU padded"]),
        ("rnn", "one step", ["native", "torch", "nn.RNN", "nn.RNNCell"]),
        ("peephole", "forward", ["native", "plain"]),
    ],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_each_engine_is_timed_beside_what_pytorch_has(kind, name, contenders, bf16):
    measured = engines.time_engines(kind, name, bf16, SIZE, rounds=1)
    assert list(measured.row.medians) == ["auto", *contenders]
    assert measured.row.medians["auto"] == measured.row.medians["native"]
    assert measured.row.size.startswith("B 3, T 1," if name == "one step" else "B 3, T 8,")


@pytest.fixture
def times(monkeypatch):
    """What the contenders are to take in each round."""
    times: dict[str, list[float]] = {}
    monkeypatch.setattr(engines, "time_rounds", lambda calls, rounds: times)
    return times


@needs_kernel
def test_a_wrong_choice_is_named_with_and_without_a_compiler(times):
    times |= {"native": [10.0] * 9, "torch": [9.0] * 9, "nn.LSTM": [8.0] * 4 + [8.2] * 5}
    assert engines.time_engines("lstm", "dense training", False, SIZE, 9).complaints == [
        "(3, 8, 5, 6): native is chosen, 0.82 times as fast as nn.LSTM (95 %: 0.80 to 0.82)",
        "(3, 8, 5, 6) without a compiler: torch is chosen, "
        "0.91 times as fast as nn.LSTM (95 %: 0.89 to 0.91)",
    ]
    times |= {"native": [7.0] * 9, "torch": [8.4] * 9}  # within the tolerance
    assert engines.time_engines("lstm", "dense training", False, SIZE, 9).complaints == []


@needs_kernel
def test_a_choice_that_may_be_right_is_not_called_wrong(times):
    times |= {"native": [10.0] * 9, "torch": [9.0] * 7 + [9.9] * 2, "nn.LSTM": [10.0] * 9}
    assert engines.time_engines("lstm", "dense training", False, SIZE, 9).complaints == []


def test_the_interval_of_a_median():
    values = [float(value) for value in (5, 1, 4, 2, 3, 9, 7, 8, 6)]
    assert timing.median_interval(values) == (5, 2, 8)  # P(at most 1 of 9 coins) = 10/512
    assert timing.median_interval(values[:5]) == (3, 1, 5)
    assert timing.median_interval([float(value) for value in range(20)]) == (9.5, 5, 14)


def test_what_is_left_is_said(capsys, monkeypatch):
    now = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert timing.run_jobs([("small", 1.0, lambda: "a"), ("large", 3.0, lambda: "b")]) == ["a", "b"]
    said = capsys.readouterr().err.splitlines()
    assert said == ["[1/2] small; about 3.0 min left", "[2/2] large; about 0.0 min left"]
