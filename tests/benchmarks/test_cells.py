import multiprocessing
import sys
from itertools import pairwise

import pytest
import torch

from lstmlab.benchmarks import cells, kinds, ladder


@pytest.mark.parametrize("training", [True, False])
def test_all_cells_are_timed_once_they_agree(training):
    dense = cells.time_dense(3, 4, 5, 6, training, rounds=1)
    assert {
        "nn.LSTM",
        "nn.LSTMCell loop",
        "fused without a compiler",
        "fused",
        "scratch",
    } < dense.medians.keys()
    assert all(value > 0 for value in dense.medians.values())
    flops = 2 * 3 * 4 * 4 * 6 * (5 + 6) * (3 if training else 1)
    assert dense.gemm_share is not None
    rates = {name: share * dense.medians[name] / flops for name, share in dense.gemm_share.items()}
    assert len({f"{rate:.6g}" for rate in rates.values()}) == 1  # one peak for all
    ragged = cells.time_ragged(3, 8, 5, 6, training, rounds=1)
    assert list(ragged.medians) == ["nn.LSTM packed", "nn.LSTM padded, states gathered", "fused", "scratch"]
    assert set(cells.time_step(8, rounds=1).medians) == {"nn.LSTM", "nn.LSTMCell", "scratch", "fused"}


def test_a_cell_that_computes_something_else_is_not_timed(monkeypatch):
    right = cells.build_lstm_cell

    def wrong(reference):
        cell = right(reference)
        with torch.no_grad():
            cell.bias_hh.add_(0.1)
        return cell

    monkeypatch.setattr(cells, "build_lstm_cell", wrong)
    with pytest.raises(
        RuntimeError, match=r"not timed: result \d+ of nn.LSTMCell loop differs from that of nn.LSTM by"
    ):
        cells.time_dense(3, 4, 5, 6, True, rounds=1)


@pytest.mark.skipif(sys.platform != "linux", reason="peak resident memory is read from /proc")
def test_peak_memory_sees_what_backward_keeps():
    """scratch keeps at least 5 gates and states of 64 × 32 × 256 floats, each 2 MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # memory freed here would hide it
        assert pool.apply(cells.measure_peak_memory, ((64, 32, 16, 256), {"backend": "scratch"})) > 10


def test_the_newer_kinds_are_timed_once_their_engines_agree():
    linear = kinds.time_linear_kinds(3, 8, 6, 6, rounds=1)
    assert list(linear.medians)[:3] == ["mingru", "minlstm", "nn.GRU"]
    assert list(kinds.time_stepwise_kinds(3, 4, 5, 8, rounds=1).medians) == ["lstm", "slstm", "mogrifier"]
    assert list(kinds.time_equal_kinds(2, 3, True, rounds=1).medians) == list(kinds.EQUAL)


def test_each_rung_of_the_ladder_computes_the_same(monkeypatch):
    monkeypatch.setattr(ladder, "SIZES", [(3, 4, 5, 6)])
    rows = ladder.measure_ladder(rounds=1).rows
    assert [row.size.split(": ")[1] for row in rows] == list(ladder.RUNGS)
    for before, row in pairwise(rows):
        assert row.medians["the rung before"] == before.medians["this"]
        assert row.medians["the first rung"] == rows[0].medians["this"]
