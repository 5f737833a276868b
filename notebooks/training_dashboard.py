import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Training dashboard")

with app.setup:
    import functools
    import html
    import io
    import json
    import math
    import os
    import re
    import time
    from pathlib import Path
    from typing import Any

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
        "scores": r"val/(?!loss|perplexity).*",
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


@app.class_definition
class Metrics:
    """metrics.csv, of which `update` reads the new lines only. The run may be writing at the same time."""

    def __init__(self, folder: Path):
        self.path, self.rows = folder / "metrics.csv", 0
        self.known: Any = None  # the file and its header
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.update()

    def update(self) -> int:
        """The number of rows that have been read, counting those that were read again."""
        if not self.path.is_file():
            return self.rows
        with self.path.open("rb") as file:
            header = file.readline()
            # A new column, and resuming, put another file in its place
            if self.known != (known := (os.fstat(file.fileno()).st_ino, header)):
                self.known, self.end = known, file.tell()
                self.names = header.decode().strip().split(",")
                self.points = {name: [] for name in self.names if name not in ("step", "epoch")}
            file.seek(self.end)
            while (line := file.readline()).endswith(b"\n"):  # otherwise it is not complete yet
                row = dict(zip(self.names, line.decode().strip().split(","), strict=True))
                for name, points in self.points.items():
                    if row[name]:
                        points.append((int(row["step"]), float(row[name])))
                self.rows, self.end = self.rows + 1, file.tell()
        return self.rows

    def series(self) -> dict[str, Series]:
        """Column → its steps and values."""
        return {n: (np.array(p)[:, 0], np.array(p)[:, 1]) for n, p in self.points.items() if p}


@app.function
def stamp(path: Path) -> float:
    """When a file was written, or 0 if there is none: what was made of it is kept until this changes."""
    return path.stat().st_mtime if path.exists() else 0.0


@app.function
@functools.lru_cache(maxsize=1)
def read_settings(folder: Path, written: float) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text("utf-8")) if written else {}


@app.function
@functools.lru_cache(maxsize=1)
def read_examples(folder: Path, written: float) -> list[tuple[int, list[list[str]]]]:
    """examples.md: the step and the table of each validation; the first row is the header."""
    if not written:
        return []
    pieces = re.split(r"^## Step (\d+)$", (folder / "examples.md").read_text("utf-8"), flags=re.MULTILINE)
    found = []
    for step, body in zip(pieces[1::2], pieces[2::2], strict=True):
        lines = [line[1:-1] for line in body.splitlines() if line.startswith("|")]
        cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)] for line in lines]
        found.append((int(step), cells[:1] + cells[2:]))
    return found


@app.function
def find_gates(folder: Path, now: float) -> tuple[int, Path] | None:
    """The latest gates/step_N.npz with N up to `now`, and N."""
    found = {int(path.stem.removeprefix("step_")): path for path in folder.glob("gates/step_*.npz")}
    return max(((step, path) for step, path in found.items() if step <= now), default=None)


@app.function
@functools.lru_cache(maxsize=1)
def draw_gates(path: Path, written: float) -> tuple[int, mo.Html]:
    """The number of units in a file of gates, and their picture."""
    arrays = dict(np.load(path))
    values = {name: torch.from_numpy(arrays[name]) for name in "fioczr" if name in arrays}
    values = values or {"h": torch.from_numpy(arrays["h"])}
    units = len(arrays["units"])
    return units, show(plots.draw_gates(values, torch.arange(units), arrays["tokens"].tolist()))


@app.function
def show(figure: Figure) -> mo.Html:
    """A figure as a picture, drawn once; as an output of its own marimo would draw it at twice the size."""
    figure.savefig(picture := io.BytesIO(), format="png", dpi=90)
    return mo.image(picture.getvalue(), width="100%")


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
def arrange_panels(metrics: dict[str, Series]) -> dict[str, list[str]]:
    """Title → its columns, for each of `PANELS` that the run has. Scores of another range have their own."""
    panels: dict[str, list[str]] = {}
    for title, pattern in PANELS.items():
        for name in metrics:
            if re.fullmatch(pattern, name):
                largest = np.nanmax(abs(metrics[name][1]))
                bound = 10 ** math.ceil(math.log10(largest)) if math.inf > largest > 1 else 1
                panels.setdefault(f"scores up to {bound}" if title == "scores" else title, []).append(name)
    return panels


@app.function
def draw_curves(metrics: dict[str, Series], now: float, share: float, logarithmic: bool) -> Figure:
    """The panels; curves are pale after step `now`."""
    panels = arrange_panels(metrics)
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
        ax.set_title(names[0] if title.startswith("scores") and len(names) == 1 else title, fontsize=10)
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
    refresh = mo.ui.refresh(options=["1s", "10s", "30s", "60s"], default_interval="30s")
    position = mo.ui.slider(0, 100, 1, 100, label="how far into the run, %", show_value=True)
    smoothing = mo.ui.slider(0, 0.98, 0.02, 0.5, label="smoothing", show_value=True)
    log_scale = mo.ui.switch(label="losses on a logarithmic scale")
    get_rows, set_rows = mo.state(0)
    get_stamps, set_stamps = mo.state(())
    mo.vstack(
        [
            mo.hstack([chosen, typed, refresh], widths=[2, 3, 1], align="center"),
            mo.hstack([position, smoothing, log_scale], justify="start", gap=3),
        ]
    )
    return (
        chosen, get_rows, get_stamps, log_scale, position, refresh, set_rows, set_stamps, smoothing, typed,
    )  # fmt: skip


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
def _(folder):
    reader = Metrics(folder)
    return (reader,)


@app.cell
def _(folder, get_rows, get_stamps, reader, refresh, set_rows, set_stamps):
    refresh  # noqa: B018 - reruns this cell; those below run when the file that they show has changed
    _names = ("config.yaml", "metrics.json", "doctor.md", "examples.md", "gates")
    _stamps = tuple(stamp(folder / name) for name in _names)
    if (_rows := reader.update()) != get_rows():
        set_rows(_rows)
    if _stamps != get_stamps():
        set_stamps(_stamps)
    return


@app.cell
def _(folder, get_rows, reader):
    get_rows()  # reruns this cell
    mo.stop(
        not reader.points,
        mo.callout(mo.md(f"`{folder}` holds no metrics yet: there is no `metrics.csv`."), "warn"),
    )
    metrics = reader.series()
    return (metrics,)


@app.cell
def _(folder, get_stamps):
    stamps = get_stamps()
    settings = read_settings(folder, stamp(folder / "config.yaml"))
    return settings, stamps


@app.cell
def _(folder, metrics, position, settings, stamps):
    now = max(steps[-1] for steps, _ in metrics.values()) * position.value / 100
    _last = settings.get("trainer", {}).get("max_steps", math.inf)
    _step = min(int(now) + 1, _last)  # metrics.csv counts from 0, and the row of the test has one step more
    _age = time.time() - max(stamp(folder / "metrics.csv"), *stamps)
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
            mo.md(f"`{folder}`: **{_word}**, step {_step} of {_last}{_what}"),
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
    show(draw_curves(metrics, now, smoothing.value, log_scale.value))
    return


@app.cell
def _(folder, now, stamps):
    stamps  # noqa: B018 - the file may have changed
    _found = read_examples(folder, stamp(folder / "examples.md"))
    _tables = [(step, cells) for step, cells in _found if step <= now + 1]  # counted from 1
    if _tables:
        _step, _cells = _tables[-1]
        _shown = mo.vstack([mo.md(f"## Samples at step {_step}"), build_table(_cells)])
    else:
        _shown = mo.md("## Samples\n\nNone up to this step: they are written at each validation.")
    mo.vstack([_shown])
    return


@app.cell
def _(folder, now, stamps):
    stamps  # noqa: B018 - there may be another file
    if _found := find_gates(folder, now + 1):
        _step, _path = _found
        _units, _picture = draw_gates(_path, stamp(_path))
        _word = f"## Gates at step {_step}\n\nOf {_units} units of the last layer, on one text."
        _shown = [mo.md(_word), _picture]
    else:
        _shown = [mo.md("## Gates\n\nNone up to this step: the callback `gates` writes them at validations.")]
    mo.vstack(_shown)
    return


@app.cell
def _(folder, settings, stamps):
    stamps  # noqa: B018 - the files may have changed
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
