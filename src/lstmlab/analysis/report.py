"""All analyses of a checkpoint, written into a folder as a report, plots and a page."""

import hashlib
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from lstmlab.analysis import gates, sections
from lstmlab.analysis.causes import report_change
from lstmlab.analysis.interventions import intervene, parse_settings
from lstmlab.analysis.page import LABELS, build_page
from lstmlab.analysis.sections import LENGTH, PROMPT, SAMPLES
from lstmlab.analysis.traces import load_model_data, load_validation_rows, trace
from lstmlab.cells import KINDS
from lstmlab.checkpoint import find_run_folder, load_model
from lstmlab.data.rows import Rows
from lstmlab.progress import Progress
from lstmlab.schema import AnalyzeConfig

PLOTS = ("attention", "causes", "gates", "gradient_flow", "half_life", "probes", "saturation", "writing")


def analyze(config: AnalyzeConfig) -> Path:
    """Analyse checkpoint `config.ckpt`. Returns the folder with report.md, page.html, plots and, if asked
    for, traces.npz. Each text has its own folder, and what an earlier analysis left there is deleted.

    With `config.set`, it is the model whose gates and states are held at these values.

    Raises what `load_checkpoint`, the task's `read_text` and the data module raise, ValueError for a point
    that the model does not have, and Unsupported for a task without a cell or without tokens.
    """
    model: Any = load_model(config.ckpt, "scratch")
    changes = parse_settings(config.set or "", model)
    kind = KINDS[model.config.cell.kind]
    names = list(dict.fromkeys((*kind.gates, *kind.state._fields)))
    if unknown := [name for name in config.page_values or () if name not in names]:
        raise ValueError(f"page_values holds {unknown[0]}, but this cell has {', '.join(names)}")
    with closing(Progress("analysis")) as progress:
        rows, held_out, note = load_rows(config, model)
        folder = make_folder(config)
        parts = [f"# Inside {config.ckpt}\n\n{name_model(model)}. {rows.mask.sum():,} steps traced."]
        if config.set:
            parts.append(report_change(model, config.set, changes, config.text, held_out))
        with intervene(model, changes):
            parts += write_analysis(config, model, rows, held_out, note, folder, progress)
        parts.append(sections.report_gradient_flow(model, rows, folder))
    report = "\n\n".join(parts)
    (folder / "report.md").write_text(report + "\n", encoding="utf-8")
    print(report)
    return folder


def load_rows(config: AnalyzeConfig, model: Any) -> tuple[Rows, Any, str]:
    """The rows to trace, the validation data if they are needed, and a sentence about those."""
    held_out: Any = None
    note = ""
    if config.text is None or config.probe_steps:
        count = max(config.probe_steps, config.page_steps, SAMPLES * (PROMPT + LENGTH))
        held_out, note = load_validation_rows(model, config.data.to_plain(), count)
    rows = held_out if config.text is None else model.read_text(config.text)
    return rows.head(config.page_steps), held_out, note


def name_model(model: Any) -> str:
    cell = model.config.cell
    return f"{model.config.model.name}: {cell.kind}, {cell.num_layers} × {cell.hidden_size}"


def write_analysis(
    config: AnalyzeConfig, model: Any, rows: Rows, held_out: Any, note: str, folder: Path, progress: Progress
) -> list[str]:
    """Write the page, the plots and the traces. Returns the parts of the report."""
    values, tokens = trace(model, rows), model.token_texts(rows)
    if config.traces:
        arrays: dict[str, Any] = {"tokens": np.array(tokens)} | {n: v.numpy() for n, v in values.items()}
        np.savez(folder / "traces.npz", **arrays)
    retain = gates.RETAINS.get(model.config.cell.kind)
    kept = None if retain is None else gates.find_retained(retain, values)
    half_lives = None if kept is None else gates.compute_half_lives(kept)  # (L, D, H)
    progress.show(1, 20)
    parts = sections.report_gates(values, tokens, retain, half_lives, folder)
    progress.show(2, 20)
    if config.probe_steps:
        probed = held_out.head(config.probe_steps)
        parts.append(sections.report_units(model, probed, note, config.language, folder))
    progress.show(12, 20)
    if model.writes_text:
        opened = lambda: load_model_data(model, config.data.to_plain())  # noqa: E731
        parts.append(sections.report_writing(model, held_out, note, opened, folder))
    if (figure := model.draw_rows(rows)) is not None:
        figure.savefig(folder / "attention.png")
    progress.show(18, 20)

    subtitle = " · ".join(
        [name_model(model), f"{len(tokens):,} steps", config.ckpt, *filter(None, [config.set])]
    )
    features = model.text_features(rows, config.language)
    shown = config.page_values or [n for n in dict.fromkeys([*LABELS, *values]) if n in values]
    page = {name: values[name] for name in shown}
    path = next(name for name, module in model.named_modules() if module is model.traced_cell())
    about = (tokens, rows.lengths.tolist(), model.config.cell.kind, page, features, half_lives, path)
    html = build_page(f"Inside {model.config.model.name}", subtitle, *about)
    (folder / "page.html").write_text(html, encoding="utf-8")
    return parts


def make_folder(config: AnalyzeConfig) -> Path:
    """The folder of an analysis, without the files of an earlier one."""
    name = name_text(config.text) + (f"-{name_text(config.set)}" if config.set else "")
    folder = Path(config.folder or find_run_folder(config.ckpt) / "analysis" / name)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.md", "page.html", "traces.npz", *(f"{plot}.png" for plot in PLOTS)):
        (folder / name).unlink(missing_ok=True)
    return folder


def name_text(text: str | None) -> str:
    """The folder of a text: its first words and a digest of all of it; or that of the validation data."""
    if text is None:
        return "validation"
    words = "-".join(re.findall("[a-z0-9]+", text[:200].lower()))[:24].rstrip("-")
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".removeprefix("-")
