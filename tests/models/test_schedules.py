"""Learning rates compared with values computed by hand, step by step."""

import math

import pytest
import torch

from conftest import compose_train
from lstmlab.models.schedules import build_schedules, compute_lr_factor
from lstmlab.schema import check


def rates(scheduler: dict, steps: int, losses: dict[int, float] | None = None) -> list[float]:
    """The learning rate at each step; a validation after step k has loss `losses[k]`."""
    settings = compose_train("run_dir=x").to_plain() | {"scheduler": scheduler}
    config = check("train", settings).replace({"trainer.max_steps": steps})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    stepped, validated = build_schedules(optimizer, config)
    used = []
    for step in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        stepped.step()
        if losses and step in losses:
            assert validated is not None
            validated.step(losses[step])
    return used


def test_constant_after_a_linear_warm_up():
    found = rates({"name": "constant", "warmup_steps": 3}, 6)
    assert found == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 1])
    assert rates({"name": "constant", "warmup_steps": 0}, 2) == [1, 1]


def test_cosine_ends_at_its_share():
    found = rates({"name": "cosine", "warmup_steps": 2, "final_lr": 0.1}, 7)
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)]
    assert found == pytest.approx([1 / 3, 2 / 3, *cosine])
    assert compute_lr_factor(7, 2, 7, 0.1) == compute_lr_factor(99, 2, 7, 0.1) == pytest.approx(0.1)


def test_plateau_lowers_the_rate_after_patience_validations():
    losses = dict(enumerate([5.0, 4.0, 4.0, 4.5, 3.0, 3.1, 3.2, 3.3]))
    found = rates({"name": "plateau", "warmup_steps": 0, "factor": 0.5, "patience": 2}, 9, losses)
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_and_warm_up_multiply():
    losses = {0: 1.0, 1: 2.0}
    found = rates({"name": "plateau", "warmup_steps": 3, "factor": 0.5, "patience": 1}, 6, losses)
    assert found == pytest.approx([1 / 4, 2 / 4, 3 / 8, 1 / 2, 1 / 2, 1 / 2])
