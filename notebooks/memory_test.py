import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Memory test: RNN against LSTM")

with app.setup:
    import statistics
    import time
    from typing import Any

    import marimo as mo
    import torch
    from matplotlib.figure import Figure
    from torch import nn
    from torch.nn import functional as F

    from lstmlab.analysis.gradient_flow import count_steps_reached, measure_initial_flows
    from lstmlab.analysis.plots import draw_gradient_flows
    from lstmlab.cells import build_cell
    from lstmlab.data.generated import GeneratedDataset
    from lstmlab.data.sequence_tasks import Copy
    from lstmlab.tables import markdown

    SYMBOLS, LENGTH = 2, 4  # bits to remember
    SEQUENCES = GeneratedDataset(Copy(SYMBOLS, LENGTH))
    CELLS: dict[str, dict[str, Any]] = {
        "RNN": {"kind": "rnn"},
        # σ(4) = 0.98. With a forget bias of 1 the memory would be lost before anything is learnt
        "LSTM": {"kind": "lstm", "forget_bias": 4.0},
    }


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # Memory test: a vanilla RNN against an LSTM

    $$\text{RNN:}\quad h_t = \tanh(W[h_{t-1}, x_t] + b) \qquad\qquad
    \text{LSTM:}\quad c_t = f \odot c_{t-1} + i \odot g, \quad h_t = o \odot \tanh c_t$$

    The RNN rewrites all of its memory at each step. The LSTM adds to it, and keeps the share $f$. Four
    measurements show what that changes.
    """)
    return


@app.cell(hide_code=True)
def _():
    hidden = mo.ui.slider(16, 256, 16, 32, label="units", show_value=True, debounce=True)
    flow_steps = mo.ui.slider(20, 400, 20, 100, label="steps back", show_value=True, debounce=True)
    mo.vstack(
        [
            mo.md(r"""
    ## 1. How far a gradient reaches

    The loss reads $h_T$. How much does it still depend on $h_t$, many steps earlier? By the chain rule

    $$\frac{\partial h_T}{\partial h_t} = \prod_{k=t+1}^{T} \frac{\partial h_k}{\partial h_{k-1}}
    \qquad\text{RNN:}\quad \frac{\partial h_k}{\partial h_{k-1}} = \operatorname{diag}(1 - h_k^2)\, W_h
    \qquad\text{LSTM, along } c\text{:}\quad
    \frac{\partial c_k}{\partial c_{k-1}} \approx \operatorname{diag}(f_k)$$

    A product of factors below 1 vanishes. The dotted lines are $.85^t$ and $.98^t$.

    ```python
    measure_initial_flows(T=100, hidden_size=32)  # untrained cells on noise
    ```
    """),
            mo.hstack([hidden, flow_steps], justify="start", gap=3),
        ]
    )
    return flow_steps, hidden


@app.cell
def _(flow_steps, hidden):
    flows = measure_initial_flows(flow_steps.value, hidden.value)
    _rows = [
        [
            name,
            member,
            f"{norms[-11]:.1e}",
            f"{norms[0]:.1e}",
            describe_reach(count_steps_reached(norms, 0.01), flow_steps.value),
        ]
        for name, flow in flows.items()
        for member, norms in flow.items()
    ]
    _columns = [
        "cell",
        "∂loss/∂",
        "10 steps back",
        f"{flow_steps.value - 1} steps back",
        "falls to 1 % after",
    ]
    mo.vstack([draw_gradient_flows(flows), mo.md(markdown(_columns, _rows))])
    return


@app.function
def describe_reach(steps: int, limit: int) -> str:
    return f"more than {steps} steps" if steps >= limit - 1 else f"{steps + 1} steps"


@app.cell(hide_code=True)
def _():
    delay = mo.ui.slider(10, 200, 10, 40, label="longest delay trained on", show_value=True, debounce=True)
    training = mo.ui.slider(100, 4000, 100, 500, label="training steps", show_value=True, debounce=True)
    units = mo.ui.slider(16, 128, 16, 48, label="units", show_value=True, debounce=True)
    mo.vstack(
        [
            mo.md(f"""
    ## 2. Remembering over a delay

    The copy task: {LENGTH} random bits, then blanks, then a marker, after which the bits have to be recalled.
    Each model is trained on delays from 0 to the longest, and tested at delays up to twice as long. Guessing
    gives 50 %.

    ```
    1 0 1 1 · · · · · · · · · · ? · · · ·   →   1 0 1 1
    ```
    """),
            mo.hstack([delay, training, units], justify="start", gap=3),
        ]
    )
    return delay, training, units


@app.function
def train_copier(options: dict, hidden: int, delay: int, steps: int, bar: Any) -> tuple[nn.Module, nn.Linear]:
    """Train a cell and a projection to recall bits, with Adam and 32 sequences per step."""
    torch.manual_seed(0)
    cell = build_cell("torch", SYMBOLS + 2, hidden, **options)
    projection = nn.Linear(hidden, SYMBOLS)
    parameters = [*cell.parameters(), *projection.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2 if options["kind"] == "lstm" else 2e-3)
    for step in range(steps):
        batch = SEQUENCES[(0, step), 32, (0, delay)]
        logits = recall(cell, projection, batch.tokens)  # (B, K, SYMBOLS)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            bar.update(50)
    return cell, projection


@app.function
def recall(cell: nn.Module, projection: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (B, T) → logits of the last steps (B, K, SYMBOLS)."""
    output, _ = cell(F.one_hot(tokens, SYMBOLS + 2).float())
    return projection(output[:, -LENGTH:])


@app.function
@torch.inference_mode()
def accuracy(cell: nn.Module, projection: nn.Linear, delay: int) -> float:
    """The share of bits that are right in 200 new sequences."""
    batch = SEQUENCES[(1, delay), 200, delay]
    return (recall(cell, projection, batch.tokens).argmax(-1) == batch.targets).float().mean().item()


@app.cell
def _(delay, training, units):
    torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits
    delays = sorted({d * delay.value // 5 for d in range(11)})
    accuracies = {}
    with mo.status.progress_bar(total=len(CELLS) * training.value, remove_on_exit=True) as _bar:
        for _name, _options in CELLS.items():
            _model = train_copier(_options, units.value, delay.value, training.value, _bar)
            accuracies[_name] = [accuracy(*_model, d) for d in delays]
    return accuracies, delays


@app.function
def effective_memory(delays: list[int], shares: list[float]) -> int | None:
    """The largest delay up to which at least 99 % of the bits are correct at every tested delay."""
    reached = None
    for delay, share in zip(delays, shares, strict=True):
        if share < 0.99:
            break
        reached = delay
    return reached


@app.cell
def _(accuracies, delay, delays):
    _figure = Figure((9, 3.6), layout="constrained")
    _ax = _figure.subplots()
    for _name, _shares in accuracies.items():
        _ax.plot(delays, [100 * s for s in _shares], "o-", label=_name)
    _ax.axhline(50, color="grey", linestyle=":")
    _ax.axvspan(0, delay.value, color="#94a3b8", alpha=0.12, label="trained on")
    _ax.set(xlabel="delay in steps", ylabel="correct bits, %", ylim=(40, 102))
    _ax.legend()
    _ax.spines[["top", "right"]].set_visible(False)
    _memories = {name: effective_memory(delays, shares) for name, shares in accuracies.items()}
    _words = [
        f"{name}: **{'none of the tested delays' if memory is None else f'{memory} steps'}**"
        for name, memory in _memories.items()
    ]
    mo.vstack(
        [
            _figure,
            mo.md(
                "## 3. Effective memory\n\nThe largest delay up to which at least 99 % of the bits are "
                f"correct: {', '.join(_words)}. One seed; the tested delays are {delays[1]} steps apart."
            ),
        ]
    )
    return


@app.function
def measure_seconds_per_step(cell: nn.Module, hidden: int, steps: int = 100) -> float:
    """Forward and backward pass of 16 rows, per time step: the median of 5 runs."""
    x = torch.randn(16, steps, hidden)
    runs = []
    for _ in range(6):
        start = time.perf_counter()
        cell(x)[0].sum().backward()
        runs.append((time.perf_counter() - start) / steps)
    return statistics.median(runs[1:])  # the first one warms up


@app.cell
def _(units):
    _H = units.value
    _cells = {name: build_cell("torch", _H, _H, **options) for name, options in CELLS.items()}
    counts = {name: sum(p.numel() for p in cell.parameters()) for name, cell in _cells.items()}
    _times = {name: measure_seconds_per_step(cell, _H) for name, cell in _cells.items()}
    assert counts["LSTM"] == 4 * counts["RNN"]
    _rows = [[name, f"{counts[name]:,}", f"{1e6 * _times[name]:.1f} µs"] for name in CELLS]
    _rows.append(
        ["LSTM / RNN", f"{counts['LSTM'] / counts['RNN']:.2f}", f"{_times['LSTM'] / _times['RNN']:.1f}"]
    )
    _table = markdown(["", "parameters", "time per step, forward and backward, 16 rows"], _rows)
    mo.md(
        rf"""
    ## 4. What it costs

    An LSTM has four sets of weights, one for each of $i, f, g, o$, where the RNN has one:
    $4\,(H I + H^2 + 2H)$ parameters. With $I = H = {_H}$:

    {_table}

    The matrix products grow fourfold with the parameters. In large cells they determine the time, in small
    cells the number of operations does.
    """
    )
    return


if __name__ == "__main__":
    app.run()
