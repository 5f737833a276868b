"""The content of the plots, read from their axes."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from lstmlab.analysis import plots
from lstmlab.analysis.causes import Cause, Effect
from lstmlab.analysis.gates import Saturation
from lstmlab.analysis.probes import ProbeResult, Unit
from lstmlab.analysis.written import Measured


def test_saturations():
    """One column per gate, one row per layer and direction, one point per unit."""
    torch.manual_seed(0)
    found = {name: Saturation(torch.rand(2, 2, 3), torch.rand(2, 2, 3)) for name in "fi"}
    axes = plots.draw_saturations(found).axes
    places = ["layer 0", "layer 0, backwards", "layer 1", "layer 1, backwards"]
    assert [ax.get_title() for ax in axes] == [f"{name}, {place}" for place in places for name in "fi"]
    for k, ax in enumerate(axes):
        low, high = found["fi"[k % 2]]
        at = divmod(k // 2, 2)
        [points] = (each for each in ax.collections if isinstance(each, PathCollection))
        np.testing.assert_allclose(np.array(points.get_offsets()), torch.stack([low[at], high[at]], 1))


def test_half_lives():
    """Two of six units forget at once, and one never forgets."""
    figure: Any = plots.draw_half_lives(torch.tensor([[[0.01, 0.05, 3.0, 3.01, 20.0, torch.inf]]]))
    [ax] = figure.axes
    [outline] = ax.patches
    x, y = outline.get_xy().T
    assert y.max() == 2 and (x.min(), x.max()) == pytest.approx((0.1, 20.0))
    assert y.tolist().count(2) == 3 * 2  # both ends of three bins
    assert ax.get_legend().get_texts()[0].get_text() == "layer 0"


def test_gates():
    """The last layer, forward direction; one row per unit in the given order; at most 120 steps."""
    torch.manual_seed(0)
    traces = {
        "f": torch.rand(2, 2, 130, 3),
        "c": 5 * torch.randn(2, 2, 130, 3),
        "h": torch.rand(2, 2, 130, 3),
        "k": 3 * torch.randn(2, 2, 130, 3),  # a candidate without tanh
    }
    order, tokens = torch.tensor([2, 0, 1]), [*" \n\ta电\U000f0000" * 21, "no", *"more" * 3]
    figure = plots.draw_gates(traces, order, tokens)
    axes = [ax for ax in figure.axes if ax.get_ylabel().endswith(": units")]
    assert [ax.get_ylabel()[0] for ax in axes] == ["f", "c", "h", "k"]
    for ax, (name, values) in zip(axes, traces.items(), strict=True):
        [image] = ax.images
        shown = values[1, 0, :120].T[[2, 0, 1]].numpy()
        np.testing.assert_array_equal(image.get_array(), shown)
        limit = np.quantile(abs(shown), 0.99) if name in "ck" else 1.0
        assert image.get_clim() == pytest.approx((0 if name == "f" else -limit, limit))
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert labels == [*["␣", "⏎", "→", "a", "□", "□"] * 20]


def test_probes():
    results = [
        ProbeResult("one", [(Unit("h", 0, 0, 3), -0.75)], (-0.7, -0.8), 0.25, 0.5, 0.125),
        ProbeResult("two", [(Unit("c", 1, 1, 2), 0.5)], (0.5, 0.5), 0.375, -3.0, -4.0),
    ]
    left, right = plots.draw_probes(results).axes
    assert [[bar.get_width() for bar in bars] for bars in left.containers] == [[0.75, 0.5], [0.25, 0.375]]
    assert [[bar.get_width() for bar in bars] for bars in right.containers] == [[0.5, 0], [0.125, 0]]
    assert [bars.get_label() for bars in right.containers] == ["truth", "shifted labels, the best"]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["one\nh, layer 0, unit 3", "two\nc, layer 1, backwards, unit 2"]


def test_causes():
    """Each effect has its interval, beside random units; without an elsewhere, no point is drawn for it."""
    unit, nowhere = Unit("h", 0, 1, 3), Effect(np.nan, np.nan, np.nan)
    one = Cause("one", [unit], Effect(0.5, 0.25, 1.0), Effect(-0.25, -0.5, 0.0), [0.125, -0.125])
    two = Cause("two", [unit] * 5, Effect(0.75, 0.5, 1.0), nowhere, [0.0, 0.25])
    for causes, shown in (([one, two], [[0.5, 0.75], [-0.25, np.nan]]), ([two], [[0.75]])):
        figure: Any = plots.draw_causes(causes)
        [ax] = figure.axes
        points = [container.lines[0].get_xdata() for container in ax.containers]
        np.testing.assert_array_equal(points, shown)
        [bars] = ax.containers[0].lines[2]
        ends = np.array(bars.get_segments())[:, :, 0]
        np.testing.assert_allclose(ends, [cause.at_work[1:] for cause in causes])
        [controls] = (each for each in ax.collections if isinstance(each, PathCollection))
        expected = [c for cause in causes for c in cause.controls]
        np.testing.assert_allclose(np.array(controls.get_offsets())[:, 0], expected)
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names[-1] == "two\nthe best 5" and len(names) == len(causes)


def test_gradient_flows():
    """Over the steps back from the end, where the norm of h is 1; c starts one step before the end."""
    h, c = torch.tensor([0.125, 0.25, 0.5, 1.0]), torch.tensor([0.0625, 0.375, 0.75, 0.0])
    [ax] = plots.draw_gradient_flows({"a": {"h": h}, "b": {"h": h[1:], "c": c[1:]}}).axes
    drawn = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    found = {label: np.array(line.get_data()).tolist() for label, line in drawn.items()}
    assert found == {
        "a: ∂loss/∂hₜ": [[0, 1, 2, 3], [1, 0.5, 0.25, 0.125]],
        "b: ∂loss/∂hₜ": [[0, 1, 2], [1, 0.5, 0.25]],
        "b: ∂loss/∂cₜ": [[1, 2], [0.75, 0.375]],
    }
    assert [line.get_linestyle() for line in drawn.values()] == ["-", "-", "--"]
    references = [np.array(line.get_ydata()) for line in ax.lines if str(line.get_label()).startswith("_")]
    for found_line, share in zip(references, (0.85, 0.98), strict=True):
        np.testing.assert_allclose(found_line, [share**k for k in range(4)])


def test_writing():
    """Four measures of held-out text, of two temperatures and of n-grams."""
    measured = [Measured("", [], n, 9, n / 8, [], 9, 2 * n, 0.5, [0.1, n / 4, 0.9]) for n in (1, 2, 3, 4)]
    axes = plots.draw_writing([0.5, 1.0], measured).axes
    assert [ax.get_title() for ax in axes] == [
        "loss, nats per character",
        "share of words known",
        "mean copy, characters",
        "distinct-2",
    ]
    for ax, scale in zip(axes, (1, 1 / 8, 2, 1 / 4), strict=True):
        shown = {line.get_label(): np.array(line.get_data()).tolist() for line in ax.lines}
        assert shown["the model"] == [[0.5, 1.0], [2 * scale, 3 * scale]]
        assert shown["held-out text"][1] == [scale] * 2 and shown["n-grams"][1] == [4 * scale] * 2
