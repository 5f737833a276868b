"""Does the model use the units that track a feature? Hold them at their mean and see what the loss does."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lstmlab.analysis.interventions import ablate, intervene
from lstmlab.analysis.probes import ProbeResult, Unit
from lstmlab.data.rows import Rows

STREAMS, STEPS = 50, 200  # the text is read side by side, so that a pass takes a moment
CONTROLS = 10  # random units, or groups of them, beside each that is tested
RESAMPLES = 1000


class Effect(NamedTuple):
    """The change of the loss in nats: the mean, and a 95 % interval over the streams."""

    mean: float
    low: float
    high: float


class Cause(NamedTuple):
    """What happens if the units that track a feature best are held at their mean over the text."""

    feature: str
    units: list[Unit]
    at_work: Effect  # where the feature is above its mean
    elsewhere: Effect
    controls: list[float]  # the effects at work of as many random units of the best one's layer and state

    @property
    def ratio(self) -> float:
        """The effect at work by the mean size of the controls' effects."""
        return self.at_work.mean / max(float(np.mean(np.abs(self.controls))), 1e-12)


def measure_causes(
    model: Any, rows: Rows, features: Mapping[str, np.ndarray], results: Sequence[ProbeResult]
) -> list[Cause]:
    """The effect of the best unit and of the best five of each result, on the loss of a language model.

    rows: B rows of one length; features: (N,) of their steps.
    """
    B, T = rows.ids.shape
    with torch.inference_mode(), intervene(model, {}, record=True) as cache:
        before = compute_losses(model, rows)  # (B, T − 1)
    found: dict[tuple[Unit, ...], np.ndarray] = {}

    def change(units: Sequence[Unit]) -> np.ndarray:
        """How much more each step costs without the units, (B, T − 1)."""
        key = tuple(sorted(units))
        if key not in found:
            changes = {}
            for unit in key:
                array = name_array(unit)
                changes[f"{array}[{unit.number}]"] = ablate(cache[array][:, :, [unit.number]])
            with torch.inference_mode(), intervene(model, changes):
                found[key] = (compute_losses(model, rows) - before).numpy()
        return found[key]

    causes = []
    for result in results:
        values = features[result.feature].reshape(B, T)[:, :-1]
        at_work = values > values.mean()
        for count in (1, 5):
            units, controls, rng = [unit for unit, _ in result.best[:count]], [], np.random.default_rng(0)
            for _ in range(CONTROLS):
                numbers = rng.choice(model.config.cell.hidden_size, count, replace=False).tolist()
                controls.append(change([units[0]._replace(number=number) for number in numbers]))
            effect = change(units)
            causes.append(
                Cause(
                    result.feature,
                    units,
                    estimate(effect, at_work),
                    estimate(effect, ~at_work),
                    [float(control[at_work].mean()) for control in controls],
                )
            )
    return causes


def compute_losses(model: Any, rows: Rows) -> Tensor:
    """The loss in nats of each next token of B rows of one length, (B, T − 1)."""
    logits = model.run(rows)[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), rows.ids[:, 1:].to(logits.device), reduction="none").cpu()


def name_array(unit: Unit) -> str:
    return f"layer{unit.layer}.{'reverse.' if unit.direction else ''}{unit.name}"


def estimate(values: np.ndarray, where: np.ndarray) -> Effect:
    """The mean of values (B, T) at the steps `where`, and its interval by resampling the B rows."""
    sums, counts = np.where(where, values, 0).sum(1), where.sum(1)
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = sums[chosen].sum(1) / np.maximum(counts[chosen].sum(1), 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Effect(float(sums.sum() / max(counts.sum(), 1)), float(low), float(high))
