"""All analyses of a checkpoint, written into a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lstmlab.analysis import gates, plots, written
from lstmlab.analysis.features import features
from lstmlab.analysis.gradient_flow import at_initialisation, gradient_flow
from lstmlab.analysis.page import LABELS, write_page
from lstmlab.analysis.probes import find_units
from lstmlab.analysis.traces import Rows, embed, read, stack, tokens, trace, training_text, validation
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.tables import markdown

FLOW_STEPS, FLOW_ROWS = 100, 32
TEMPERATURES, SHOWN = (0.5, 0.8, 1.0), 0.8
SAMPLES, PROMPT, LENGTH = 20, 100, 500  # of each temperature; characters
CORPUS = 2_000_000  # characters of the training text that what is written is compared with, at most
CONTEXT = 5  # characters that the n-gram model beside it goes by
COPIED = 30  # characters in a row that hardly come about by chance


def analyze(config: dict[str, Any]) -> Path:
    """Look inside checkpoint `config["ckpt"]`; returns the folder: report.md, page.html, traces.npz, plots.

    Raises what `checkpoint.load`, `traces.read` and the data module raise.
    """
    ckpt = Path(config["ckpt"])
    model: Any = load_model(config["ckpt"], "scratch")
    name, cell = model.config["model"]["name"], model.config["cell"]
    given = {key: value for key, value in config["data"].items() if value is not None}
    held_out: Any = None
    if config["text"] is None or config["probe_steps"]:
        steps_needed = max(config["probe_steps"], config["page_steps"], SAMPLES * (PROMPT + LENGTH))
        held_out, note = validation(model, given, steps_needed)
    rows = held_out if config["text"] is None else read(model, config["text"])
    rows = rows.head(config["page_steps"])
    values, text = trace(model, rows), tokens(model, rows)
    shown = config["page_values"] or [n for n in LABELS if n in values]
    if unknown := [n for n in shown if n not in values]:
        raise ValueError(f"page_values holds {unknown[0]}, but this cell has {', '.join(values)}")

    run = ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent
    folder = Path(config["folder"] or run / "analysis")
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"tokens": np.array(text)} | {n: v.numpy() for n, v in values.items()}
    np.savez(folder / "traces.npz", **arrays)
    shape = f"{cell['kind']}, {cell['num_layers']} × {cell['hidden_size']}"
    parts = [f"# Inside {ckpt}\n\n{name}: {shape}. {len(text):,} steps traced."]

    steps, order = None, torch.arange(cell["hidden_size"])
    if cell["kind"] in gates.RETAINS:
        retain = gates.RETAINS[cell["kind"]]
        steps = gates.half_life(values[retain])  # (L, D, H)
        order = steps[-1, 0].argsort()
        parts += [forgetting(values[retain], text), memory(steps, retain)]
        plots.half_lives(steps).savefig(folder / "half_life.png")
    found = {gate: gates.saturation(v) for gate, v in values.items() if gate in gates.SIGMOIDS}
    if found:
        parts.append(saturated(found))
        plots.saturations(found).savefig(folder / "saturation.png")
    plots.gates(values, order, text).savefig(folder / "gates.png")
    if config["probe_steps"]:
        parts.append(probed(model, held_out.head(config["probe_steps"]), note, config["language"], folder))
    parts.append(flowing(model, rows, folder))
    if name == "charlm" and held_out is None:
        parts.append(
            "## What it writes\n\nLeft out: with text= and probe_steps=0 no data are read to compare with."
        )
    elif name == "charlm":
        parts.append(writing(model, held_out, note, training_text(model, given, CORPUS), folder))
    if name == "seq2seq" and model.config["model"]["attention"] != "none":
        first = rows.lengths[:1]
        model.attention_map(rows.ids[:1, : first[0]], first).savefig(folder / "attention.png")

    write_page(
        folder / "page.html",
        f"Inside {name}",
        f"{shape} · {len(text):,} steps · {ckpt}",
        text,
        {n: values[n] for n in shown},
        features(model, rows, config["language"]),
        steps,
    )
    report = "\n\n".join(parts)
    (folder / "report.md").write_text(report + "\n", encoding="utf-8")
    print(report)
    return folder


def forgetting(f: torch.Tensor, text: list[str]) -> str:
    """Where each layer drops what it holds: f (L, D, N, H)."""
    parts = ["## Forgetting"]
    words = [token if token.isspace() else token.strip(" \n") for token in text]
    for layer, direction in np.ndindex(*f.shape[:2]):
        kept = f[layer, direction]
        ranked = [f"{t!r} {mean:.2f}" for t, _, mean in gates.kept_by_token(kept, words, len(text) // 500)]
        rows = [
            [f"{mean:.3f}", *(f"`{piece!r}`" for piece in gates.context(text, step))]
            for step, mean in gates.least_kept(kept, 10)
        ]
        parts += [
            f"{plots.place(layer, direction).capitalize()}: least is kept at {', '.join(ranked[:6])}; "
            f"most at {', '.join(ranked[:-7:-1])} (mean over the units).",
            markdown(["kept", "before", "token", "after"], rows),
        ]
    return "\n\n".join(parts)


def memory(steps: torch.Tensor, retain: str) -> str:
    """Half-lives (L, D, H)."""
    rows = []
    for layer, direction in np.ndindex(*steps.shape[:2]):
        values = steps[layer, direction]
        longest = values.topk(min(3, len(values)))
        rows.append(
            [
                plots.place(layer, direction),
                *(f"{values.quantile(share):.3g}" for share in (0.1, 0.5, 0.9)),
                ", ".join(f"{v:.4g} (unit {u})" for v, u in zip(*longest, strict=True)),
            ]
        )
    table = markdown(["", "a tenth below", "median", "a tenth above", "longest"], rows)
    return f"## Memory\n\nHalf-life of the units in steps, −ln 2 / mean(ln {retain}):\n\n{table}"


def saturated(found: dict[str, gates.Saturation]) -> str:
    rows = [
        [place, name, f"{low:.1%}", f"{high:.1%}"]
        for name, shares in found.items()
        for place, low, high in (
            (plots.place(*at), shares.low[at].mean(), shares.high[at].mean())
            for at in np.ndindex(*shares.low.shape[:2])
        )
    ]
    table = markdown(["", "gate", "of the time below 0.1", "above 0.9"], sorted(rows))
    return f"## Saturation\n\n{table}"


def probed(model: Any, rows: Rows, note: str, language: str | None, folder: Path) -> str:
    """What single units and a linear probe know of the features, on validation data."""
    if len(rows.ids) == 1:
        rows = rows.side_by_side(min(16, 1 + rows.ids.size(1) // 2000))
    truth = features(model, rows, language)
    members = "".join(sorted(KINDS[model.config["cell"]["kind"]].state._fields))
    findings = find_units(trace(model, rows, members), truth)
    left_out = sorted(truth.keys() - {finding.feature for finding in findings})
    text = (
        f"## What the units know\n\n{rows.mask.sum():,} steps of validation data.{note} r: of the best unit, "
        "and in each half. R²: of a linear probe of all units, fitted to the first half, on the second. The "
        "controls: the best that labels shifted circularly give."
    )
    if left_out:
        text += f" Left out, since constant: {', '.join(left_out)}."
    if not findings:
        return text
    plots.probes(findings).savefig(folder / "probes.png")
    table = [
        [
            f.feature,
            str(f.best[0][0]),
            f"{f.best[0][1]:+.3f}",
            "{:+.2f}, {:+.2f}".format(*f.halves),
            f"{f.control_r:.3f}",
            f"{f.probe:.3f}",
            f"{f.control_probe:.3f}",
            "; ".join(f"{unit} {r:+.2f}" for unit, r in f.best[1:]),
        ]
        for f in findings
    ]
    columns = ["feature", "best unit", "r", "halves", "control |r|", "R²", "control R²", "next units"]
    return f"{text}\n\n{markdown(columns, table)}"


def flowing(model: Any, rows: Rows, folder: Path) -> str:
    """How far gradients reach: untrained cells, and the model's own on the rows."""
    flows = at_initialisation(FLOW_STEPS)
    text = f"## Gradient flow\n\n‖∂loss/∂h_t‖ as a share of that at T = {FLOW_STEPS}, by steps back."
    if stack(model).bidirectional:
        text += " The model itself is left out: it is bidirectional, and its gradient goes both ways."
    else:
        if len(rows.ids) == 1:
            rows = rows.side_by_side(max(1, rows.ids.size(1) // FLOW_STEPS))
        longest = rows.lengths.argsort(descending=True)[:FLOW_ROWS]
        T = min(FLOW_STEPS, int(rows.lengths[longest].min()))
        flows["trained"] = gradient_flow(stack(model), embed(model, rows.ids[longest, :T]).detach())
    plots.gradient_flows(flows).savefig(folder / "gradient_flow.png")
    back = (10, 30, 99)
    table = [
        [name, member]
        + [f"{norms[-1 - k]:.1e}" if k < len(norms) else "" for k in back]
        + [str(int((norms.flip(0)[1:] >= 0.01).long().cumprod(0).sum()))]
        for name, flow in flows.items()
        for member, norms in flow.items()
    ]
    columns = ["cell", "state", *(f"{k} back" for k in back), "steps until below 1 %"]
    return f"{text}\n\n{markdown(columns, table)}"


@torch.inference_mode()
def writing(model: Any, held_out: Rows, note: str, corpus: str, folder: Path) -> str:
    """What a language model writes after held-out prompts, beside what stands there and an n-gram model's."""
    vocabulary = np.array(list(model.vocabulary))
    known = {character: i for i, character in enumerate(model.vocabulary)}
    step = held_out.ids.size(1) // SAMPLES
    length = min(PROMPT + LENGTH, step)
    cut = length * PROMPT // (PROMPT + LENGTH)
    T = length - cut
    windows = held_out.ids[0].unfold(0, length, step)[:SAMPLES]  # (SAMPLES, length), none overlaps
    prompts = windows[:, :cut]
    heads = ["".join(row) for row in vocabulary[prompts]]
    ids = {"held-out text": windows[:, cut:]}
    for t in TEMPERATURES:
        ids[f"the model, temperature {t}"] = torch.cat(list(model.sample_ids(prompts, T, t)), 1)
    ngrams = [written.ngram_text(corpus, head, T, CONTEXT, seed) for seed, head in enumerate(heads)]
    ids[f"n-grams, {CONTEXT} characters of context"] = torch.tensor([[known[c] for c in n] for n in ngrams])

    texts = {name: ["".join(row) for row in vocabulary[rows]] for name, rows in ids.items()}
    runs = iter(written.copied_runs([text for group in texts.values() for text in group], corpus))
    lexicon, table, plotted = set(written.words(corpus)), [], []
    for name, group in texts.items():
        logits, _ = model(torch.cat([prompts, ids[name]], 1)[:, :-1])  # (SAMPLES, length − 1, V)
        loss = F.cross_entropy(logits[:, -T:].flatten(0, 1).float(), ids[name].flatten())
        found = [written.words(text) for text in group]
        new = [word for words in found for word in words if word not in lexicon]
        count = sum(map(len, found))
        known_words = 1 - len(new) / max(1, count)
        copied = [next(runs) for _ in group]
        copy = float(np.mean(copied))
        diverse = [written.distinct(found, n) for n in (1, 2, 3)]
        plotted.append((float(loss), known_words, copy, diverse[1]))
        table.append(
            [
                name,
                f"{loss:.3f}",
                f"{known_words:.1%} of {count:,}",
                f"{max(run.max() for run in copied)}",
                f"{copy:.1f}",
                f"{np.mean([written.covered(run, COPIED) for run in copied]):.1%}",
                *(f"{share:.2f}" for share in diverse),
                ", ".join(list(dict.fromkeys(new))[:5]),
            ]
        )
    names = ("loss, nats a character", "share of words known", "mean copy, characters", "distinct-2")
    measured = dict(zip(names, zip(*plotted, strict=True), strict=True))
    plots.writing(TEMPERATURES, measured).savefig(folder / "writing.png")
    columns = ["", "loss", "words known", "longest copy", "mean copy", f"in copies ≥ {COPIED}"]
    columns += ["distinct-1", "distinct-2", "distinct-3", "words not known"]
    shown = texts[f"the model, temperature {SHOWN}"][0].replace("\n", "\n    ")
    text = (
        f"## What it writes\n\n{SAMPLES} texts of {T} characters, each after {cut} held-out ones; beside "
        "them what stands there, and what n-grams of the training text make of it (Shannon 1948). Compared "
        f"with the first {len(corpus):,} characters of the training text.{note} Loss: the model's, nats a "
        "character. Copy: how many characters from a place on stand in a row in the training text too. "
        "Distinct-n: different n-grams of words as a share of all (Li et al. 2016)."
    )
    after = f"After `{heads[0][-40:]!r}`, at temperature {SHOWN}:"
    return f"{text}\n\n{markdown(columns, table)}\n\n{after}\n\n    {shown}"
