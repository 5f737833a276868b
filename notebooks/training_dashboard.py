import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Training dashboard")

with app.setup:
    import csv
    import html
    import json
    import re
    import time
    from pathlib import Path

    import marimo as mo
    import numpy as np
    import torch
    import yaml
    from matplotlib.figure import Figure

    from lstmlab.analysis import plots
    from lstmlab.config import PROJECT

    Series = tuple[np.ndarray, np.ndarray]  # steps (N,), values (N,)
    PANELS = {  # title → the columns of metrics.csv in it
        "loss": r"(train|val)/loss.*",
        "perplexity": r".*/perplexity",
        "other scores": r"val/(?!loss|perplexity).*",
        "gradient norm before clipping": "train/grad_norm",
        "learning rate": "train/lr",
        "tokens per second": "train/tokens_per_second",
    }


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Training dashboard

    Choose a run, or paste the path of its folder, while it trains or afterwards. The page updates itself.
    Drag the slider to the left to see an earlier state of the run.
    """)
    return


@app.function
def find_runs() -> dict[str, str]:
    """The runs under logs/, latest first: label → folder."""
    logs = PROJECT / "logs"
    found = sorted(logs.rglob("config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    return {
        str(path.parent.relative_to(logs)): str(path.parent) for path in found if ".hydra" not in path.parts
    }


@app.function
def read_metrics(folder: Path) -> dict[str, Series]:
    """metrics.csv: column → its steps and values. The run may be writing to the file at the same time."""
    if not (folder / "metrics.csv").is_file():
        return {}
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step")]
    names = [name for name in (rows[0] if rows else {}) if name not in ("step", "epoch")]
    points = {n: [(int(row["step"]), float(row[n])) for row in rows if row[n]] for n in names}
    return {n: (np.array(p)[:, 0], np.array(p)[:, 1]) for n, p in points.items() if p}


@app.function
def read_examples(folder: Path) -> list[tuple[int, list[list[str]]]]:
    """examples.md: the step and the table of each validation; the first row is the header."""
    if not (folder / "examples.md").is_file():
        return []
    pieces = re.split(r"^## Step (\d+)$", (folder / "examples.md").read_text("utf-8"), flags=re.MULTILINE)
    found = []
    for step, body in zip(pieces[1::2], pieces[2::2], strict=True):
        lines = [line[1:-1] for line in body.splitlines() if line.startswith("|")]
        cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)] for line in lines]
        found.append((int(step), cells[:1] + cells[2:]))
    return found


@app.function
def read_gates(folder: Path, now: float) -> tuple[int, dict[str, np.ndarray]] | None:
    """The latest gates/step_N.npz with N up to `now`: N and its arrays."""
    found = {int(path.stem.removeprefix("step_")): path for path in folder.glob("gates/step_*.npz")}
    step = max((step for step in found if step <= now), default=None)
    return None if step is None else (step, dict(np.load(found[step])))


@app.function
def build_table(cells: list[list[str]]) -> mo.Html:
    """An HTML table of rows of text, with every character escaped; the first row is the header."""
    rows = [
        "".join(
            f'<{tag} style="text-align:left;padding:4px 14px 4px 0">{html.escape(c)}</{tag}>' for c in row
        )
        for tag, row in zip(["th", *["td"] * len(cells)], cells, strict=False)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return mo.Html(f'<table style="font:13px ui-monospace,monospace;white-space:pre-wrap">{body}</table>')


@app.function
def smooth(values: np.ndarray, share: float) -> np.ndarray:
    """The exponential moving average s_t = share · s_{t−1} + (1 − share) · v_t, with s_0 = v_0."""
    out = values.copy()
    for t in range(1, len(out)):
        out[t] = share * out[t - 1] + (1 - share) * values[t]
    return out


@app.function
def draw_curves(metrics: dict[str, Series], now: float, share: float, logarithmic: bool) -> Figure:
    """One panel for each of `PANELS` that the run has; curves are pale after step `now`."""
    panels = {
        title: [name for name in metrics if re.fullmatch(pattern, name)] for title, pattern in PANELS.items()
    }
    panels = {title: names for title, names in panels.items() if names}
    rows = -(-len(panels) // 3)
    figure = Figure((12.5, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (title, names) in zip(axes, panels.items(), strict=False):
        for k, name in enumerate(names):
            steps, values = metrics[name]
            trained = name.startswith("train")
            if trained and share and name != "train/lr":
                ax.plot(steps, values, color=f"C{k}", alpha=0.25, linewidth=1)
                values = smooth(values, share)
            past = steps <= now
            ax.plot(steps, values, color=f"C{k}", alpha=0.25)
            ax.plot(steps[past], values[past], color=f"C{k}", marker="" if trained else "o", ms=3, label=name)
        ax.set_title(title, fontsize=10)
        ax.axvline(now, color="#94a3b8", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        if "norm" in title or (logarithmic and title in ("loss", "perplexity")):
            ax.set_yscale("log")
        if len(names) > 1:
            ax.legend(fontsize=7, frameon=False)
    return figure


@app.cell
def _():
    listed = find_runs()
    given = mo.cli_args().get("run")  # marimo run notebooks/training_dashboard.py -- --run FOLDER
    chosen = mo.ui.dropdown(listed, value=next(iter(listed), None), label="run", searchable=True)
    typed = mo.ui.text(str(given or ""), placeholder="or a run's folder", full_width=True)
    refresh = mo.ui.refresh(options=["1s", "2s", "10s", "60s"], default_interval="2s")
    position = mo.ui.slider(0, 100, 1, 100, label="how far into the run, %", show_value=True)
    smoothing = mo.ui.slider(0, 0.98, 0.02, 0.5, label="smoothing", show_value=True)
    log_scale = mo.ui.switch(label="losses on a logarithmic scale")
    get_written, set_written = mo.state(0.0)
    mo.vstack(
        [
            mo.hstack([chosen, typed, refresh], widths=[2, 3, 1], align="center"),
            mo.hstack([position, smoothing, log_scale], justify="start", gap=3),
        ]
    )
    return chosen, get_written, log_scale, position, refresh, set_written, smoothing, typed


@app.cell
def _(chosen, typed):
    mo.stop(
        not (typed.value or chosen.value),
        mo.callout(mo.md("No run yet. `python src/train.py model=charlm` starts one under `logs/`."), "info"),
    )
    folder = Path(typed.value or chosen.value).expanduser()
    mo.stop(not folder.is_dir(), mo.callout(mo.md(f"There is no folder `{folder}`."), "danger"))
    return (folder,)


@app.cell
def _(folder, get_written, refresh, set_written):
    refresh  # noqa: B018 - reruns this cell; those below run when something was written
    _written = max(path.stat().st_mtime for path in [folder, *folder.iterdir()] if path.exists())
    if _written != get_written():
        set_written(_written)
    return


@app.cell
def _(folder, get_written):
    written = get_written()
    metrics = read_metrics(folder)
    settings = {}
    if (folder / "config.yaml").is_file():
        settings = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    mo.stop(
        not metrics, mo.callout(mo.md(f"`{folder}` holds no metrics yet: there is no `metrics.csv`."), "warn")
    )
    return metrics, settings, written


@app.cell
def _(folder, metrics, position, settings, written):
    last = max(steps[-1] for steps, _ in metrics.values())
    now = last * position.value / 100
    _age = time.time() - written
    if (folder / "metrics.json").is_file():
        _word = "finished"
    else:
        _word = "training" if _age < 120 else f"nothing written for {_age / 60:.0f} minutes"
    _cell = settings.get("cell", {})
    _what = ""
    if _cell:
        _what = (
            f" · {settings['model']['name']} on {settings['data']['name']}"
            f" · {_cell['backend']} {_cell['kind']}, {_cell['num_layers']} × {_cell['hidden_size']}"
            f" · seed {settings['seed']}"
        )

    def _at(name: str, suffix: str = "") -> list:
        """The last value that was known at the chosen step."""
        if name not in metrics:
            return []
        steps, values = metrics[name]
        known = values[steps <= now]
        value = f"{known[-1]:.4g}{suffix}" if len(known) else "not yet"
        return [mo.stat(value, label=name.removeprefix("train/").replace("_", " "), bordered=True)]

    _watched = settings.get("model", {}).get("monitor", "val/loss")
    mo.vstack(
        [
            mo.md(f"`{folder}`: **{_word}**, step {now:.0f} of {last:.0f} so far{_what}"),
            mo.hstack(
                [
                    s
                    for name in dict.fromkeys(
                        ["train/loss", _watched, "val/perplexity", "train/grad_norm", "train/lr"]
                    )
                    for s in _at(name)
                ],
                widths="equal",
            ),
        ]
    )
    return (now,)


@app.cell
def _(log_scale, metrics, now, smoothing):
    draw_curves(metrics, now, smoothing.value, log_scale.value)
    return


@app.cell
def _(folder, now, written):
    written  # noqa: B018 - the files may have changed
    _tables = [(step, cells) for step, cells in read_examples(folder) if step <= now + 1]  # counted from 1
    if _tables:
        _step, _cells = _tables[-1]
        _shown = mo.vstack([mo.md(f"## Samples at step {_step}"), build_table(_cells)])
    else:
        _shown = mo.md("## Samples\n\nNone up to this step: they are written at each validation.")
    mo.vstack([_shown])
    return


@app.cell
def _(folder, now, written):
    written  # noqa: B018 - the files may have changed
    if _found := read_gates(folder, now + 1):
        _step, _arrays = _found
        _values = {name: torch.from_numpy(_arrays[name]) for name in "fioczr" if name in _arrays}
        _values = _values or {"h": torch.from_numpy(_arrays["h"])}
        _figure = plots.draw_gates(_values, torch.arange(len(_arrays["units"])), _arrays["tokens"].tolist())
        _word = (
            f"## Gates at step {_step}\n\nOf {len(_arrays['units'])} units of the last layer, on one text."
        )
        _shown = [mo.md(_word), _figure]
    else:
        _shown = [mo.md("## Gates\n\nNone up to this step: the callback `gates` writes them at validations.")]
    mo.vstack(_shown)
    return


@app.cell
def _(folder, settings, written):
    written  # noqa: B018 - the files may have changed
    _parts = []
    if (folder / "doctor.md").is_file():
        _parts += [
            mo.md("## The doctor's findings"),
            mo.plain_text((folder / "doctor.md").read_text("utf-8")),
        ]
    if (folder / "metrics.json").is_file():
        _final = json.loads((folder / "metrics.json").read_text())
        _rows = [["metric", "value"], *([name, f"{value:.5g}"] for name, value in _final.items())]
        _parts += [mo.md("## Final metrics of the best checkpoint"), build_table(_rows)]
    _text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    _parts.append(mo.accordion({"Every setting": mo.plain_text(_text)}))
    mo.vstack(_parts)
    return


if __name__ == "__main__":
    app.run()
