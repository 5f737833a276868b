"""The parts of a report, each in Markdown, with its plot written into the folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lstmlab.analysis import gates, plots, written
from lstmlab.analysis.causes import (
    cut_rows,
    measure_causes,
    report_causes,
    suspect_read_units,
    suspect_trackers,
)
from lstmlab.analysis.gradient_flow import count_steps_reached, measure_gradient_flow, measure_initial_flows
from lstmlab.analysis.probes import ProbeResult, find_units
from lstmlab.analysis.traces import trace
from lstmlab.cells import KINDS
from lstmlab.data.rows import Rows
from lstmlab.models.base import Task
from lstmlab.tables import markdown

FLOW_STEPS, FLOW_ROWS = 100, 32
TEMPERATURES, SHOWN_TEMPERATURE = (0.5, 0.8, 1.0), 0.8
SAMPLES, PROMPT, LENGTH = 20, 100, 500  # texts at each temperature; characters of a prompt and of a text
CORPUS = 2_000_000  # the most characters of the training text to compare with


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


def report_writing(
    model: Any, held_out: Rows | None, note: str, open_module: Callable[[], Any], folder: Path
) -> str:
    """The text of a language model after held-out prompts, beside the true text and that of n-grams."""
    title = "## What it writes"
    if held_out is None:
        return f"{title}\n\nLeft out: with text= and probe_steps=0 there are no data to compare with."
    if not hasattr(model, "vocabulary"):
        return f"{title}\n\nLeft out: it is measured in characters, and this model writes tokens."
    corpus = model.training_text(open_module(), CORPUS)
    prompts, truth = written.cut_windows(held_out, SAMPLES, PROMPT, LENGTH)
    heads, groups = written.write_texts(model, prompts, truth, corpus, TEMPERATURES)
    measured = written.measure_texts(model, prompts, groups, corpus)
    plots.draw_writing(TEMPERATURES, measured).savefig(folder / "writing.png")
    shown = measured[1 + TEMPERATURES.index(SHOWN_TEMPERATURE)].texts[0].replace("\n", "\n    ")
    return "\n\n".join(
        [
            title,
            f"{len(truth)} texts of {truth.size(1)} characters, each after {prompts.size(1)} held-out ones, "
            "beside the held-out text itself and text from n-grams of the training text "
            f"(Shannon 1948). Compared with the first {len(corpus):,} characters of the training text.{note} "
            "The loss is the model's, in nats per character. A copy is a run of characters that also occurs "
            "in the training text. Distinct-n is the share of different n-grams among all n-grams of words "
            "(Li et al. 2016).",
            tabulate_writing(measured),
            f"After `{heads[0][-40:]!r}`, at temperature {SHOWN_TEMPERATURE}:",
            f"    {shown}",
        ]
    )


def tabulate_writing(measured: list[written.Measured]) -> str:
    columns = ["", "loss", "known words", "longest copy", "mean copy", f"in copies ≥ {written.COPIED}"]
    columns += ["distinct-1", "distinct-2", "distinct-3", "unknown words"]
    table = [
        [
            group.name,
            f"{group.loss:.3f}",
            f"{group.known_words:.1%} of {group.words:,}",
            f"{group.longest_copy}",
            f"{group.mean_copy:.1f}",
            f"{group.copied:.1%}",
            *(f"{share:.2f}" for share in group.distinct),
            ", ".join(group.new_words[:5]),
        ]
        for group in measured
    ]
    return markdown(columns, table)
