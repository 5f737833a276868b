"""All analyses of a checkpoint, written into a folder as a report, plots and a page."""

import hashlib
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from lstmlab.analysis import gates, sections
from lstmlab.analysis.page import LABELS, build_page
from lstmlab.analysis.traces import load_model_data, load_validation_rows, trace
from lstmlab.checkpoint import find_run_folder, load_model
from lstmlab.progress import Progress
from lstmlab.schema import AnalyzeConfig

PLOTS = ("attention", "causes", "gates", "gradient_flow", "half_life", "probes", "saturation", "writing")


def analyze(config: AnalyzeConfig) -> Path:
    """Analyse checkpoint `config.ckpt`. Returns the folder with report.md, page.html, plots and, if asked
    for, traces.npz. Each text has its own folder, and what an earlier analysis left there is deleted.

    Raises what `load_checkpoint`, the task's `read_text` and the data module raise, and Unsupported for a
    task without a cell or without tokens.
    """
    with closing(Progress("analysis")) as progress:
        folder, report = write_analysis(config, progress)
    (folder / "report.md").write_text(report + "\n", encoding="utf-8")
    print(report)
    return folder


def write_analysis(config: AnalyzeConfig, progress: Progress) -> tuple[Path, str]:
    """Write the page, the plots and the traces. Returns their folder, and the report in Markdown."""
    model: Any = load_model(config.ckpt, "scratch")
    changes = config.data.to_plain()
    held_out: Any = None
    note = ""
    if config.text is None or config.probe_steps:
        count = max(
            config.probe_steps, config.page_steps, sections.SAMPLES * (sections.PROMPT + sections.LENGTH)
        )
        held_out, note = load_validation_rows(model, changes, count)
    rows = held_out if config.text is None else model.read_text(config.text)
    rows = rows.head(config.page_steps)
    values, tokens = trace(model, rows), model.token_texts(rows)
    shown = config.page_values or [n for n in dict.fromkeys([*LABELS, *values]) if n in values]
    if unknown := [n for n in shown if n not in values]:
        raise ValueError(f"page_values holds {unknown[0]}, but this cell has {', '.join(values)}")
    folder = make_folder(config)
    if config.traces:
        arrays: dict[str, Any] = {"tokens": np.array(tokens)} | {n: v.numpy() for n, v in values.items()}
        np.savez(folder / "traces.npz", **arrays)

    task, cell = model.config.model.name, model.config.cell
    shape = f"{cell.kind}, {cell.num_layers} × {cell.hidden_size}"
    retain = gates.RETAINS.get(cell.kind)
    kept = None if retain is None else gates.find_retained(retain, values)
    half_lives = None if kept is None else gates.compute_half_lives(kept)  # (L, D, H)
    progress.show(1, 20)
    parts = [f"# Inside {config.ckpt}\n\n{task}: {shape}. {len(tokens):,} steps traced."]
    parts += sections.report_gates(values, tokens, retain, half_lives, folder)
    progress.show(2, 20)
    if config.probe_steps:
        probed = held_out.head(config.probe_steps)
        parts.append(sections.report_units(model, probed, note, config.language, folder))
    progress.show(11, 20)
    parts.append(sections.report_gradient_flow(model, rows, folder))
    if model.writes_text:
        parts.append(
            sections.report_writing(model, held_out, note, lambda: load_model_data(model, changes), folder)
        )
    if (figure := model.draw_rows(rows)) is not None:
        figure.savefig(folder / "attention.png")
    progress.show(19, 20)

    subtitle = f"{shape} · {len(tokens):,} steps · {config.ckpt}"
    features = model.text_features(rows, config.language)
    page = {name: values[name] for name in shown}
    path = next(name for name, module in model.named_modules() if module is model.traced_cell())
    about = (tokens, rows.lengths.tolist(), cell.kind, page, features, half_lives, path)
    html = build_page(f"Inside {task}", subtitle, *about)
    (folder / "page.html").write_text(html, encoding="utf-8")
    return folder, "\n\n".join(parts)


def make_folder(config: AnalyzeConfig) -> Path:
    """The folder of an analysis, without the files of an earlier one."""
    folder = Path(config.folder or find_run_folder(config.ckpt) / "analysis" / name_text(config.text))
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
