"""The effect of holding units, on a model that needs one of them and not the others."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lstmlab.analysis.causes import CONTROLS, compute_losses, estimate, measure_causes
from lstmlab.analysis.probes import ProbeResult, Unit
from lstmlab.checkpoint import load_model
from lstmlab.data.rows import Rows


@pytest.fixture
def model(trained) -> Any:
    """Its predictions read the hidden state of unit 2 alone, with great weight."""
    model: Any = load_model(str(trained("charlm", "cell.hidden_size=12", "cell.num_layers=1")), "scratch")
    with torch.no_grad():
        model.resize = torch.nn.Identity()
        model.projection = torch.nn.Linear(12, len(model.vocabulary))
        model.projection.weight.zero_()[:, 2] = 30 * torch.randn(len(model.vocabulary))
        model.cell.weight_hh_l0.zero_()
    return model


def test_the_unit_that_is_read_is_a_cause_and_the_others_are_not(model):
    rows = Rows.dense(torch.randint(1, len(model.vocabulary), (10, 20)))
    feature = (np.arange(200) % 3 == 0).astype(np.float32)
    best = [(Unit("c", 0, 0, number), 0.9) for number in (2, 5, 6, 7, 8)]
    idle = [(Unit("c", 0, 0, number), 0.9) for number in (4, 5, 6, 7, 8)]
    results = [ProbeResult("x", units, (0, 0), 0, 0, 0) for units in (best, idle)]
    one, five, idle_one, idle_five = measure_causes(model, rows, {"x": feature}, results)
    assert [len(cause.units) for cause in (one, five)] == [1, 5]
    assert one.at_work.mean != 0 != one.elsewhere.mean and five.at_work == one.at_work
    assert idle_one.at_work == idle_one.elsewhere == (0, 0, 0) and idle_five.ratio == 0
    assert len(one.controls) == CONTROLS and set(one.controls) <= {0.0, one.at_work.mean}


def test_losses_are_those_of_the_next_tokens(model):
    rows = Rows.dense(torch.randint(1, len(model.vocabulary), (3, 7)))
    with torch.no_grad():
        losses = compute_losses(model, rows)
        log_p = model(rows.ids)[0].log_softmax(-1)
    for b in range(3):
        for t in range(6):
            assert losses[b, t] == pytest.approx(-log_p[b, t, rows.ids[b, t + 1]].item(), abs=1e-5)
    assert F.cross_entropy(log_p[:, :-1].flatten(0, 1), rows.ids[:, 1:].flatten()) == pytest.approx(
        losses.mean().item(), abs=1e-5
    )


def test_an_interval_holds_the_mean_and_shrinks_with_more_rows():
    values = np.random.default_rng(1).normal(3.0, 1.0, (400, 5))
    where = np.zeros_like(values, bool)
    where[:, :3] = True
    effect = estimate(values, where)
    assert effect.mean == pytest.approx(values[:, :3].mean())
    assert effect.low < 3 < effect.high and effect.high - effect.low == pytest.approx(
        2 * 1.96 / np.sqrt(1200), rel=0.25
    )
    few = estimate(values[:40], where[:40])
    assert few.high - few.low > 2 * (effect.high - effect.low)
