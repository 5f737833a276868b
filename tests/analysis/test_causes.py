"""The effect of holding units, on a model that needs one of them and not the others."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lstmlab.analysis.causes import CONTROLS, estimate, measure_causes, suspect_read_units, suspect_trackers
from lstmlab.analysis.interventions import clamp, intervene
from lstmlab.analysis.probes import ProbeResult, Unit
from lstmlab.analysis.traces import load_model_data, load_validation_rows
from lstmlab.checkpoint import load_model
from lstmlab.data.rows import Rows
from lstmlab.models.attention import ATTENTIONS

MEANS = {name: torch.zeros(1, 2, 12) for name in "ch"}


@pytest.fixture
def writer(trained) -> Any:
    """Its predictions read the hidden state of unit 2 alone, with great weight."""
    model: Any = load_model(str(trained("charlm", "cell.hidden_size=12", "cell.num_layers=1")), "scratch")
    with torch.no_grad():
        model.resize = torch.nn.Identity()
        model.projection = torch.nn.Linear(12, len(model.vocabulary))
        model.projection.weight.zero_()[:, 2] = 30 * torch.randn(len(model.vocabulary))
        model.cell.weight_hh_l0.zero_()
    return model


def rank(feature: str, *numbers: int) -> ProbeResult:
    """As if these units of the cell state tracked the feature, the best first."""
    return ProbeResult(feature, [(Unit("c", 0, 0, number), 0.9) for number in numbers], (0, 0), 0, 0, 0)


def test_the_unit_that_is_read_is_a_cause_and_the_others_are_not(writer):
    rows = Rows.dense(torch.randint(1, len(writer.vocabulary), (10, 20)))
    features = {"x": (np.arange(200) % 3 == 0).astype(np.float32)}
    results = [rank("x", 2, 5, 6, 7, 8), rank("x", 4, 5, 6, 7, 8)]
    suspects = suspect_trackers(writer, rows, features, results)
    assert (suspects[0].at_work == features["x"].reshape(10, 20)[:, :-1]).all()
    one, five, idle_one, idle_five = measure_causes(writer, rows, suspects, MEANS)
    assert [len(cause.units) for cause in (one, five)] == [1, 5]
    assert one.at_work.mean != 0 != one.elsewhere.mean and five.at_work == one.at_work
    assert idle_one.at_work == idle_one.elsewhere == (0, 0, 0) and idle_five.ratio == 0
    assert len(one.controls) == CONTROLS and set(one.controls) <= {0.0, one.at_work.mean}

    with torch.no_grad(), intervene(writer, {"layer0.c[2]": clamp(0.0)}):
        cost = writer.compute_losses(rows).numpy()
    with torch.no_grad():
        cost -= writer.compute_losses(rows).numpy()
    assert one.at_work.mean == pytest.approx(cost[suspects[0].at_work].mean(), rel=1e-5)
    assert one.elsewhere.mean == pytest.approx(cost[~suspects[0].at_work].mean(), rel=1e-5)


@pytest.mark.parametrize("names", [["no", "yes"], ["no", "yes", "both"]])
def test_the_label_of_a_classifier_is_of_whole_texts(trained, names):
    """Of two classes it is at work in every text; of three in those of its class."""
    model: Any = load_model(str(trained("sentiment")), "scratch")
    rows: Any = load_validation_rows(model, {}, 200)[0]
    C = len(names)
    rows = rows._replace(labels=(torch.arange(len(rows.ids)) % C).to(torch.float32 if C == 2 else torch.long))
    model.labels, model.projection = names, torch.nn.Linear(16, 1 if C == 2 else C)
    with torch.no_grad():  # the prediction reads unit 2 alone, forwards
        model.projection.weight.mul_(torch.arange(16) == 2).mul_(30)
        model.cell.weight_hh_l0.zero_()
    features = model.text_features(rows, None)
    suspects = suspect_trackers(model, rows, features, [rank(name, 2, 4, 5, 6, 7) for name in features])
    assert [suspect.feature for suspect in suspects] == [f"the text is {name}" for name in names[C == 2 :]]
    for number, suspect in enumerate(suspects):
        assert suspect.at_work[:, 0].tolist() == (rows.labels.eq(number) | (C == 2)).tolist()
    one, five, *_ = measure_causes(model, rows, suspects, MEANS)
    assert one.at_work.mean != 0 and five.at_work == one.at_work
    assert np.isnan(one.elsewhere.mean) == (C == 2)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_units_that_attention_reads(trained, name):
    """With dot and general, the score of a token is a sum over the units of what they add to it."""
    model: Any = load_model(str(trained("seq2seq")), "scratch")
    rows: Any = load_validation_rows(model, {}, 60)[0]
    torch.manual_seed(0)
    model.attention = ATTENTIONS[name](8, 16)
    if name == "none":
        assert suspect_read_units(model, rows) == []
        return
    matrix = {"general": "W", "additive": "U"}.get(name)
    if matrix:
        with torch.no_grad():
            getattr(model.attention, matrix).weight[:, 13] *= 100  # backwards, unit 5
    [suspect] = suspect_read_units(model, rows)
    assert suspect.at_work.all() and len(suspect.units) == 5
    assert not matrix or suspect.units[0] == Unit("h", 0, 1, 5)
    if name != "additive":
        W = model.attention.W.weight if matrix else torch.eye(8).repeat(1, 2)
        with torch.no_grad():
            memory, state = model.encode(rows.ids, rows.lengths)
            query, _ = model.decoder(model.embed_scaled(model.target_embedding, rows.labels[:, :-1]), state)
            scores, variances = model.attention.score(query, memory.keys), []
            for b, n in enumerate(rows.lengths.tolist()):
                for t in range(int((rows.labels[b, 1:] != 0).sum())):
                    added = (query[b, t] @ W) * memory.values[b, :n]  # (S, D·H)
                    assert_close(added.sum(1), scores[b, t, :n])
                    variances.append(added.var(0, correction=0))
        assert_close(model.measure_reading(rows), torch.stack(variances).mean(0))
    one, _ = measure_causes(model, rows, [suspect], MEANS)
    assert one.at_work.mean != 0 and np.isnan(one.elsewhere.mean)


@torch.no_grad()
def test_losses_are_those_of_the_predictions(writer, trained):
    """Each task's, against log p of what its model computes; their mean is the loss of validation."""
    rows = Rows.dense(torch.randint(1, len(writer.vocabulary), (3, 7)))
    log_p = writer(rows.ids)[0].log_softmax(-1)
    expected = -log_p[:, :-1].gather(2, rows.ids[:, 1:, None]).squeeze(2)
    assert_close(writer.compute_losses(rows), expected)
    for task in ("sentiment", "seq2seq", "copytask"):
        model: Any = load_model(str(trained(task)), "scratch")
        batch = next(iter(load_model_data(model, {}).val_dataloader()))
        loss = model.loss(batch)
        rows = model.rows_of_batch(batch)
        losses = model.compute_losses(rows)
        assert_close(losses.nanmean(), loss[0] if isinstance(loss, tuple) else loss)
        assert losses.size(0) == len(batch[0])
        if task == "seq2seq":  # behind a target's end there is no loss
            rows.labels[0, 4:] = 0
            losses[0, 3:] = torch.nan
            assert_close(model.compute_losses(rows), losses, equal_nan=True)


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
