import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Shapes and backends")

with app.setup:
    import statistics
    import timeit
    from typing import Any

    import marimo as mo
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from lstmlab.cells import KINDS, build_cell
    from lstmlab.tables import markdown


@app.cell(hide_code=True)
def _():
    B = mo.ui.slider(1, 8, 1, 3, label="$B$ rows", show_value=True)
    T = mo.ui.slider(1, 12, 1, 6, label="$T$ steps", show_value=True)
    I = mo.ui.slider(1, 8, 1, 4, label="$I$ inputs", show_value=True)
    H = mo.ui.slider(1, 8, 1, 5, label="$H$ units", show_value=True)
    L = mo.ui.slider(1, 4, 1, 2, label="$L$ layers", show_value=True)
    both = mo.ui.switch(True, label="both directions")
    mo.vstack(
        [
            mo.md("""
    # Shapes and backends

    ## 1. What comes back

    ```python
    output, (h_n, c_n) = build_cell("torch", I, H, num_layers=L, bidirectional=D == 2)(x)
    ```

    `output` holds the **last layer** at **every step**. `h_n` and `c_n` hold **every layer** after its
    **last step**; going backwards, the last step is the first of the text. Nothing returns the cell states
    in between.
    """),
            mo.hstack([B, T, I, H, L, both], justify="start", gap=2, wrap=True),
        ]
    )
    return B, H, I, L, T, both


@app.cell
def _(B, H, I, L, T, both):
    torch.manual_seed(0)
    D = 2 if both.value else 1
    sizes = {"num_layers": L.value, "bidirectional": both.value}
    x = torch.randn(B.value, T.value, I.value)
    cell = build_cell("torch", I.value, H.value, **sizes)
    output, (h_n, c_n) = cell(x)
    _rows = [
        [f"`{name}`", letters, str(tuple(tensor.shape))]
        for name, letters, tensor in (
            ("x", "$(B, T, I)$", x),
            ("output", r"$(B, T, D \cdot H)$", output),
            ("h_n", r"$(L \cdot D, B, H)$", h_n),
            ("c_n", r"$(L \cdot D, B, H)$", c_n),
        )
    ]
    mo.md(markdown(["", "shape", "here"], _rows))
    return D, cell, h_n, output, sizes, x


@app.function
def draw_stack(L: int, D: int, T: int) -> str:
    """The stack as SVG: one box per layer, direction and step, and where output, h_n and c_n are read."""
    wide, high, left, bottom = 74, 46, 130, 40 + 56 * L * D
    parts = []
    for layer in range(L):
        for direction in range(D):
            y = bottom - 56 * (layer * D + direction)
            colour = "#0d9488" if direction == 0 else "#9333ea"
            for t in range(T):
                x = left + wide * t
                top = layer == L - 1
                final = t == (T - 1 if direction == 0 else 0)
                fill = "#fde68a" if top and final else "#fef3c7" if top else "#bae6fd" if final else "white"
                parts.append(
                    f'<rect x="{x}" y="{y - high + 8}" width="{wide - 16}" height="{high - 12}" rx="8"'
                    f' fill="{fill}" stroke="{"#0369a1" if final else "#94a3b8"}"'
                    f' stroke-width="{2.5 if final else 1}"/>'
                )
                if t < T - 1:
                    a, b = x + wide - 16, x + wide - 3
                    if direction:
                        a, b = x + wide, x + wide - 13
                    parts.append(
                        f'<path d="M{a},{y - 15} H{b}" stroke="{colour}" stroke-width="2"'
                        ' marker-end="url(#to)"/>'
                    )
            index = layer * D + direction
            name = f"layer {layer}" + (" ←" if direction else " →" if D == 2 else "")
            parts.append(f'<text x="14" y="{y - 11}" fill="{colour}">{name}</text>')
            x = left + wide * T + 6
            parts.append(f'<text x="{x}" y="{y - 11}" fill="#0369a1">h_n[{index}], c_n[{index}]</text>')
    for t in range(T):
        x = left + wide * t + wide / 2 - 8
        parts.append(f'<text x="{x}" y="{bottom + 26}" text-anchor="middle" fill="#64748b">x[:, {t}]</text>')
    width, height = left + wide * T + 150, bottom + 46
    return (
        f'<div style="overflow-x:auto"><svg width="{width}" height="{height}" style="background:#fbfbf9;'
        'border:1px solid #e2e8f0;border-radius:16px;font:13px system-ui,sans-serif"><defs><marker id="to"'
        ' viewBox="0 0 10 10" refX="5" refY="5" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="#64748b"/></marker></defs>{"".join(parts)}</svg></div>'
    )


@app.cell
def _(D, L, T):
    mo.vstack(
        [
            mo.Html(draw_stack(L.value, D, T.value)),
            mo.md(
                "Yellow: what `output` holds. A blue border: what `h_n` and `c_n` hold. The two directions "
                "of a layer stand next to each other: index = layer · D + direction."
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(D, H, h_n, output):
    _forward = torch.equal(output[:, -1, : H.value], h_n[-D])
    assert _forward
    _lines = "output[:, -1, :H] == h_n[-D]     # forwards: the last step      True"
    if D == 2:
        assert torch.equal(output[:, 0, H.value :], h_n[-1])
        _lines += "\noutput[:, 0, H:]  == h_n[-1]     # backwards: the first step     True"
    mo.md(
        f"Checked here:\n\n```python\n{_lines}\n```\n\nSo `output[:, -1]` of a bidirectional stack is "
        "**not** the final state: of the backward direction it has seen one step. Take `h_n`."
    )
    return


@app.cell(hide_code=True)
def _(B, H, I, T, cell, sizes, x):
    lengths = torch.tensor([max(1, T.value - 2 * row) for row in range(B.value)])
    _output, _ = cell(x, lengths=lengths)
    _lstm = nn.LSTM(I.value, H.value, batch_first=True, **sizes)
    _lstm.load_state_dict(cell.state_dict())
    _packed, _ = _lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    _unpacked, _ = pad_packed_sequence(_packed, batch_first=True, total_length=T.value)
    _apart = max(
        (cell(x[row : row + 1, :n])[0] - _output[row : row + 1, :n]).abs().max().item()
        for row, n in enumerate(lengths.tolist())
    )
    assert torch.allclose(_output, _unpacked, atol=1e-6)
    assert _apart < 1e-5
    mo.md(f"""
    ## 2. Rows of different length

    Rows of a batch are padded to the longest. The padding must not change anything: PyTorch packs the rows,
    `lstmlab` takes their lengths.

    ```python
    output, state = cell(x, lengths=lengths)  # lengths = {lengths.tolist()}, T = {T.value}

    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, state = nn.LSTM(...)(packed)
    output, _ = pad_packed_sequence(output, batch_first=True, total_length=T)
    ```

    Both give the same result, and so does each row by itself, without its padding (largest difference
    {_apart:.0e}). Past the length of a row `output` is zero, and its state stays as it was at the end of the
    row.
    """)
    return


@app.cell(hide_code=True)
def _():
    steps = mo.ui.slider(10, 200, 10, 50, label="$T$", show_value=True, debounce=True)
    width = mo.ui.slider(16, 256, 16, 64, label="$I = H$", show_value=True, debounce=True)
    _rows = [
        [f"`{name}`", ", ".join(kind.state._fields), ", ".join(kind.gates), ", ".join(kind.backends)]
        for name, kind in KINDS.items()
    ]
    mo.vstack(
        [
            mo.md(
                "## 3. Many kinds, three backends, one set of numbers\n\n"
                + markdown(["kind", "its state", "its gates", "its backends"], _rows)
                + "\n\nA state is a named tuple of hidden state `h`, cell state `c`, normaliser `n` and "
                "stabiliser `m`, as far as the kind has them, each $(L \\cdot D, B, H)$. All backends of a "
                "kind have the same weights, so each loads those of the others. "
                "Here: an LSTM of two layers in float64, forward and backward. The time is for both passes "
                "in float32 with 16 rows, the median of 5 runs."
            ),
            mo.hstack([steps, width], justify="start", gap=3),
        ]
    )
    return steps, width


@app.cell
def _(steps, width):
    torch.manual_seed(0)
    _x = torch.randn(16, steps.value, width.value)
    _cells: dict[str, Any] = {
        name: build_cell(name, width.value, width.value, num_layers=2) for name in KINDS["lstm"].backends
    }
    _rows, _true = [], []
    for _backend, _cell in _cells.items():
        _cell.load_state_dict(_cells["scratch"].state_dict())
        _seconds = timeit.repeat(lambda cell=_cell: cell(_x)[0].sum().backward(), number=1, repeat=6)
        _output = _cell.double()(_x.double())[0]
        _found = [_output, *torch.autograd.grad(_output.sum(), list(_cell.parameters()))]
        _true = _true or _found  # of scratch, which comes first
        _off, *_grads_off = (
            ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(_found, _true, strict=True)
        )
        assert max(_off, *_grads_off) < 1e-10, _backend
        _ms = 1000 * statistics.median(_seconds[1:])  # the first one warms up
        _rows.append([f"`{_backend}`", f"{_off:.0e}", f"{max(_grads_off):.0e}", f"{_ms:.1f} ms"])
    mo.md(markdown(["backend", "largest difference of the output", "of a gradient", "time"], _rows))
    return


@app.cell(hide_code=True)
def _():
    QUESTIONS = [  # question, answers, index of the right one, explanation
        (
            "What is `output[:, -1]` of a stack of three layers, one direction?",
            ["h of the last layer after the last step", "h of every layer", "c of the last layer"],
            0,
            "`output` holds the last layer only, at every step. The other layers are in `h_n`.",
        ),
        (
            "A bidirectional LSTM, 2 layers of 64 units, reads 7 rows of 20 steps. The shape of `h_n`?",
            ["(7, 20, 128)", "(4, 7, 64)", "(2, 7, 128)"],
            1,
            "(L·D, B, H) = (2·2, 7, 64). The time is gone: it is the state after the last step.",
        ),
        (
            "What should a classifier of whole texts read from a bidirectional LSTM?",
            ["output[:, -1]", "output[:, 0]", "h_n[-2] and h_n[-1]"],
            2,
            "At the last step the backward direction has read one token. `h_n` is where each one ended.",
        ),
        (
            "How many times as many parameters as a vanilla RNN does an LSTM of the same size have?",
            ["twice", "four times", "eight times"],
            1,
            "One set of weights and biases for each of i, f, g and o.",
        ),
        (
            "Why are rows packed, or their lengths given?",
            [
                "so that padding changes neither output nor state",
                "so that all rows get the same length",
                "so that less memory is needed for the weights",
            ],
            0,
            "Otherwise the state keeps changing in the padding, and the backward direction starts in it.",
        ),
        (
            "The forget gate is 0.98 at every step. What is left of a memory after 34 steps?",
            ["nearly all", "about half", "next to nothing"],
            1,
            r"$0.98^{34} \approx 0.50$: the half-life is $\ln 2 / |\ln 0.98| \approx 34$ steps.",
        ),
        (
            "A checkpoint was trained with `cell=torch`. How do you look at its gates?",
            [
                "train it again with cell=scratch",
                "load it into the scratch cell: the parameters are the same",
                "not at all: nn.LSTM hides them",
            ],
            1,
            'All backends store the same parameters. `load_model(ckpt, "scratch")` and `trace` do it.',
        ),
        (
            "What flows back along the cell state from $c_t$ to $c_{t-1}$?",
            ["the gradient times the recurrent weights", "the gradient times the forget gate", "nothing"],
            1,
            r"$c_t = f_t \odot c_{t-1} + i_t \odot g_t$. With $f$ near 1 the gradient stays.",
        ),
    ]
    answers = mo.ui.array([mo.ui.radio(choices) for _, choices, _, _ in QUESTIONS])
    return QUESTIONS, answers


@app.cell
def _(QUESTIONS, answers):
    _parts = [mo.md("## 4. What do you know now?")]
    _right = 0
    for _number, (_question, _choices, _key, _why) in enumerate(QUESTIONS):
        _parts += [mo.md(f"**{_number + 1}.** {_question}"), answers[_number]]
        _given = answers.value[_number]
        if _given is not None:
            _good = _given == _choices[_key]
            _right += _good
            _word = "Right." if _good else f"No: {_choices[_key]}."
            _parts.append(mo.callout(mo.md(f"{_word} {_why}"), "success" if _good else "warn"))
    _answered = sum(a is not None for a in answers.value)
    _parts.append(mo.md(f"**{_right} right of {_answered} answered; there are {len(QUESTIONS)}.**"))
    mo.vstack(_parts)
    return


if __name__ == "__main__":
    app.run()
