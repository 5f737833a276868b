"""The curves of a run, read from its metrics.csv."""

import csv
import math
from pathlib import Path
from statistics import fmean

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

COLUMNS = 3  # of panels, at most

Points = dict[str, tuple[list[int], list[float]]]  # the steps and values of each metric


class Curves(L.Callback):
    """Draws RUN_DIR/curves.png at the end of training: the losses and the metrics of validation over the
    steps, with those before an interruption. A run does not fail for it."""

    def on_fit_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            model, folder = pl_module.config.model, trainer.default_root_dir
            try:
                points = read_points(folder)
                draw_curves(points, model.monitor, model.monitor_mode, Path(folder, "curves.png"))
            except Exception as error:
                rank_zero_warn(f"no curves.png: {error!r}")


def read_points(run_dir: str) -> Points:
    points: Points = {}
    with Path(run_dir, "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text and name not in ("step", "epoch"):
                    steps, values = points.setdefault(name, ([], []))
                    # Lightning counts from 0
                    steps.append(int(row["step"]) + 1)
                    values.append(float(text))
    return points


def mean_train_loss(points: Points, best: int) -> float | None:
    """The mean training loss between the validation before step `best` and this step, if one was recorded.

    The loss of a single batch may be far from it, and so from the validation loss.
    """
    validated = {step for name, (steps, _) in points.items() if name.startswith("val/") for step in steps}
    before = max((step for step in validated if step < best), default=0)
    steps, values = points.get("train/loss", ([], []))
    recent = [value for step, value in zip(steps, values, strict=True) if before < step <= best]
    return fmean(recent) if recent else None


def draw_curves(points: Points, monitor: str, mode: str, path: Path) -> None:
    """Draw the losses in one panel and each other metric of validation in a panel of its own.

    A dashed line marks the step with the best `monitor`; mode: min or max.
    """
    # Not needed before the end of a run
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = [name for name in points if name.startswith("val/loss")]
    losses = ["train/loss", *(["val/loss"] if "val/loss" in found else found)]
    steps, values = points.get(monitor, ([], []))
    best = steps[values.index(min(values) if mode == "min" else max(values))] if values else None
    panels = [losses, *([name] for name in points if name.startswith("val/") and name not in losses)]
    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)
    figure = Figure((4.5 * columns, 3.4 * rows))
    figure.subplots_adjust(0.6 / 4.5 / columns, 0.5 / 3.4 / rows, 0.98, 1 - 0.35 / 3.4 / rows, 0.25, 0.4)
    for place, names in enumerate(panels, 1):
        ax = figure.add_subplot(rows, columns, place)
        for colour, name in enumerate(names):
            steps, values = points.get(name, ([], []))
            if name == "train/loss":
                ax.plot(steps, values, "C0", alpha=0.3, linewidth=0.8)
                ax.plot(steps, smooth(values, 1 + len(values) // 30), "C0", label=name)
            else:
                ax.plot(steps, values, f"C{colour or 1}o-", markersize=3, label=name)
        if best is not None:
            ax.axvline(best, color="grey", linestyle="--", linewidth=0.8, label=f"best step, {best:,}")
        ax.set_title("loss" if names is losses else names[0], fontsize=11)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.grid(alpha=0.3)
        ax.tick_params(labelsize=8)
        if names is losses:
            ax.set_xlabel("step", fontsize=9)
            ax.legend(fontsize=8)
    figure.savefig(path, dpi=110, pil_kwargs={"compress_level": 1})


def smooth(values: list[float], width: int) -> np.ndarray:
    """The mean of each value and the `width` - 1 before it."""
    sums, ends = np.cumsum([0.0, *values]), np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
