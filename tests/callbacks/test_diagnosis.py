"""Each rule on looks made by hand: where it finds its fault, where it does not, and what it advises.

The limits, and losses at them, are numbers that float holds exactly.
"""

from typing import Any

import pytest

from lstmlab.callbacks.diagnosis import (
    Finding,
    Look,
    diagnose,
    explain_kept_graph,
    explain_not_finite,
    explain_out_of_memory,
    find_early_plateau,
    find_exploding_gradient,
    find_flat_loss,
    find_oscillating_loss,
    find_slow_bf16,
    find_slow_input,
    find_vanishing_gradient,
)
from lstmlab.schema import Limits, TrainConfig

LIMITS = Limits(
    steps=10,
    patience=100,
    flat=0.25,
    still=0.5,
    stride=0.25,
    rough=0.125,
    gain=0.0625,
    plateau=0.5,
    vanishing=0.125,
    exploding=1024.0,
    waiting=0.5,
)


@pytest.fixture
def settings(config) -> TrainConfig:
    """With the size and rate that the task recommends: 128 units, lr 0.005."""
    return config("model=copytask")


def looks(losses: list[float], moved: list[float] | float = 0.0625, step: int = 10, **values) -> list[Look]:
    """One every 10 steps, the first at `step`."""
    moves = moved if isinstance(moved, list) else [moved] * len(losses)
    given: dict[str, Any] = {
        "peak": 1.0,
        "gradients": {"cell": 1.0, "projection": 1.0},
        "waiting": 0.0,
    } | values
    return [
        Look(step + 10 * k, loss, move, **given)
        for k, (loss, move) in enumerate(zip(losses, moves, strict=True))
    ]


def name(finding: Finding | None) -> str | None:
    return finding and finding.name


@pytest.mark.parametrize(
    ("losses", "moved", "step", "speaks"),
    [
        ([1.0] * 8, 0.03125, 10, True),
        ([1.0, *[0.75] * 7], 0.03125, 10, True),  # just not by more than `flat`
        ([1.0, *[0.74] * 7], 0.03125, 10, False),
        ([1.0] * 3 + [0.5] * 3 + [0.75] * 5, 0.03125, 10, True),  # the last five count
        ([1.0] * 8, 0.0625, 10, True),  # 8 / 16, all of them counted, is not more than `still`
        ([1.0] * 9, 0.0625, 10, False),
        ([1.0] * 8, 0.03125, 100, True),  # from the start on
        ([1.0] * 8, 0.03125, 110, False),
    ],
)
def test_flat_loss(settings, losses, moved, step, speaks):
    found = find_flat_loss(looks(losses, moved, step), 1.0, settings, LIMITS)
    assert name(found) == ("flat loss" if speaks else None)


@pytest.mark.parametrize(
    ("optimizer", "lr", "advice"),
    [
        ("Adam", 1e-4, "optimizer.lr=0.005"),  # what the task recommends
        ("Adam", 0.005, "optimizer.lr=0.15"),
        ("Adam", 0.1, "optimizer.lr=1"),  # no more than that
        ("SGD", 1e-4, "optimizer.lr=0.003"),  # for which the recommended one is not meant
    ],
)
def test_a_higher_rate(settings, optimizer, lr, advice):
    settings = settings.replace({"optimizer": {"_target_": f"torch.optim.{optimizer}", "lr": lr}})
    found = find_flat_loss(looks([1.0] * 8, 0.0), 1.0, settings, LIMITS)
    assert found is not None and found.advice == [advice]
    assert f"optimizer.lr={lr:g}, is too low" in found.cause


@pytest.mark.parametrize(
    ("losses", "moved", "speaks"),
    [
        ([1.0, 1.25] * 5, 0.0625, True),
        ([1.0, 1.125] * 5, 0.0625, False),  # by no more than `rough`
        ([2.0, 2.25] * 5, 0.0625, False),  # of the baseline, which is 2 here
        ([9.0, 8.0] + [1.0, 1.25] * 5, 0.0625, True),  # of ten looks
        ([1.0, 1.25] * 4 + [1.0, 0.5], 0.0625, False),  # but it falls
        ([1.0] * 6 + [1.25, 1.0, 1.25, 1.25], 0.0625, False),  # twice
        ([1.0] * 4 + [1.25, 1.0, 1.25, 1.0, 1.25, 1.25], 0.0625, True),  # three times
        ([1.0] * 10, [0.25] + [0.0] * 9, True),  # thrown about once, and dead now
        ([1.0] * 10, [0.2] * 10, False),
        ([0.95] * 10, [0.25] + [0.0] * 9, False),  # not dead: what counts is now
        ([0.95] * 10, [0.0] * 5 + [0.25] * 5, True),
        ([0.95] * 10, [0.0] * 6 + [0.25] * 4, False),
        ([0.9] * 5 + [0.82] * 5, 0.25, True),
        ([0.9] * 5 + [0.80] * 5, 0.25, False),  # long strides downhill
    ],
)
def test_oscillating_loss(settings, losses, moved, speaks):
    baseline = 2.0 if losses[0] == 2 else 1.0
    found = find_oscillating_loss(looks(losses, moved), baseline, settings, LIMITS)
    assert name(found) == ("oscillating loss" if speaks else None)


@pytest.mark.parametrize(
    ("lr", "advice"),
    [(0.5, "optimizer.lr=0.005"), (0.008, "optimizer.lr=0.0008"), (0.01, "optimizer.lr=0.001")],
)
def test_a_lower_rate(settings, lr, advice):
    settings = settings.replace({"optimizer.lr": lr})
    found = find_oscillating_loss(looks([7.0] + [1.0, 1.25] * 5, 0.5), 1.0, settings, LIMITS)
    assert found is not None and found.advice == [advice, "scheduler.warmup_steps=200"]
    assert (
        "over the last 10 looks the loss varied between 1 and 1.25; 10 steps moved the weights by 50%"
        in found.evidence
    )


@pytest.mark.parametrize(
    ("losses", "hidden_size", "speaks"),
    [
        ([1.0] * 4 + [0.8] * 12, 128, True),
        ([1.0] * 4 + [0.8] * 4 + [0.75] * 8, 128, True),  # just not by more than `gain`
        ([1.0] * 4 + [0.8] * 4 + [0.74] * 8, 128, False),
        ([0.8] * 4 + [0.9] * 4 + [0.8] * 8, 128, False),  # against the second quarter
        ([0.5] * 16, 128, False),  # low enough
        ([0.51] * 16, 128, True),
        ([0.9] * 16, 128, False),  # a copy task's loss rests there before it falls
        ([0.89] * 16, 128, True),
        ([0.9] * 16, 16, True),  # a tiny stack
        ([0.9] * 16, 17, False),
        ([1.0] * 8 + [0.75] * 8, 16, True),  # five times `gain`, and no more
        ([1.0] * 8 + [0.65] * 8, 16, False),
        ([0.34] * 16, 16, True),  # two thirds of `plateau`
        ([0.33] * 16, 16, False),
    ],
)
def test_early_plateau(settings, losses, hidden_size, speaks):
    settings = settings.replace({"cell.hidden_size": hidden_size})
    found = find_early_plateau(looks(losses), 1.0, settings, LIMITS)
    assert name(found) == ("early plateau" if speaks else None)


@pytest.mark.parametrize(("hidden_size", "advice"), [(16, 128), (100, 200)])
def test_more_capacity(settings, hidden_size, advice):
    settings = settings.replace({"cell.hidden_size": hidden_size, "cell.num_layers": 2})
    found = find_early_plateau(looks([1.8] * 16), 2.1, settings, LIMITS)
    assert found is not None
    assert found.advice == [f"cell.hidden_size={advice}", "cell.num_layers=3"]
    assert found.evidence == (
        "from step 90 to 160 the mean loss was 1.8, 0.0% lower than from step 50 to 80; "
        "predicting from the class frequencies alone gives 2.1"
    )


def with_gradients(*of_each_look: dict[str, float], loss: float = 1.0) -> list[Look]:
    return [
        look._replace(gradients=g)
        for look, g in zip(looks([loss] * len(of_each_look)), of_each_look, strict=True)
    ]


def test_vanishing_gradient(settings):
    """Three looks in a row, at the same layer."""
    none, some = {"a": 0.0625, "b": 1.0}, {"a": 1.0, "b": 0.0625}
    at_it = {"a": 0.125, "b": 1.0}
    for given, layers in [
        ([none] * 3, "a (0.06)"),
        ([some, none, none, none], "a (0.06)"),
        ([{"a": 0.0625, "b": 0.03125}] * 3, "a (0.06), b (0.03)"),
        ([none] * 2, None),
        ([none, none, some], None),
        ([none, some, none], None),
        ([some, none, none], None),
        ([at_it] * 3, None),
        ([{"b": 1.0}, none, none], None),  # of which nothing was known
    ]:
        found = find_vanishing_gradient(with_gradients(*given), 1.0, settings, LIMITS)
        assert (found and found.evidence) == (
            layers and f"at three looks in a row the gradient norm was below 0.125 in {layers}"
        )
    assert find_vanishing_gradient(with_gradients(*[none] * 3, loss=0.25), 2.0, settings, LIMITS) is not None
    assert (
        find_vanishing_gradient(with_gradients(*[none] * 3, loss=0.1875), 2.0, settings, LIMITS) is None
    )  # it is solved


@pytest.mark.parametrize(
    ("cell", "advice"),
    [
        ({"num_layers": 2}, []),
        ({"num_layers": 5}, ["cell.num_layers=2"]),
        ({"kind": "rnn", "init": "torch"}, ["cell.kind=lstm", "cell.init=xavier"]),
    ],
)
def test_what_helps_against_vanishing(settings, cell, advice):
    settings = settings.replace({f"cell.{key}": value for key, value in cell.items()})
    found = find_vanishing_gradient(with_gradients(*[{"a": 0.0}] * 3), 1.0, settings, LIMITS)
    assert found is not None and found.advice == [*advice, "optimizer.lr=0.0015"]


@pytest.mark.parametrize(
    ("peak", "gradients", "layer"),
    [
        (1024.0, {"a": 3.0, "b": 2.0}, "a (3)"),
        (1000.0, {"a": 3.0, "b": 1024.0}, "b (1e+03)"),
        (1000.0, {"a": 1000.0, "b": 1000.0}, None),
    ],
)
def test_exploding_gradient(settings, peak, gradients, layer):
    given = looks([1.0] * 2, peak=1.0)
    found = find_exploding_gradient(
        [*given[:1], given[1]._replace(peak=peak, gradients=gradients)], 1.0, settings, LIMITS
    )
    assert (found is None) == (layer is None)
    if found is not None:
        assert found.evidence.startswith("within 10 steps the gradient norm before clipping reached 1e+03")
        assert found.evidence.endswith(f"it was largest in {layer}")
        assert found.advice == ["clipping.max_norm=0.25", "optimizer.lr=0.0005"]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"clipping": {"name": "value", "max_value": 1.0}}, ["clipping=norm clipping.max_norm=1"]),
        ({"clipping": {"name": "none"}}, ["clipping=norm clipping.max_norm=1"]),
        ({"clipping": {"name": "norm", "max_norm": 2.0}}, ["clipping.max_norm=0.5"]),
    ],
)
def test_what_helps_against_exploding(settings, changes, advice):
    settings = settings.replace({"cell.kind": "rnn"} | changes)
    found = find_exploding_gradient(looks([1.0], peak=4096.0), 1.0, settings, LIMITS)
    assert found is not None and found.advice == [*advice, "optimizer.lr=0.0005", "cell.kind=lstm"]
    assert found.evidence.startswith("within 10 steps")
    stopped = explain_not_finite("the loss is nan at step 7", looks([3.0, 2.0, 1.0, 0.5]), settings)
    assert stopped.advice == [f"{advice[0]} optimizer.lr=0.0005"]
    assert stopped.evidence == (
        "the loss is nan at step 7; before that the loss was 2 at step 20, 1 at step 30, 0.5 at step 40"
    )


def test_not_finite_in_half_precision(settings):
    found = explain_not_finite(
        "the loss is inf at step 7", [], settings.replace({"precision.name": "16-mixed"})
    )
    assert found.advice == ["clipping.max_norm=0.25 optimizer.lr=0.0005", "precision=fp32"]
    assert found.evidence == "the loss is inf at step 7, before the first look"


@pytest.mark.parametrize(
    ("waiting", "speaks"),
    [
        ([0.5, 0.5, 0.5], True),
        ([0.1, 0.9, 0.5, 0.6], True),
        ([0.9, 0.9], False),
        ([0.9, 0.9, 0.4], False),
        ([0.4, 0.9, 0.9], False),
    ],
)
def test_slow_input(config, settings, waiting, speaks):
    given = [look._replace(waiting=w) for look, w in zip(looks([1.0] * len(waiting)), waiting, strict=True)]
    found = find_slow_input(given, 1.0, settings.replace({"data.num_workers": 3}), LIMITS)
    assert (found is not None) == speaks
    if found is not None:
        assert found.advice == ["data.num_workers=5"]
        assert found.evidence.startswith(f"{waiting[-1]:.0%} of the time")
        found = find_slow_input(given, 1.0, config("model=charlm"), LIMITS)
        assert found is not None and found.advice == ["data.path=… on a faster disk"]


def test_out_of_memory(config, settings):
    found = explain_out_of_memory(MemoryError(), settings.replace({"data.delay": 7, "data.batch_size": 8}))
    assert "; data.batch_size=8, data.delay=7, cell.hidden_size=128" in found.evidence

    cell = ["cell=scratch", "cell.hidden_size=9", "cell.num_layers=2"]
    data = ["model=sentiment", "data=reviews", "data.batch_size=8", "data.max_length=41"]
    settings = config(*cell, *data, "trainer.accumulate_grad_batches=3")
    found = explain_out_of_memory(MemoryError("too much\nof it"), settings)
    assert found.evidence == (
        "too much; data.batch_size=8, data.max_length=41, cell.hidden_size=9, cell.num_layers=2"
    )
    assert found.advice == [
        "cell=fused",
        "data.batch_size=4 trainer.accumulate_grad_batches=6",
        "data.max_length=20",
        "cell.hidden_size=4",
    ]
    changes = {"data.batch_size": 1, "data.max_length": 1, "cell.backend": "fused", "cell.hidden_size": 1}
    settings = settings.replace(changes | {"trainer.accelerator": "gpu"})
    found = explain_out_of_memory(MemoryError(), settings)
    assert found.evidence.startswith("MemoryError; ")
    assert found.advice == ["cell.hidden_size=1", "precision=bf16"]
    settings = settings.replace({"precision.name": "bf16-mixed"})
    assert explain_out_of_memory(MemoryError(), settings).advice == ["cell.hidden_size=1"]


def test_slow_bf16():
    assert find_slow_bf16(0.0109, 0.01) is None
    found = find_slow_bf16(0.02, 0.01)
    assert found is not None and found.advice == ["precision=fp32"]
    assert found.evidence == "a batch took the cells 20 ms in bf16 and 10 ms in float32"


def test_kept_graph():
    assert (
        "of the 9 nodes in the graph behind the second batch's loss, 4 were made"
        in explain_kept_graph(4, 9).evidence
    )


def test_rules_about_the_loss_wait(settings):
    """Until `patience` steps after the warm-up and ten looks; three times as long for a plateau."""
    settings = settings.replace({"scheduler.warmup_steps": 20, "cell.hidden_size": 16})
    still = looks([0.8] * 50, 0.0)

    def said(count: int, given: list[Look] = still) -> list[str]:
        return [finding.name for finding in diagnose(given[:count], 1.0, settings, LIMITS)]

    assert said(11) == [] and said(12) == ["flat loss"]  # at step 110, 120
    assert said(31) == ["flat loss"] and said(32) == ["flat loss", "early plateau"]  # at step 310, 320
    sparse = [look._replace(step=60 * (k + 1)) for k, look in enumerate(still)]
    assert said(9, sparse) == [] and said(10, sparse) == ["flat loss", "early plateau"]


def test_the_other_rules_do_not_wait(settings):
    bad = looks([1.0] * 3, gradients={"a": 0.0}, peak=2048.0, waiting=0.75)
    found = [finding.name for finding in diagnose(bad, 1.0, settings, LIMITS)]
    assert found == ["vanishing gradient", "exploding gradient", "slow input"]
