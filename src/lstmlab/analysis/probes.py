"""Which units track which features: correlations of single units, and a linear probe of all units."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHIFTS = 10  # circular shifts of the labels for the control
RIDGE = 1e-3  # λ, for standardised units and the mean over steps


class Unit(NamedTuple):
    """Where a value comes from: `traces[name][layer, direction, :, number]`."""

    name: str
    layer: int
    direction: int
    number: int

    @property
    def point(self) -> str:
        """Its name for `interventions`, within its cell."""
        return f"layer{self.layer}.{'reverse.' if self.direction else ''}{self.name}[{self.number}]"

    def __str__(self) -> str:
        backwards = ", backwards" if self.direction else ""
        return f"{self.name}, layer {self.layer}{backwards}, unit {self.number}"


class ProbeResult(NamedTuple):
    """How well the units represent a feature."""

    feature: str
    best: list[tuple[Unit, float]]  # the units with the largest |r|, each with its r
    halves: tuple[float, float]  # r of the best unit in each half of the steps
    control_r: float  # the largest |r| of any unit with shifted labels
    probe: float  # R² on the second half of a ridge regression on all units, fitted to the first half
    control_probe: float  # the largest R² with shifted labels


def correlate(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's r of each unit and each feature: x (N, U), y (N, F) → (U, F); 0 if one is constant."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y / (x.norm(dim=0)[:, None] * y.norm(dim=0))).nan_to_num(0, 0, 0)


def score_linear_probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> Tensor:
    """R² (F,) on the test steps of the ridge regression y = W x + b fitted to x (N, U), y (N, F).

    W = (XᵀX / N + λ I)⁻¹ Xᵀy / N, X standardised. R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², ȳ of the test steps.
    """
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    N, U = x.shape
    gram = (x.T @ x).double() / N + RIDGE * torch.eye(U, dtype=torch.float64, device=x.device)
    weights = torch.linalg.solve(gram, (x.T @ (y - y.mean(0))).double() / N).to(x.dtype)
    residual = y_test - y.mean(0) - x_test @ weights
    return 1 - residual.square().sum(0) / (y_test - y_test.mean(0)).square().sum(0)


def find_units(
    traces: Mapping[str, Tensor], features: Mapping[str, np.ndarray], top: int = 5
) -> list[ProbeResult]:
    """The units of `traces`, name → (L, D, N, H), that track each feature (N,).

    The control repeats the search with circularly shifted labels. A shift keeps the autocorrelation, which
    makes any two slow signals correlate. A feature that is constant in either half of the steps is left out.
    """
    places = [
        Unit(name, layer, direction, number)
        for name, values in traces.items()
        for layer, direction, number in np.ndindex(values.size(0), values.size(1), values.size(3))
    ]
    # (L, D, N, H) → (N, names · L · D · H)
    x = torch.cat([values.flatten(0, 1).transpose(0, 1).flatten(1) for values in traces.values()], 1)
    half = len(x) // 2
    varying = [n for n, label in features.items() if np.ptp(label[:half]) > 0 and np.ptp(label[half:]) > 0]
    if not varying:
        return []
    y = torch.from_numpy(np.stack([features[name] for name in varying], 1)).to(x.dtype)  # (N, F)
    shifts = np.linspace(len(y) // 10, len(y) - len(y) // 10, SHIFTS, dtype=int)
    control = torch.cat([y.roll(int(shift), 0) for shift in shifts], 1)  # (N, SHIFTS · F)

    both = torch.cat([y, control], 1)
    r = correlate(x, both).unflatten(1, (-1, len(varying)))  # (U, 1 + SHIFTS, F)
    halves = torch.stack([correlate(x[:half], y[:half]), correlate(x[half:], y[half:])])  # (2, U, F)
    scores = score_linear_probe(x[:half], both[:half], x[half:], both[half:]).unflatten(0, (-1, len(varying)))
    results = []
    for f, feature in enumerate(varying):
        best = r[:, 0, f].abs().topk(min(top, len(r))).indices.tolist()
        results.append(
            ProbeResult(
                feature,
                [(places[u], r[u, 0, f].item()) for u in best],
                (halves[0, best[0], f].item(), halves[1, best[0], f].item()),
                r[:, 1:, f].abs().max().item(),
                scores[0, f].item(),
                scores[1:, f].max().item(),
            )
        )
    return results
