"""The plots of an analysis, each a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from torch import Tensor

from lstmlab.analysis.gates import SIGMOIDS, VISIBLE, Saturation
from lstmlab.analysis.probes import ProbeResult
from lstmlab.analysis.written import Measured

if TYPE_CHECKING:
    from lstmlab.analysis.causes import Cause

SHOWN_STEPS = 120  # in the plot of the gates


def make_grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure((width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def name_place(layer: int, direction: int) -> str:
    return f"layer {layer}" + (", backwards" if direction else "")


def draw_saturations(found: Mapping[str, Saturation]) -> Figure:
    """One point per unit: how often its gate is almost closed and almost open (Karpathy et al. 2015)."""
    L, D, _ = next(iter(found.values())).low.shape
    figure, axes = make_grid(L * D, len(found), 3, 3)
    for gate, name in enumerate(found):
        for k, (layer, direction) in enumerate(np.ndindex(L, D)):
            ax, (low, high) = axes[k][gate], found[name]
            ax.scatter(low[layer, direction], high[layer, direction], s=12, alpha=0.5)
            ax.plot([0, 1], [1, 0], color="grey", linewidth=0.8)
            ax.set(title=f"{name}, {name_place(layer, direction)}", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            ax.set(xlabel="share of steps below 0.1", ylabel="above 0.9", aspect="equal")
    return figure


def draw_half_lives(steps: Tensor) -> Figure:
    """A histogram of the half-lives of the units: steps (L, D, H)."""
    figure, [[ax]] = make_grid(1, 1, 6, 3.5)
    finite = steps[steps.isfinite()].clamp(min=0.1)
    bins = np.geomspace(0.1, max(10.0, float(finite.max()) if len(finite) else 10.0), 40)
    for layer, direction in np.ndindex(*steps.shape[:2]):
        values = steps[layer, direction].clamp(0.1, bins[-1])
        ax.hist(values, bins.tolist(), histtype="step", linewidth=1.6, label=name_place(layer, direction))
    ax.set(xscale="log", xlabel="half-life of the memory, in steps", ylabel="units")
    ax.legend()
    return figure


def draw_gates(traces: Mapping[str, Tensor], order: Tensor, tokens: list[str]) -> Figure:
    """All values of the last layer over the first steps: one row per unit, in the `order` (H,) given."""
    # Matplotlib's default font lacks some scripts
    font = get_font(findfont("DejaVu Sans"))
    shown = [
        "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in token.strip(" "))
        for token in (VISIBLE.get(token, token.rstrip("\n")) for token in tokens[:SHOWN_STEPS])
    ]
    figure, axes = make_grid(len(traces), 1, 2 + len(shown) * 0.14, 1.9)
    for (name, values), [ax] in zip(traces.items(), axes, strict=True):
        sigmoid = name in SIGMOIDS
        largest = float(values[-1, 0, :SHOWN_STEPS].abs().quantile(0.99))
        limit = largest if name == "c" else max(1.0, largest)
        image = ax.imshow(
            values[-1, 0, :SHOWN_STEPS].T[order].numpy(),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis" if sigmoid else "RdBu_r",
            vmin=0 if sigmoid else -limit,
            vmax=limit,
        )
        ax.set(ylabel=f"{name}: units")
        ax.set_xticks(range(len(shown)), shown, fontsize=6, parse_math=False)
        if max(map(len, shown)) > 1:
            ax.tick_params("x", rotation=90)
        figure.colorbar(image, ax=ax, pad=0.01)
    return figure


def draw_probes(results: list[ProbeResult]) -> Figure:
    """The best unit and the probe of each feature, beside the results with shifted labels."""
    figure, [[left, right]] = make_grid(1, 2, 5, 1.2 + 0.4 * len(results))
    y = np.arange(len(results))
    names = [f"{f.feature}\n{f.best[0][0]}" for f in results]
    bars = {
        left: ([abs(f.best[0][1]) for f in results], [f.control_r for f in results]),
        right: ([f.probe for f in results], [f.control_probe for f in results]),
    }
    for ax, (found, control) in bars.items():
        ax.barh(y, np.maximum(found, 0), color="tab:blue", label="truth")
        ax.barh(y, np.maximum(control, 0), height=0.3, color="tab:orange", label="shifted labels, the best")
        ax.set(xlim=(0, 1))
        ax.invert_yaxis()
    left.set_yticks(y, names, fontsize=8, parse_math=False)
    right.set_yticks([])
    left.set(xlabel="|r| of the best unit")
    right.set(xlabel="R² of the linear probe")
    right.legend(fontsize=8)
    return figure


def draw_causes(causes: "list[Cause]") -> Figure:
    """How much the loss grows without the units that track a feature, beside random units."""
    figure, [[ax]] = make_grid(1, 1, 8, 1.2 + 0.4 * len(causes))
    y = np.arange(len(causes))
    for effects, shift, color, label in (
        ([cause.at_work for cause in causes], -0.15, "tab:blue", "where the feature is at work"),
        ([cause.elsewhere for cause in causes], 0.15, "tab:grey", "elsewhere"),
    ):
        means, low, high = np.array(effects).T
        if not np.isnan(means).all():
            ax.errorbar(means, y + shift, None, (means - low, high - means), "o", ms=4, c=color, label=label)
    controls = np.concatenate([cause.controls for cause in causes])
    rows = np.repeat(y - 0.15, [len(cause.controls) for cause in causes])
    ax.scatter(controls, rows, s=8, color="tab:orange", label="random units, at work", zorder=0)
    ax.set_yticks(y, [f"{cause.feature}\n{cause.name}" for cause in causes], fontsize=8, parse_math=False)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_ylim(len(causes) - 0.5, -0.5)
    ax.set(xlabel="change of the loss without these units, nats per prediction")
    figure.legend(fontsize=8, ncols=3, loc="outside upper center")
    return figure


def draw_gradient_flows(flows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """‖∂loss/∂h_t‖, and ‖∂loss/∂c_t‖ dashed, over T − t."""
    figure, [[ax]] = make_grid(1, 1, 8, 5)
    longest = 1
    for k, (name, flow) in enumerate(flows.items()):
        for member, norms in flow.items():
            back = norms.flip(0).clamp(min=1e-30)
            steps = np.arange(len(back))
            longest = max(longest, len(back))
            style = f"C{k}" + ("-" if member == "h" else "--")
            first = int(member == "c")  # ∂loss/∂c_T is 0: the loss reads only h_T
            ax.plot(steps[first:], back[first:], style, label=f"{name}: ∂loss/∂{member}ₜ")
    for share in (0.85, 0.98):
        ax.plot(share ** np.arange(longest), ":", color="black", linewidth=1)
        ax.annotate(f"{share}ᵗ".lstrip("0"), (longest - 1, share ** (longest - 1)))
    ax.set(yscale="log", ylim=(1e-16, 10), xlabel="T − t, steps back", ylabel="norm, as a share of that at T")
    ax.legend(fontsize=7, ncols=2)
    return figure


def draw_writing(temperatures: Sequence[float], measured: Sequence[Measured]) -> Figure:
    """Measures of held-out text, of the text of the model at each temperature, and of n-gram text."""
    measures = {
        "loss, nats per character": [group.loss for group in measured],
        "share of words known": [group.known_words for group in measured],
        "mean copy, characters": [group.mean_copy for group in measured],
        "distinct-2": [group.distinct[1] for group in measured],
    }
    figure, [axes] = make_grid(1, len(measures), 3, 3)
    for ax, (name, (held_out, *model, ngrams)) in zip(axes, measures.items(), strict=True):
        ax.plot(temperatures, model, "o-", label="the model")
        ax.axhline(held_out, color="black", linestyle="--", label="held-out text")
        ax.axhline(ngrams, color="grey", linestyle=":", label="n-grams")
        ax.set(title=name, xlabel="temperature", xticks=temperatures)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
