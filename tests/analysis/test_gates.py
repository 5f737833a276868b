import math

import pytest
import torch

from lstmlab.analysis.gates import (
    compute_half_lives,
    find_forgetting_steps,
    measure_saturation,
    rank_tokens,
    split_context,
)


@pytest.mark.parametrize("f", [0.1, 0.5, 0.9, 0.999])
def test_half_life_of_a_constant_gate(f):
    gate = torch.full((2, 1, 7, 3), f, dtype=torch.float64)
    t = compute_half_lives(gate)
    assert t.shape == (2, 1, 3)
    torch.testing.assert_close(f**t, torch.full_like(t, 0.5))


def test_half_life_is_that_of_the_product():
    """f alternates between ½ and 1: half is left after two steps. f = 1: forever."""
    gate = torch.tensor([[0.5, 1.0], [1.0, 1.0]]).repeat(10, 1)  # (N, H)
    assert compute_half_lives(gate).tolist() == [2.0, math.inf]


def test_saturation_is_a_share_of_steps():
    gate = torch.tensor([[0.05, 0.5], [0.95, 0.5], [0.99, 0.0], [0.5, 0.11]])
    low, high = measure_saturation(gate)
    assert low.tolist() == [0.25, 0.25] and high.tolist() == [0.5, 0.0]


def test_forgetting_is_ranked():
    f = torch.tensor([[0.9, 0.7], [0.1, 0.3], [0.6, 0.4], [0.0, 0.2]])
    assert [step for step, _ in find_forgetting_steps(f, 3)] == [3, 1, 2]
    assert find_forgetting_steps(f, 1)[0][1] == pytest.approx(0.1)
    ranked = rank_tokens(f, ["a", "b", "a", "c"], 1)
    assert [(token, count) for token, count, _ in ranked] == [("c", 1), ("b", 1), ("a", 2)]
    assert ranked[-1][2] == pytest.approx(0.65)
    assert [token for token, *_ in rank_tokens(f, ["a", "b", "a", "c"], 2)] == ["a"]


def test_context_is_cut_at_its_width():
    assert split_context(list("abcdef"), 2, 2) == ("ab", "c", "d")
    assert split_context(["one ", "two ", "three "], 0, 5) == ("", "one ", "two t")
