"""The parts of a report, each in Markdown, with its plot written into the folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lstmlab.analysis import gates, plots
from lstmlab.analysis.causes import (
    CONTROLS,
    Cause,
    cut_rows,
    estimate,
    measure_causes,
    suspect_read_units,
    suspect_trackers,
)
from lstmlab.analysis.gradient_flow import count_steps_reached, measure_gradient_flow, measure_initial_flows
from lstmlab.analysis.interventions import Change, intervene
from lstmlab.analysis.probes import ProbeResult, find_units
from lstmlab.analysis.traces import trace
from lstmlab.analysis.written import PROMPT
from lstmlab.cells import KINDS
from lstmlab.data.rows import Rows
from lstmlab.models.base import Task
from lstmlab.schema import PredictConfig
from lstmlab.tables import markdown

ANSWERS = PredictConfig.model_construct(
    length=200, temperature=0.8, top_k=None, seed=0, beam_size=5, length_penalty=1.0, attention_map=None
)
FLOW_STEPS, FLOW_ROWS = 100, 32


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
            text = "".join(model.token_texts(held_out.head(PROMPT)))
    if text is not None:
        answers = []
        for held in ({}, changes):
            with intervene(model, held):
                answer = "".join(model.respond(text, ANSWERS)).removeprefix(text)
            answers.append("    " + answer.strip("\n").replace("\n", "\n    "))
        parts += [f"After `{text[-40:]!r}` the model wrote:", answers[0], "It writes:", answers[1]]
    return "\n\n".join(parts)


def report_gates(
    values: dict[str, torch.Tensor],
    tokens: list[str],
    retain: str | None,
    half_lives: torch.Tensor | None,
    folder: Path,
) -> list[str]:
    """What the gates do: values (L, D, N, H) by name, half-lives (L, D, H) of what `retain` names."""
    parts, order = [], torch.arange(next(iter(values.values())).size(-1))
    if retain is not None and half_lives is not None:
        order = half_lives[-1, 0].argsort()
        kept = gates.find_retained(retain, values)
        parts += [report_forgetting(kept, tokens), report_memory(half_lives, retain)]
        plots.draw_half_lives(half_lives).savefig(folder / "half_life.png")
    saturations = {name: gates.measure_saturation(v) for name, v in values.items() if name in gates.SIGMOIDS}
    if saturations:
        parts.append(report_saturation(saturations))
        plots.draw_saturations(saturations).savefig(folder / "saturation.png")
    plots.draw_gates(values, order, tokens).savefig(folder / "gates.png")
    return parts


def report_forgetting(f: torch.Tensor, tokens: list[str]) -> str:
    """Where each layer forgets: f (L, D, N, H)."""
    parts = ["## Forgetting"]
    words = [token if token.isspace() else token.strip(" \n") for token in tokens]
    for layer, direction in np.ndindex(*f.shape[:2]):
        kept = f[layer, direction]
        ranked = [f"{t!r} {mean:.2f}" for t, _, mean in gates.rank_tokens(kept, words, len(tokens) // 500)]
        rows = [
            [f"{mean:.3f}", *(f"`{piece!r}`" for piece in gates.split_context(tokens, step))]
            for step, mean in gates.find_forgetting_steps(kept, 10)
        ]
        parts += [
            f"{plots.name_place(layer, direction).capitalize()} keeps least at {', '.join(ranked[:6])}; "
            f"most at {', '.join(ranked[:-7:-1])} (mean over the units).",
            markdown(["kept", "before", "token", "after"], rows),
        ]
    return "\n\n".join(parts)


def report_memory(half_lives: torch.Tensor, retain: str) -> str:
    """How long the units remember, from the half_lives (L, D, H) of what `retain` names."""
    rows = []
    for layer, direction in np.ndindex(*half_lives.shape[:2]):
        values = half_lives[layer, direction]
        longest = values.topk(min(3, len(values)))
        rows.append(
            [
                plots.name_place(layer, direction),
                *(f"{values.quantile(share):.3g}" for share in (0.1, 0.5, 0.9)),
                ", ".join(f"{v:.4g} (unit {u})" for v, u in zip(*longest, strict=True)),
            ]
        )
    table = markdown(["", "10th percentile", "median", "90th percentile", "longest"], rows)
    return f"## Memory\n\nHalf-life of the units in steps, ln 2 / |mean(ln {retain})|:\n\n{table}"


def report_saturation(found: dict[str, gates.Saturation]) -> str:
    rows = [
        [place, name, f"{low:.1%}", f"{high:.1%}"]
        for name, shares in found.items()
        for place, low, high in (
            (plots.name_place(*at), shares.low[at].mean(), shares.high[at].mean())
            for at in np.ndindex(*shares.low.shape[:2])
        )
    ]
    table = markdown(["", "gate", "share of steps below 0.1", "above 0.9"], sorted(rows))
    return f"## Saturation\n\n{table}"


def report_units(model: Task, rows: Rows, note: str, language: str | None, folder: Path) -> str:
    """How well single units and a linear probe track the features of the task, on validation data."""
    if len(rows.ids) == 1:
        rows = rows.side_by_side(min(16, 1 + rows.ids.size(1) // 2000))
    features = model.text_features(rows, language)
    members = "".join(sorted(KINDS[model.config.cell.kind].state._fields))
    values = trace(model, rows, members)
    results = find_units(values, features)
    text = (
        f"## What the units know\n\n{rows.mask.sum():,} steps of validation data.{note} r is the "
        "correlation with the best unit, also in each half. R² is that of a linear probe of all units, "
        "fitted to the first half and scored on the second. The controls are the best results with "
        "circularly shifted labels."
    )
    if constant := sorted(features.keys() - {result.feature for result in results}):
        text += f" Left out because they are constant: {', '.join(constant)}."
    if results:
        plots.draw_probes(results).savefig(folder / "probes.png")
        text += f"\n\n{tabulate_probes(results)}"
    rows = cut_rows(model, rows)
    suspects = suspect_trackers(model, rows, model.text_features(rows, language), results)
    suspects += suspect_read_units(model, rows)
    if not suspects:
        return text
    causes = measure_causes(model, rows, suspects, {name: v.mean(2) for name, v in values.items()})
    plots.draw_causes(causes).savefig(folder / "causes.png")
    return f"{text}\n\n{report_causes(causes, rows)}"


def report_causes(causes: list[Cause], rows: Rows) -> str:
    """What the loss does without the units that track a feature."""
    table = [
        [
            cause.feature,
            f"the best {len(cause.units)}" if len(cause.units) > 1 else str(cause.units[0]),
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


def tabulate_probes(results: list[ProbeResult]) -> str:
    table = [
        [
            result.feature,
            str(result.best[0][0]),
            f"{result.best[0][1]:+.3f}",
            "{:+.2f}, {:+.2f}".format(*result.halves),
            f"{result.control_r:.3f}",
            f"{result.probe:.3f}",
            f"{result.control_probe:.3f}",
            "; ".join(f"{unit} {r:+.2f}" for unit, r in result.best[1:]),
        ]
        for result in results
    ]
    columns = ["feature", "best unit", "r", "halves", "control |r|", "R²", "control R²", "next units"]
    return markdown(columns, table)


def report_gradient_flow(model: Task, rows: Rows, folder: Path) -> str:
    """How far gradients reach in untrained cells, and in the model's cell on the rows."""
    flows, cell = measure_initial_flows(FLOW_STEPS), model.traced_cell()
    text = f"## Gradient flow\n\n‖∂loss/∂h_t‖ as a share of that at T = {FLOW_STEPS}, by steps back."
    if cell.bidirectional:
        text += " The model is left out: it is bidirectional, so its gradient flows both ways."
    else:
        if len(rows.ids) == 1:
            rows = rows.side_by_side(max(1, rows.ids.size(1) // FLOW_STEPS))
        longest = rows.lengths.argsort(descending=True)[:FLOW_ROWS]
        T = min(FLOW_STEPS, int(rows.lengths[longest].min()))
        flows["trained"] = measure_gradient_flow(cell, model.embed_ids(rows.ids[longest, :T]).detach())
    plots.draw_gradient_flows(flows).savefig(folder / "gradient_flow.png")
    back = (10, 30, 99)
    table = [
        [name, member]
        + [f"{norms[-1 - k]:.1e}" if k < len(norms) else "" for k in back]
        + [str(count_steps_reached(norms, 0.01))]
        for name, flow in flows.items()
        for member, norms in flow.items()
    ]
    columns = ["cell", "state", *(f"{k} back" for k in back), "steps until below 1 %"]
    return f"{text}\n\n{markdown(columns, table)}"
