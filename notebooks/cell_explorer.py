import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Cell explorer")

with app.setup:
    import inspect
    import math

    import marimo as mo
    import torch

    from lstmlab.cells import LSTMState, build_cell
    from lstmlab.cells.scratch import LSTM

    GATES = {"f": "forget gate", "i": "input gate", "g": "candidate", "o": "output gate"}
    STEPS = {  # in the order of the drawing: what the step computes → its name
        "f": "1 · forget gate",
        "i": "2 · input gate",
        "g": "3 · candidate",
        "C": "4 · long-term",
        "o": "5 · output gate",
        "h": "6 · short-term",
    }
    COLOURS = {"C": "#0d9488", "h": "#4f46e5", "x": "#64748b"} | {
        "f": "#e11d48",
        "i": "#16a34a",
        "g": "#9333ea",
        "o": "#d97706",
    }
    PRESETS = {  # W_h, W_x, b of each gate
        "a bit of everything": {"f": (0.5, 0.5, 1), "i": (1, 1, 0), "g": (0.5, 1.5, 0), "o": (1, 0.5, 0.5)},
        "keep the old memory": {"f": (0, 0, 6), "i": (0, 0, -6), "g": (0, 1, 0), "o": (0, 0, 0)},
        "write only when x is large": {"f": (0, 0, 6), "i": (0, 6, -6), "g": (0, 0, 2), "o": (0, 0, 0)},
        "forget when x is negative": {"f": (0, 6, 3), "i": (0, 0, -6), "g": (0, 0, 0), "o": (0, 0, 6)},
        "a vanilla RNN (f = 0, i = o = 1)": {
            "f": (0, 0, -8),
            "i": (0, 0, 8),
            "g": (0.5, 1, 0),
            "o": (0, 0, 8),
        },
    }


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # One LSTM cell, one step

    The cell has a **long-term memory** $C$, along the top of the drawing, and a **short-term memory** $h$,
    along the bottom. At each time step it reads an input $x$, changes both and hands them on. Here each
    is a single number, so that every product and sum can be followed by hand.

    Click a step in the drawing to see its arithmetic. Move any slider and watch what changes. The larger the
    number on a line of the long-term memory, the thicker the line.
    """)
    return


@app.function
def compute_step(x: float, h: float, C: float, W: dict[str, tuple[float, float, float]]) -> dict[str, float]:
    """Every number of one step; a_f is the input of gate f."""
    v = {"x": x, "h0": h, "C0": C}
    for gate, (W_h, W_x, b) in W.items():
        a = W_h * h + W_x * x + b
        v |= {f"a_{gate}": a, gate: math.tanh(a) if gate == "g" else 1 / (1 + math.exp(-a))}
    v["fC"], v["ig"] = v["f"] * C, v["i"] * v["g"]
    v["C"] = v["fC"] + v["ig"]
    v["tanh"] = math.tanh(v["C"])
    v["h"] = v["o"] * v["tanh"]
    return v


@app.function
def format_number(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}".replace("-", "−")


@app.function
def draw_cell(v: dict[str, float], step: str) -> str:
    """The cell as SVG, 1000 × 600: everything up to `step` in colour, the rest faint."""
    names = list(STEPS)
    at = dict(zip("figo", (262, 422, 578, 738), strict=True))

    def part(of: str, body: str) -> str:
        return f'<g opacity="{1 if names.index(of) <= names.index(step) else 0.14}">{body}</g>'

    def line(path: str, colour: str, of: str | None = None, width: float = 3, tip: bool = True) -> str:
        """A line that belongs to a step; data flow along the lines of the chosen step."""
        end = f' marker-end="url(#tip-{colour[1:]})"' if tip else ""
        drawn = f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:.1f}"{end}/>'
        flow = f'<path class="flow" d="{path}" style="stroke-width:{max(1.5, width / 3):.1f}px"/>'
        return drawn + (flow if of == step else "")

    def pill(x: float, y: float, key: str, colour: str, label: str = "", places: int = 3) -> str:
        """A number on a line, with its name above."""
        name = f'<text class="name" x="{x}" y="{y - 21}" fill="{colour}">{label}</text>' if label else ""
        return (
            f'<rect x="{x - 34}" y="{y - 14}" width="68" height="28" rx="14" fill="white" stroke="{colour}"'
            f' stroke-width="1.5"/><text class="value" data-value="{key}" x="{x}" y="{y + 5}">'
            f"{format_number(v[key], places)}</text>{name}"
        )

    def node(x: float, y: float, sign: str, colour: str) -> str:
        return (
            f'<circle cx="{x}" cy="{y}" r="17" fill="white" stroke="{colour}" stroke-width="2.5"/>'
            f'<text class="sign" x="{x}" y="{y + 8}">{sign}</text>'
        )

    def curve(x: float, y: float, function: str, a: float, colour: str) -> str:
        """σ or tanh from −6 to 6, 56 wide and 40 high, with the current point on it."""
        low = -1 if function == "tanh" else 0

        def point(a: float) -> str:
            share = ((math.tanh(a) if function == "tanh" else 1 / (1 + math.exp(-a))) - low) / (1 - low)
            return f"{x + 28 * max(-6, min(6, a)) / 6:.1f},{y + 20 - 40 * share:.1f}"

        points = " ".join(point(k / 4) for k in range(-24, 25))
        px, py = point(a).split(",")
        return (
            f'<path d="M{x - 28},{y + 20} h56 M{x},{y - 20} v40" stroke="#cbd5e1" stroke-width="1"/>'
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{px}" cy="{py}" r="4.5" fill="{colour}" stroke="white" stroke-width="1.5"/>'
        )

    def gate(name: str) -> str:
        x, colour, value = at[name], COLOURS[name], v[name]
        height = 110 * abs(value)
        bottom = 385 if name != "g" else 330 if value > 0 else 330 + height / 2
        if name == "g":
            height /= 2
        chosen = 3 if name == step else 1.5
        return part(
            name,
            line(f"M{x},500 V388", COLOURS["x"], name)
            + f'<rect x="{x - 68}" y="275" width="136" height="110" rx="14" fill="white"/>'
            f'<rect x="{x - 68}" y="{bottom - height:.1f}" width="136" height="{height:.1f}" rx="0"'
            f' fill="{colour}" opacity="0.13" clip-path="url(#box-{name})"/>'
            f'<rect x="{x - 68}" y="275" width="136" height="110" rx="14" fill="none" stroke="{colour}"'
            f' stroke-width="{chosen}"/>'
            + curve(x - 32, 352, "tanh" if name == "g" else "σ", v[f"a_{name}"], colour)
            + f'<text class="name" x="{x + 34}" y="342" fill="{colour}">{name}</text>'
            f'<text class="result" data-value="{name}" x="{x + 34}" y="366" fill="{colour}">'
            f"{format_number(value)}</text>" + pill(x, 440, f"a_{name}", COLOURS["x"], "", 2),
        )

    def thick(key: str) -> float:
        return 3 + 3.5 * min(3, abs(v[key]))

    C, h, dark = COLOURS["C"], COLOURS["h"], COLOURS["x"]
    tips = "".join(
        f'<marker id="tip-{c[1:]}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="13" markerHeight="13"'
        f' markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{c}"/></marker>'
        for c in COLOURS.values()
    )
    clips = "".join(
        f'<clipPath id="box-{n}"><rect x="{x - 68}" y="275" width="136" height="110" rx="14"/></clipPath>'
        for n, x in at.items()
    )
    f, i, g, o = (at[name] for name in "figo")
    body = [
        # What comes in
        f'<text class="side" x="24" y="36" fill="{C}">long-term memory</text>',
        f'<text class="side" x="24" y="536" fill="{h}">short-term memory</text>',
        line(f"M70,80 H{f - 20}", C, "f" if step == "f" else "C", thick("C0"), tip=False),
        line("M70,500 H220", h, step if step in GATES else None, 3, tip=False),
        line("M270,566 H232 Q220,566 220,554 V500", dark, step if step in GATES else None, 3, tip=False),
        line(f"M220,500 H{o}", dark, step if step in GATES else None, 3, tip=False),
        *(gate(name) for name in "figo"),
        # The long-term memory
        part("C", line(f"M{f},275 V100", COLOURS["f"], "C")),
        part("C", line(f"M{f + 18},80 H{g - 20}", C, "C", thick("fC"), tip=False)),
        part("C", line(f"M{i},275 V206 Q{i},194 {i + 12},194 H{g - 20}", COLOURS["i"], "C")),
        part(
            "C",
            line(f"M{g},275 V214", COLOURS["g"], "C") + line(f"M{g},176 V100", C, "C", thick("ig"), False),
        ),
        part("C", node(f, 80, "×", COLOURS["f"]) + node(g, 194, "×", COLOURS["i"])),
        part("C", pill((f + g) / 2, 80, "fC", C, "f · C") + pill(g, 139, "ig", C)),
        part("C", f'<text class="name" x="{g + 58}" y="144" fill="{C}">i · g</text>'),
        part("C", line(f"M{g + 18},80 H945", C, "C", thick("C"), tip=False) + node(g, 80, "+", C)),
        # The short-term memory
        part("h", line("M872,80 V276", C, "h", 3) + line(f"M{o + 68},312 H852", COLOURS["o"], "h")),
        part("h", line("M872,324 V484 Q872,500 884,500 H945", h, "h", 3, tip=False)),
        part(
            "h",
            f'<rect x="828" y="134" width="88" height="62" rx="14" fill="white" stroke="{h}"/>'
            + curve(872, 165, "tanh", v["C"], h)
            + pill(872, 236, "tanh", h)
            + f'<text class="name" x="946" y="241" fill="{h}">tanh C</text>'
            + node(872, 312, "×", COLOURS["o"]),
        ),
        # What goes in and out
        pill(62, 80, "C0", C, "C before", 2),
        pill(62, 500, "h0", h, "h before", 2),
        pill(276, 566, "x", dark, "", 2),
        f'<text class="name" x="326" y="571" fill="{dark}">x</text>',
        f'<text class="name" x="{(i + g) / 2}" y="492" fill="{dark}">[h, x]</text>',
        part("C", pill(946, 80, "C", C, "C after")),
        part("h", pill(946, 500, "h", h, "h after")),
    ]
    return (
        '<svg viewBox="0 0 1000 600" width="1000" height="600" xmlns="http://www.w3.org/2000/svg" role="img"'
        ' aria-label="One LSTM cell and the numbers in it" class="cell"><style>'
        ".cell{background:#fbfbf9;border:1px solid #e2e8f0;border-radius:16px;"
        "font-family:system-ui,sans-serif}"
        ".cell text{text-anchor:middle;fill-opacity:1}"
        ".cell .value{font-size:14px;fill:#0f172a;font-variant-numeric:tabular-nums}"
        ".cell .result{font-size:18px;font-weight:600;font-variant-numeric:tabular-nums}"
        ".cell .name{font-size:14px;font-style:italic}.cell .sign{font-size:22px;fill:#0f172a}"
        ".cell .side{font-size:15px;font-weight:600;text-anchor:start}"
        ".cell .flow{fill:none;stroke:white;stroke-dasharray:5 13;stroke-linecap:round;"
        "animation:cell-flow .9s linear infinite}@keyframes cell-flow{to{stroke-dashoffset:-18}}"
        "@media (prefers-reduced-motion:reduce){.cell .flow{animation:none}}</style>"
        f"<defs>{tips}{clips}</defs>{''.join(body)}</svg>"
    )


@app.function
def explain_step(step: str, v: dict[str, float], W: dict[str, tuple[float, float, float]]) -> str:
    """The equation of a step, the same with numbers, and its line in the scratch cell, as Markdown."""

    def n(value: float, places: int = 3) -> str:
        text = f"{value:.{places}f}"
        return f"({text})" if value < 0 else text

    x, h, C = n(v["x"], 2), n(v["h0"], 2), n(v["C0"], 2)
    if step in GATES:
        W_h, W_x, b = (n(w, 2) for w in W[step])
        squash = r"\tanh" if step == "g" else r"\sigma"
        rows = [
            rf"{step} &= {squash}(W_{{{step}h}}\,h + W_{{{step}x}}\,x + b_{step})",
            rf"&= {squash}({W_h}\cdot{h} + {W_x}\cdot{x} + {b})",
            rf"&= {squash}({v[f'a_{step}']:.3f}) = \mathbf{{{v[step]:.3f}}}",
        ]
    elif step == "C":
        rows = [
            r"C' &= f\,C + i\,g",
            rf"&= {n(v['f'])}\cdot{C} + {n(v['i'])}\cdot{n(v['g'])}",
            rf"&= {n(v['fC'])} + {n(v['ig'])} = \mathbf{{{v['C']:.3f}}}",
        ]
    else:
        rows = [
            r"h' &= o\,\tanh C'",
            rf"&= {n(v['o'])}\cdot\tanh({v['C']:.3f})",
            rf"&= {n(v['o'])}\cdot{n(v['tanh'])} = \mathbf{{{v['h']:.3f}}}",
        ]
    source = inspect.getsource(LSTM.__call__).splitlines()
    [code] = [s.strip() for s in source if s.strip().startswith(f"{step.lower()} = ")]
    meaning = {
        "f": "How much of the long-term memory stays: 0 is nothing, 1 is all of it.",
        "i": "How much of the candidate is written.",
        "g": "What could be written: a number between −1 and 1.",
        "C": "The long-term memory keeps the share f of what it held, and i · g is added.",
        "o": "How much of the long-term memory is shown.",
        "h": "What the cell shows of its long-term memory. It is also the cell's output.",
    }
    equation = r"\begin{aligned}" + r" \\ ".join(rows) + r"\end{aligned}"
    return (
        f"### {STEPS[step].replace('term', 'term memory')}\n\n{meaning[step]}\n\n$${equation}$$\n\n"
        f"The line of the scratch cell, in `lstmlab/cells/scratch.py`:\n\n```python\n{code}\n```"
    )


@app.cell
def _():
    get_step, set_step = mo.state("h")
    get_memory, set_memory = mo.state((0.5, 1.0))
    preset = mo.ui.dropdown(PRESETS, value="a bit of everything", label="weights:")
    return get_memory, get_step, preset, set_memory, set_step


@app.cell
def _(get_memory):
    h_before, C_before = get_memory()
    inputs = mo.ui.dictionary(
        {
            "x": mo.ui.slider(-2, 2, 0.1, 1.0, label="input $x$", show_value=True),
            "h": mo.ui.slider(-1, 1, 0.01, h_before, label="short-term memory $h$", show_value=True),
            "C": mo.ui.slider(-6, 6, 0.01, C_before, label="long-term memory $C$", show_value=True),
        }
    )
    return (inputs,)


@app.cell
def _(preset):
    weights = mo.ui.dictionary(
        {
            gate: mo.ui.array(
                [
                    mo.ui.slider(-8, 8, 0.1, value, label=f"${label}$", show_value=True)
                    for label, value in zip(
                        (f"W_{{{gate}h}}", f"W_{{{gate}x}}", f"b_{gate}"), preset.value[gate], strict=True
                    )
                ]
            )
            for gate in GATES
        }
    )
    return (weights,)


@app.cell
def _(inputs, weights):
    W = {gate: tuple(values) for gate, values in weights.value.items()}
    v = compute_step(inputs.value["x"], inputs.value["h"], inputs.value["C"], W)
    return W, v


@app.cell
def _(set_step):
    steps = mo.ui.array(
        [mo.ui.button(label=name, on_change=lambda _, s=step: set_step(s)) for step, name in STEPS.items()]
    )
    return (steps,)


@app.cell
def _(set_memory, v):
    again = mo.ui.button(
        label="next time step: feed h and C back",
        on_change=lambda _: set_memory((round(v["h"], 2), max(-6.0, min(6.0, round(v["C"], 2))))),
    )
    return (again,)


@app.cell
def _(again, inputs, preset):
    mo.hstack([*inputs.values(), again], wrap=True)
    return


@app.cell
def _(get_step, steps, v):
    places = [(201, 282), (361, 282), (517, 282), (604, 96), (677, 282), (886, 346)]
    _buttons = "".join(
        f'<div style="position:absolute;left:{x}px;top:{y}px;transform:scale(.9);transform-origin:0 0;'
        f'white-space:nowrap">{button}</div>'
        for (x, y), button in zip(places, steps, strict=True)
    )
    mo.Html(
        f'<div style="overflow-x:auto"><div style="position:relative;width:1000px">'
        f"{draw_cell(v, get_step())}{_buttons}</div></div>"
    )
    return


@app.cell
def _(W, get_step, v):
    mo.md(explain_step(get_step(), v, W))
    return


@app.cell
def _(preset, weights):
    mo.vstack(
        [
            mo.md("## The weights"),
            preset,
            mo.hstack(
                [mo.vstack([mo.md(f"**{name}** ${gate}$"), *weights[gate]]) for gate, name in GATES.items()],
                wrap=True,
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(W, v):
    cell = build_cell("scratch", 1, 1).double()
    with torch.no_grad():
        for k, gate_name in enumerate("ifgo"):  # the gate order of nn.LSTM
            W_h, W_x, b = W[gate_name]
            cell.weight_hh_l0[k], cell.weight_ih_l0[k], cell.bias_ih_l0[k] = W_h, W_x, b
            cell.bias_hh_l0[k] = 0  # nn.LSTM stores two biases and adds them
        x, h, c = (torch.full((1, 1, 1), v[name], dtype=torch.float64) for name in ("x", "h0", "C0"))
        _, _, found = cell.trace(x, LSTMState(h, c))
    difference = max(abs(found[name.lower()].item() - v[name]) for name in STEPS)
    assert difference < 1e-12, difference
    _rows = "\n".join(f"| ${name}$ | {v[name]:.12f} | {found[name.lower()].item():.12f} |" for name in STEPS)
    mo.md(
        f"## Checked\n\nThe scratch cell of `lstmlab`, with these weights, gives the same numbers. The "
        f"largest difference is {difference:.1g}.\n\n"
        f'| | by hand, above | `build_cell("scratch", 1, 1)` |\n|---|---|---|\n'
        f"{_rows}"
    )
    return


if __name__ == "__main__":
    app.run()
