import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Cell explorer")

with app.setup:
    import ast
    import html
    import inspect
    import math
    import textwrap
    from collections.abc import Sequence
    from typing import Any

    import marimo as mo
    import torch
    from torch import Tensor

    from lstmlab.cells import KINDS, build_cell
    from lstmlab.cells.scratch import STEPS


@app.cell(hide_code=True)
def _():
    kind = mo.ui.dropdown(list(KINDS), "lstm", label="kind:")
    units = mo.ui.slider(1, 4, 1, 1, label="units $H$:", show_value=True)
    mo.vstack(
        [
            mo.md("""
    # Inside a cell, line by line

    Choose a kind of cell. Its equations and every number below come from the scratch cell of `lstmlab`.
    Drag a number to change it, or double-click to type another one, and watch what follows from it.
    """),
            mo.hstack([kind, units], justify="start", gap=3),
        ]
    )
    return kind, units


@app.class_definition
class Recorder:
    """As `hooks` of a scratch cell: keeps the values that the lines of each step set, in their order."""

    def __init__(self, steps: int):
        self.values: list[list[Tensor]] = [[] for _ in range(steps)]

    def __call__(self, number: int, t: int, symbol: str, value: Tensor) -> Tensor:
        self.values[t].append(value[0].detach())
        return value

    def restart(self) -> None: ...

    def advance(self, steps: int) -> None: ...


@app.function
def run_lines(cell: Any, x: Tensor, state: Sequence[Tensor]) -> list[tuple[str, str, list[Tensor]]]:
    """Run a scratch cell of one layer on one row x (T, I) from a state, each (H,). Returns of each line what
    it sets, its source, and the values at each step; a line that sets two symbols has none."""
    cell.hooks = recorder = Recorder(len(x))
    cell(x, [member[None] for member in state])
    cell.hooks = None
    values, lines = zip(*recorder.values, strict=True), []
    for line in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(STEPS[cell.kind].__call__)))):
        if isinstance(line, ast.Assign):
            found = list(next(values)) if isinstance(line.targets[0], ast.Name) else []
            lines.append((ast.unparse(line.targets[0]), ast.unparse(line).replace("self.", ""), found))
    return lines


@app.function
def draw_lines(rows: list[tuple[str, list[Tensor | None]]]) -> str:
    """A table: code, and its values at each step, the darker the larger; green is positive, red negative."""

    def show(value: Tensor | None) -> str:
        boxes = [
            f'<div style="background:rgba({"13,148,136" if v > 0 else "225,29,72"},'
            f'{0.5 * abs(math.tanh(v)):.2f});padding:1px 6px">{v:.3f}</div>'.replace(">-", ">−")
            for v in ([] if value is None else value.tolist())
        ]
        return f"<td style='padding:1px'>{''.join(boxes)}</td>"

    names = ["", "before", *map(str, range(1, len(rows[0][1])))]
    header = "".join(f"<th style='padding:1px 7px'>{name}</th>" for name in names)
    body = "".join(
        f"<tr><td style='text-align:left'><code>{html.escape(code)}</code></td>{''.join(map(show, values))}"
        for code, values in rows
    )
    return (
        '<div style="overflow-x:auto"><table class="lines" style="text-align:right;white-space:nowrap;'
        f'font-size:13px;font-variant-numeric:tabular-nums"><tr>{header}{body}</table></div>'
    )


@app.cell
def _(kind, units):
    H, options = units.value, {"slstm": {"heads": 1}, "mogrifier": {"rounds": 2}}.get(kind.value, {})
    torch.manual_seed(3)
    initial = build_cell("scratch", 1, H, kind=kind.value, init="torch", **options)
    rows = [f"{gate}{unit}" if H > 1 else gate for gate in KINDS[kind.value].gates for unit in range(H)]
    fields = list(KINDS[kind.value].state._fields)

    def edit(label: str, value: Tensor, **labels: Any) -> Any:
        return mo.ui.matrix(value.round(decimals=1).tolist(), step=0.1, precision=1, label=label, **labels)

    inputs = edit("input x", Tensor([[1, 0, 0, 0, -1, 0, 0, 1]]), column_labels=[*"12345678"])
    start = edit("state before", torch.zeros(len(fields), H), row_labels=fields)
    weights = mo.ui.dictionary(
        {
            name: edit(name, weight, row_labels=rows if len(rows) == len(weight) else None)
            for name, weight in initial.named_parameters()
        }
    )
    return H, fields, inputs, options, start, weights


@app.cell
def _(kind):
    mo.md(f"```text\n{inspect.getdoc(STEPS[kind.value])}\n```")
    return


@app.cell
def _(inputs, start):
    mo.hstack([inputs, start], justify="start", gap=3)
    return


@app.cell
def _(H, fields, inputs, kind, options, start, weights):
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in weights.value.items()}
    cell, fused = (
        build_cell(backend, 1, H, kind=kind.value, **options).double() for backend in ("scratch", "fused")
    )
    for module in (cell, fused):
        module.load_state_dict(values)
    x = torch.tensor(inputs.value, dtype=torch.float64).T  # (T, 1)
    state = torch.tensor(start.value, dtype=torch.float64).unbind()
    lines = run_lines(cell, x, state)
    before = dict(zip(fields, state, strict=True))
    table = [("x", [None, *x]), *((code, [before.get(name), *found]) for name, code, found in lines)]
    output, _ = fused(x, [member[None] for member in state])
    difference = (output - torch.stack(lines[-1][2])).abs().max().item()

    _notes = f"`cell=fused` gives the same h with these weights: the largest difference is {difference:.0e}."
    if retains := KINDS[kind.value].retains:
        _notes += (
            f" The old state is multiplied by {retains}. Change that gate's bias by 5 or by −5: how long"
        )
        _notes += " does a state last?"
    if kind.value == "layernorm" and H == 1:
        _notes += " A layer norm over one unit is always 0: take two or more units."
    mo.vstack([mo.Html(draw_lines(table)), mo.md(_notes)])
    return


@app.cell
def _(weights):
    mo.vstack([mo.md("## The weights"), mo.hstack(list(weights.values()), justify="start", gap=2, wrap=True)])
    return


if __name__ == "__main__":
    app.run()
