"""What a change does: to the loss, and to what is written. Does the model use the units that track a feature?
Hold them at their mean and see what the loss does."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstmlab.analysis.interventions import Change, clamp, intervene
from lstmlab.analysis.probes import ProbeResult, Unit
from lstmlab.data.rows import Rows
from lstmlab.schema import PredictConfig
from lstmlab.tables import markdown

STREAMS, STEPS = 50, 200  # a text is read side by side, so that a pass takes a moment
ROWS = 500  # of other tasks
CONTROLS = 10  # random units, or groups of them, beside each that is tested
RESAMPLES = 1000
HEAD = 100  # steps of held-out text that a language model continues
ANSWERS = PredictConfig.model_construct(
    length=200, temperature=0.8, top_k=None, seed=0, beam_size=5, length_penalty=1.0, attention_map=None
)


class Suspect(NamedTuple):
    """Units on which predictions may depend."""

    feature: str
    units: list[Unit]  # the best first
    at_work: np.ndarray  # (B, K), or 1 for either: at which predictions


class Effect(NamedTuple):
    """The change of the loss in nats: the mean, and a 95 % interval over the rows."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if np.isnan(self.mean) else f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


class Cause(NamedTuple):
    """What happens if the first units of a suspect are held at their mean over the data."""

    feature: str
    units: list[Unit]
    at_work: Effect
    elsewhere: Effect
    controls: list[float]  # the effects at work of as many random units of the same layers and states

    @property
    def name(self) -> str:
        """The units as tables and plots show them."""
        return f"the best {len(self.units)}" if len(self.units) > 1 else str(self.units[0])

    @property
    def ratio(self) -> float:
        """The effect at work by the mean size of the controls' effects."""
        return self.at_work.mean / max(float(np.mean(np.abs(self.controls))), 1e-12)


def cut_rows(model: Any, rows: Rows) -> Rows:
    """As many of the rows as are read again and again. A language model reads one text in many places."""
    if not model.writes_text:
        labels = None if rows.labels is None else rows.labels[:ROWS]
        return Rows(rows.ids[:ROWS], rows.lengths[:ROWS], labels)
    ids = rows.ids.flatten()[: STREAMS * STEPS]
    return Rows.dense(ids[None]).side_by_side(min(STREAMS, max(1, len(ids) // 2)))


def suspect_trackers(
    model: Any, rows: Rows, features: Mapping[str, np.ndarray], results: Sequence[ProbeResult]
) -> list[Suspect]:
    """The units that track a feature, at work where it is above its mean.

    features: (N,) of the steps of the rows. A language model predicts at each step but the last. A classifier
    predicts once for each text, so only what is the same at all steps of a text can be at work there; of two
    classes, the label is at work in every text.
    """
    suspects = []
    for result in results:
        values = np.full(rows.mask.shape, np.nan, np.float32)  # (B, T)
        values[rows.mask.numpy()] = features[result.feature]
        if model.writes_text:
            values = values[:, :-1]
            at_work = values > values.mean()
        elif rows.labels is not None and rows.labels.dim() == 1:
            if np.any(np.nanmax(values, 1) > np.nanmin(values, 1)):
                continue
            at_work = values[:, :1] > (-1 if rows.labels.max() == 1 else values[:, :1].mean())
        else:
            continue
        suspects.append(Suspect(result.feature, [unit for unit, _ in result.best], at_work))
    return suspects


def suspect_read_units(model: Any, rows: Rows, top: int = 5) -> list[Suspect]:
    """The units of an encoder that attention reads most, which it does for every prediction."""
    if (read := model.measure_reading(rows)) is None:  # (D·H,)
        return []
    H, layer = model.config.cell.hidden_size, model.config.cell.num_layers - 1
    units = [Unit("h", layer, number // H, number % H) for number in read.topk(top).indices.tolist()]
    return [Suspect("what attention reads", units, np.ones((1, 1), bool))]


def measure_causes(
    model: Any, rows: Rows, suspects: Sequence[Suspect], means: Mapping[str, Tensor]
) -> list[Cause]:
    """What the loss does without the first unit, and the first five units, of each suspect.

    means: of each member of the cell's state, (L, D, H): its values over the data.
    """
    [prefix] = [f"{path}." for path, module in model.named_modules() if module is model.traced_cell()]
    with torch.inference_mode():
        before = model.compute_losses(rows)  # (B, K)
    there = ~before.isnan().cpu().numpy()
    found: dict[tuple[Unit, ...], np.ndarray] = {}

    def hold(units: Sequence[Unit]) -> np.ndarray:
        """How much more each prediction costs without the units, (B, K)."""
        key = tuple(sorted(units))
        if key not in found:
            changes = {
                f"{prefix.removeprefix('cell.')}{unit.point}": clamp(float(means[unit.name][unit[1:]]))
                for unit in key
            }
            with torch.inference_mode(), intervene(model, changes):
                found[key] = (model.compute_losses(rows) - before).cpu().numpy()
        return found[key]

    causes = []
    for suspect in suspects:
        at_work, elsewhere = suspect.at_work & there, ~suspect.at_work & there
        for count in (1, 5):
            units, controls, rng = suspect.units[:count], [], np.random.default_rng(0)
            for _ in range(CONTROLS):
                numbers = rng.choice(model.config.cell.hidden_size, len(units), replace=False).tolist()
                chosen = zip(units, numbers, strict=True)
                controls.append(hold([unit._replace(number=number) for unit, number in chosen]))
            effect = hold(units)
            causes.append(
                Cause(
                    suspect.feature,
                    units,
                    estimate(effect, at_work),
                    estimate(effect, elsewhere),
                    [estimate(control, at_work).mean for control in controls],
                )
            )
    return causes


def estimate(values: np.ndarray, where: np.ndarray) -> Effect:
    """The mean of values (B, K) at the predictions `where`, and its interval by resampling the B rows; NaN if
    there are none."""
    sums, counts = np.where(where, values, 0).sum(1), where.sum(1)
    if not counts.sum():
        return Effect(np.nan, np.nan, np.nan)
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = sums[chosen].sum(1) / np.maximum(counts[chosen].sum(1), 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Effect(float(sums.sum() / counts.sum()), float(low), float(high))


def report_causes(causes: list[Cause], rows: Rows) -> str:
    """What the loss does without the units that track a feature."""
    table = [
        [
            cause.feature,
            cause.name,
            str(cause.at_work),
            str(cause.elsewhere),
            f"{np.mean(cause.controls):+.4f}, {max(cause.controls):+.4f}",
            f"{cause.ratio:.1f}",
        ]
        for cause in causes
    ]
    found: dict[str, list[str]] = {cause.feature: [] for cause in causes}
    for cause in causes:
        if cause.at_work.low > max(cause.controls):
            found[cause.feature].append("best unit" if len(cause.units) == 1 else f"best {len(cause.units)}")
    above = ", ".join(f"{feature} ({' and '.join(sets)})" for feature, sets in found.items() if sets)
    missing = ", ".join(feature for feature, sets in found.items() if not sets)
    text = (
        f"## What the units do\n\nThe model reads {rows.mask.sum():,} steps in {len(rows.ids)} rows, while "
        "units are held at their mean. The table shows how the loss then changes, in nats per prediction, "
        "with 95 % intervals: at work, which is where the feature is above its mean, and elsewhere. Beside "
        f"it stand {CONTROLS} random choices of as many units of the same layers: the mean and the largest "
        "change at work, and the ratio to the mean size of theirs."
    )
    if any(np.isnan(cause.elsewhere.mean) for cause in causes):
        text += " What is at work in every prediction, as one of two labels is, has no elsewhere."
    text += f" The interval lies above all random choices for {above or 'no feature'}."
    if missing:
        text += (
            f" For {missing} it does not: the predictions hardly depend on those units, and correlation is "
            "not cause."
        )
    columns = ["feature", "units", "at work", "elsewhere", "random units", "ratio"]
    return f"{text}\n\n{markdown(columns, table)}"


def report_change(
    model: Any, setting: str, changes: Mapping[str, Change], text: str | None, held_out: Rows | None
) -> str:
    """What the changes of `set=` cost on held-out rows, and what the model then answers to a text.

    Without a text, a language model continues the held-out one.
    """
    parts = [
        f"## What the change does\n\n`{setting}` is held. What follows is of the changed model, except for "
        "the gradient flow."
    ]
    if held_out is not None:
        rows = cut_rows(model, held_out)
        with torch.inference_mode():
            before = model.compute_losses(rows).cpu().numpy()  # (B, K)
            with intervene(model, changes):
                after = model.compute_losses(rows).cpu().numpy()
        there = ~np.isnan(before)
        cost = estimate(after - before, there)
        parts[0] += (
            f" The loss on {there.sum():,} predictions of the validation data was {before[there].mean():.4f} "
            f"nats, and is {after[there].mean():.4f}: a change of {cost}, with a 95 % interval."
        )
        if text is None and model.writes_text:
            text = "".join(model.token_texts(held_out.head(HEAD)))
    if text is not None:
        answers = []
        for held in ({}, changes):
            with intervene(model, held):
                answer = "".join(model.respond(text, ANSWERS)).removeprefix(text)
            answers.append("    " + answer.strip("\n").replace("\n", "\n    "))
        parts += [f"After `{text[-40:]!r}` the model wrote:", answers[0], "It writes:", answers[1]]
    return "\n\n".join(parts)
