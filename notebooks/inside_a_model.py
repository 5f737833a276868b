import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Inside a trained model")

with app.setup:
    import contextlib
    import html
    import io
    import tempfile
    from typing import Any

    import marimo as mo
    import torch
    from hydra import compose, initialize_config_dir
    from matplotlib.figure import Figure

    from lstmlab.analysis import gates, plots
    from lstmlab.analysis.attribution import attribute_memory, attribute_prediction, memory_of
    from lstmlab.analysis.causes import ANSWERS, cut_rows
    from lstmlab.analysis.interventions import clamp, intervene
    from lstmlab.analysis.page import LABELS, build_page
    from lstmlab.analysis.probes import Unit, find_units
    from lstmlab.analysis.traces import load_validation_rows, trace
    from lstmlab.checkpoint import load_model
    from lstmlab.config import PROJECT, to_plain
    from lstmlab.data.rows import Rows
    from lstmlab.schema import check
    from lstmlab.tables import markdown

    SHOWN = 1500  # steps coloured
    ATTRIBUTED = 300  # steps between which memories are attributed
    PROBED = 10_000  # steps on which units are scored


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Inside a trained model

    A checkpoint of any backend is opened with the scratch cell, which returns every gate and state of every
    step. The equations again:

    $$i, f, o = \sigma(W[h, x] + b) \qquad g = \tanh(W_g [h, x] + b_g) \qquad
    c' = f \odot c + i \odot g \qquad h' = o \odot \tanh c'$$

    ```python
    model = load_model("RUN/checkpoints/best.ckpt", "scratch")
    values = trace(model, model.read_text("any text"))  # values["f"]: (layers, directions, steps, units)
    ```
    """)
    return


@app.function
def find_newest_checkpoint() -> str:
    """The latest best.ckpt under logs/, or an empty string."""
    found = (PROJECT / "logs").rglob("checkpoints/best.ckpt")
    return str(max(found, key=lambda path: path.stat().st_mtime, default=""))


@app.function
def train_small_model() -> str:
    """Train a character model of 64 units for 200 steps on the standard library. Returns its checkpoint."""
    from lstmlab.runs.train import train  # importing Lightning takes seconds

    overrides = ["cell.hidden_size=64", "cell.num_layers=1", "cell=fused", "trainer.max_steps=200"]
    overrides += ["data.max_chars=300_000", "data.max_val_chars=10_000", "trainer.enable_progress_bar=false"]
    folder = tempfile.mkdtemp(prefix="lstmlab-")
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        config = check("train", to_plain(compose("train", [f"run_dir={folder}", *overrides])))
    with contextlib.redirect_stdout(io.StringIO()):
        train(config)
    return f"{folder}/checkpoints/best.ckpt"


@app.function
def colour_tokens(tokens: list[str], values: torch.Tensor, low: float, high: float) -> mo.Html:
    """Tokens on a background from blue (low) to orange (high), with their values (N,) on hover."""
    spans = []
    for token, value in zip(tokens, values.tolist(), strict=True):
        share = 2 * (value - low) / (high - low) - 1  # −1 … 1
        colour = f"rgba({'240,138,84' if share > 0 else '92,152,224'},{min(1, abs(share)):.2f})"
        body = html.escape(token).replace("\n", "⏎<br>")
        spans.append(f'<span style="background:{colour}" title="{value:.3f}">{body}</span>')
    style = "font:14px/1.6 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;color:#0f172a;"
    style += "background:white;border:1px solid #e2e8f0;border-radius:12px;padding:14px;"
    return mo.Html(f'<div style="{style}max-height:420px;overflow:auto">{"".join(spans)}</div>')


@app.function
def show_parts(tokens: list[str], parts: torch.Tensor, says: str) -> list[mo.Html]:
    """Tokens coloured by their parts (N,) of a sum, and what that says."""
    limit = max(1e-6, parts.abs().max().item())
    colours = f"Blue is {-limit:.2g}, orange is {limit:.2g}."
    return [colour_tokens(tokens, parts, -limit, limit), mo.md(f"{says} {colours}")]


@app.function
def compare_texts(before: str, after: str) -> mo.Html:
    """Two texts side by side, each marked from where it differs from the other."""
    pairs = zip(before, after, strict=False)
    same = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    style = "font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;color:#0f172a;"
    style += "background:white;border:1px solid #e2e8f0;border-radius:12px;padding:12px;flex:1;"
    boxes = [
        f'<div style="{style}">{html.escape(text[:same])}<mark>{html.escape(text[same:])}</mark></div>'
        for text in (before, after)
    ]
    return mo.Html(f'<div style="display:flex;gap:12px">{"".join(boxes)}</div>')


@app.cell
def _():
    _given = mo.cli_args().get("ckpt")  # marimo run notebooks/inside_a_model.py -- --ckpt PATH
    ckpt_box = mo.ui.text(
        str(_given or find_newest_checkpoint()),
        label="checkpoint",
        placeholder="empty: train a small model now, in a few seconds",
        full_width=True,
    )
    text_box = mo.ui.text_area(
        "", label="text", placeholder="empty: the model's own validation data", rows=3, full_width=True
    )
    mo.vstack([ckpt_box, text_box])
    return ckpt_box, text_box


@app.cell
def _(ckpt_box):
    model: Any = None
    try:
        with mo.status.spinner("Training a small model …" if not ckpt_box.value else "Opening …"):
            ckpt = ckpt_box.value.strip() or train_small_model()
            model = load_model(ckpt, "scratch")
    except (ValueError, OSError) as _error:
        mo.stop(True, mo.callout(mo.md(str(_error)), "danger"))
    config = model.config
    cell = config.cell
    _size = sum(p.numel() for p in model.parameters())
    mo.md(
        f"`{ckpt}`: **{config.model.name}** on {config.data.name}, "
        f"{cell.backend} {cell.kind}, {cell.num_layers} × {cell.hidden_size}, "
        f"{_size:,} parameters."
    )
    return cell, ckpt, model


@app.cell
def _(model, text_box):
    try:
        if text_box.value.strip():
            rows, held_out = model.read_text(text_box.value), None
        else:
            rows, _ = load_validation_rows(model, {}, PROBED)
            held_out = rows.head(PROBED)
    except (ValueError, OSError) as _error:
        mo.stop(True, mo.callout(mo.md(str(_error)), "danger"))
    rows = rows.head(SHOWN)
    values, text = trace(model, rows), model.token_texts(rows)
    return held_out, rows, text, values


@app.cell(hide_code=True)
def _(cell, values):
    _names = {LABELS[name]: name for name in LABELS if name in values}
    _last = cell.num_layers - 1
    shown = mo.ui.dropdown(_names, value=next(iter(_names)))
    layer = mo.ui.slider(0, _last, value=_last, label="layer", show_value=True)
    unit = mo.ui.slider(0, cell.hidden_size - 1, value=0, label="unit", show_value=True, full_width=True)
    backwards = mo.ui.switch(label="backwards") if cell.bidirectional else None
    return backwards, layer, shown, unit


@app.cell
def _(cell, model, rows, text, values):
    _names = [name for name in LABELS if name in values]
    _page = build_page(
        "Each unit, over the text",
        f"{cell.kind}, {cell.num_layers} × {cell.hidden_size}",
        text,
        rows.lengths.tolist(),
        cell.kind,
        {name: values[name] for name in _names},
        model.text_features(rows, None),
        None,
    )
    mo.iframe(_page, height="760px")
    return


@app.cell
def _(backwards, layer, shown, unit):
    direction = 0 if backwards is None else int(backwards.value)
    _controls = [shown, layer if layer.stop else None, backwards, unit]
    mo.vstack(
        [
            mo.md("## One unit\n\nChoose one that looks interesting above."),
            mo.hstack([control for control in _controls if control is not None], justify="start", gap=2),
        ]
    )
    return (direction,)


@app.cell
def _(direction, layer, text, unit, values):
    _steps = min(120, len(text))
    _figure = Figure((12.5, 3.6), layout="constrained")
    _top, _bottom = _figure.subplots(2, 1, sharex=True)
    for _name in values:
        _ax = _top if _name in gates.SIGMOIDS else _bottom
        _ax.plot(values[_name][layer.value, direction, :_steps, unit.value], label=_name, linewidth=1.4)
    for _ax in (_top, _bottom):
        _ax.legend(ncols=4, fontsize=8, loc="upper right")
        _ax.spines[["top", "right"]].set_visible(False)
    _top.set(ylim=(-0.05, 1.05), ylabel="gates")
    _bottom.set(ylabel="candidate, states")
    _marks = [token.strip() or "␣" for token in text[:_steps]]
    _bottom.set_xticks(range(_steps), _marks, fontsize=7, parse_math=False)
    if max(map(len, _marks)) > 1:
        _bottom.tick_params("x", rotation=90)
    mo.vstack([mo.md(f"All of its gates and states, over the first {_steps} steps:"), _figure])
    return


@app.cell(hide_code=True)
def _(direction, layer, model, shown, unit, values):
    _here = Unit(shown.value, layer.value, direction, unit.value)
    _path = next(name for name, module in model.named_modules() if module is model.traced_cell())
    prefix = "" if _path == "cell" else f"{_path}."
    point = prefix + _here.point
    _limit = max(
        1.0, round(values[_here.name][_here.layer, direction, :, _here.number].abs().max().item(), 1)
    )
    _low = 0.0 if shown.value in gates.SIGMOIDS else -_limit
    held = mo.ui.slider(
        _low, _limit, (_limit - _low) / 40, _limit, label=f"hold {point} at", show_value=True, full_width=True
    )
    return held, point, prefix


@app.cell
def _(held, held_out, model, point, text):
    _line = (
        "".join(text[:100]) if model.writes_text else "".join(text).partition("\n")[0].removesuffix("<eos>")
    )
    _changes = {point: clamp(held.value)}
    _parts = [
        mo.md(
            "## Change it\n\nWhat does the model do if the unit above is held? The change acts where the "
            "equation has that symbol, so all that follows sees it.\n\n"
            f'```python\nwith intervene(model, {{"{point}": clamp({held.value:.3g})}}):\n    ...\n```'
        ),
        held,
    ]
    try:
        _plain = "".join(model.respond(_line, ANSWERS)).removeprefix(_line)
        with intervene(model, _changes):
            _changed = "".join(model.respond(_line, ANSWERS)).removeprefix(_line)
        _parts += [
            mo.md(f"The answer to `{_line[-40:]!r}`, without and with the change, marked where they differ:"),
            compare_texts(_plain, _changed),
        ]
    except ValueError as _error:
        _parts.append(mo.md(f"No text is shown here: {_error}."))
    if held_out is not None:
        _rows = cut_rows(model, held_out.head(2000))
        with torch.inference_mode():
            _losses = [model.compute_losses(_rows)]
            with intervene(model, _changes):
                _losses.append(model.compute_losses(_rows))
        _before, _after = (losses.nanmean().item() for losses in _losses)
        _parts.append(
            mo.md(f"On held-out data this changes the loss from {_before:.4f} to **{_after:.4f}** nats.")
        )
    mo.vstack(_parts)
    return


@app.cell
def _(direction, layer, rows, shown, unit, values):
    _read = min(ATTRIBUTED, int(rows.lengths[0]))
    first = Rows.dense(rows.ids[:1, :_read])
    _largest = int(values[shown.value][layer.value, direction, :_read, unit.value].abs().argmax())
    step = mo.ui.slider(0, _read - 1, value=_largest, label="step", show_value=True, full_width=True)
    return first, step


@app.cell
def _(direction, first, layer, model, prefix, step, unit):
    _parts = [
        mo.md(
            "## Who wrote what is in its memory\n\nA memory that a gate keeps is a sum of what each step "
            "wrote, times how much of it the gate has let through since. This is exact bookkeeping. It is "
            "not cause, since the gates themselves depend on earlier steps: for causes, hold the unit."
        ),
        step,
    ]
    _tokens = model.token_texts(first)
    try:
        _memory = Unit(memory_of(model.config.cell.kind), layer.value, direction, unit.value)
        with torch.no_grad(), intervene(model, {}, record=True) as _cache:
            model.run(first)
        _written = attribute_memory(model, _cache, prefix + _memory.point, step.value)[:, 0]
        _parts += show_parts(
            _tokens,
            _written,
            f"`{prefix}{_memory.point}` after step {step.value}, `{_tokens[step.value]!r}`, is "
            f"{_written.sum():.3f}: the sum of what each token put there.",
        )
    except ValueError as _error:
        _parts.append(mo.md(f"{_error}."))
    mo.vstack(_parts)
    return


@app.cell
def _(model, text):
    _names = getattr(model, "vocabulary", None) or getattr(model, "labels", None)
    mo.stop(_names is None)
    _line = "".join(text[:ATTRIBUTED]) if model.writes_text else "".join(text).splitlines()[0]
    _parts = [
        mo.md(
            "## What a prediction owes to each token\n\nThrough the output gate and the projection, the same "
            "sum carries on to a prediction. Layers below the top one are taken as given."
        )
    ]
    try:
        _rows = model.read_text(_line)
        with torch.inference_mode():
            _logits = model.run(_rows)
        _p = _logits[0, -1] if model.writes_text else model.probabilities(_logits)[0]
        _target = _names[int(_p.argmax())]
        _added, _bias = attribute_prediction(model, _line, _target)
        _parts += show_parts(
            model.token_texts(_rows),
            _added,
            f"The model predicts `{_target!r}`. The tokens add {_added.sum():.3f} to its logit, and the bias "
            f"{_bias:.3f}.",
        )
    except ValueError as _error:
        _parts.append(mo.md(f"{_error}."))
    mo.vstack(_parts)
    return


@app.cell
def _(cell, values):
    retain = gates.RETAINS.get(cell.kind)
    kept = gates.find_retained(retain, values) if retain else None
    half_lives = None if kept is None else gates.compute_half_lives(kept)
    _parts = [mo.md("## How long it remembers")]
    if half_lives is None:
        _parts.append(mo.md(f"A cell of kind {cell.kind} has no gate that measures how long it remembers."))
    else:
        _middle = half_lives[half_lives.isfinite()].median()
        _parts += [
            mo.md(
                rf"""
    After $t$ steps the share $\prod {retain}_t$ of the old memory is left. Half of it is left after

    $$t_{{1/2}} = \frac{{\ln 2}}{{|\overline{{\ln {retain}}}|}}$$

    ```python
    math.log(2) / f.double().log().mean(-2).abs()
    ```

    Here the median unit keeps half for **{_middle:.3g} steps**, the best one for {half_lives.max():.4g}.
    """
            ),
            plots.draw_half_lives(half_lives),
        ]
    mo.vstack(_parts)
    return half_lives, kept, retain


@app.cell
def _(half_lives, kept, retain, text, values):
    _order = torch.arange(values["h"].size(-1)) if half_lives is None else half_lives[-1, 0].argsort()
    _parts = [mo.md("## All units"), plots.draw_gates(values, _order, text)]
    if retain:
        _ranked = gates.rank_tokens(kept[-1, 0], text, max(2, len(text) // 300))
        _words = [f"`{token!r}` {mean:.2f}" for token, _, mean in _ranked]
        _parts.append(
            mo.md(
                f"Each row is a unit of the last layer, each column a step. By the mean of {retain} over the "
                f"units, it keeps least at {', '.join(_words[:6])}; most at {', '.join(_words[:-7:-1])}."
            )
        )
    mo.vstack(_parts)
    return


@app.cell
def _(values):
    _found = {name: gates.measure_saturation(values[name]) for name in values if name in gates.SIGMOIDS}
    mo.stop(not _found)
    mo.vstack(
        [
            mo.md(
                "## Saturation\n\nEach point is a unit: the share of steps at which its gate is almost "
                "closed (below 0.1) and almost open (above 0.9). Units near the diagonal act as "
                "switches; units near the origin are rarely saturated."
            ),
            plots.draw_saturations(_found),
        ]
    )
    return


@app.cell
def _(held_out, model):
    _parts = [mo.md("## What single units know")]
    if held_out is None:
        _parts.append(mo.md("Scored on validation data only: leave the text box empty."))
    else:
        _rows: Rows = held_out
        if len(_rows.ids) == 1:
            _rows = _rows.side_by_side(16)
        _results = find_units(trace(model, _rows, "ch"), model.text_features(_rows, None))
        _cells = [
            [f.feature, f"{f.best[0][0]}", f"{f.best[0][1]:+.2f}", f"{f.control_r:.2f}", f"{f.probe:.2f}"]
            for f in _results
        ]
        _parts.append(
            mo.md(
                f"Correlation $r$ with features of the text, on {int(_rows.mask.sum()):,} steps. The control "
                "is the best result with circularly shifted labels. $R^2$ is that of a linear probe of all "
                "units. "
                "`src/analyze.py` does this on 100,000 steps.\n\n"
                + markdown(["feature", "best unit", "r", "control", "R²"], _cells)
            )
        )
    if held_out and (_figure := model.draw_rows(held_out)) is not None:
        _parts += [mo.md("## Attention"), _figure]
    mo.vstack(_parts)
    return


if __name__ == "__main__":
    app.run()
