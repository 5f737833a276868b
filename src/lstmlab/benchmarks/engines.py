"""Each engine of `fused` at each kind of work, and where the table in `cells/engines.py` is wrong here."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmlab.benchmarks.cells import DENSE, copy_with_engine, work
from lstmlab.benchmarks.timing import (
    Section,
    TimingRow,
    check_agreement,
    median_interval,
    run_jobs,
    time_rounds,
)
from lstmlab.cells import KINDS, build_cell
from lstmlab.cells.builtin import as_hx
from lstmlab.cells.cpu import find_cpu
from lstmlab.cells.engines import Call, choose_engine
from lstmlab.cells.library import load_kernel

WORKS = ("dense training", "ragged training", "forward", "one step")
TOLERATED = 0.97  # The choice is wrong if its 95 % interval lies wholly below this share of the best speed.
MODULES: dict[str, tuple[Any, Any]] = {
    "lstm": (nn.LSTM, nn.LSTMCell),
    "gru": (nn.GRU, nn.GRUCell),
    "rnn": (nn.RNN, nn.RNNCell),
}
Run = Callable[[Tensor], Tensor]


class Measured(NamedTuple):
    """One cell of the table: what was chosen, and by how much another contender beats that, in a sentence."""

    row: TimingRow
    complaints: list[str]


def measure_engines(kind: str, rounds: int) -> tuple[list[Section], list[str]]:
    """The times of all contenders, and a sentence for each wrong choice.

    Raises RuntimeError if two contenders disagree.
    """
    grid = [(name, bf16) for name in WORKS for bf16 in (False, True)]
    shares = {"dense training": 3, "ragged training": 8, "forward": 1, "one step": 0.1}
    jobs = [
        (
            f"{name}, {'bf16' if bf16 else 'float32'}, {size}",
            shares[name] * work(*size),
            partial(time_engines, kind, name, bf16, size, rounds),
        )
        for name, bf16 in grid
        for size in DENSE
    ]
    measured = iter(run_jobs(jobs))
    sections, complaints = [], []
    for name, bf16 in grid:
        cells = [next(measured) for _ in DENSE]
        title = f"{kind}, {name} in {'bf16 autocast' if bf16 else 'float32'}"
        sections.append(Section(title, "auto", [cell.row for cell in cells]))
        complaints += [f"{title}, {text}" for cell in cells for text in cell.complaints]
    return sections, complaints


def time_engines(kind: str, name: str, bf16: bool, size: tuple[int, int, int, int], rounds: int) -> Measured:
    B, T, I, H = size
    if name == "one step":
        T = 1
    training, ragged = name.endswith("training"), name.startswith("ragged")
    calls = build_contenders(kind, (B, T, I, H), bf16, ragged, training)
    if not bf16:  # which rounds
        check_agreement(calls)
    times = time_rounds(calls, rounds)
    medians = {contender: statistics.median(values) for contender, values in times.items()}

    call = Call("cpu", kind, bf16, ragged, training, B, T, I, H)
    engines = [choose_engine(call, find_cpu(), compiled) for compiled in (load_kernel() is not None, False)]
    complaints = []
    for engine, where in zip(engines, ("", " without a compiler"), strict=True):
        others = [other for other in times if other != engine and not (where and other == "native")]
        best = min(others, key=lambda other: medians[other], default=engine)
        ratios = [theirs / ours for theirs, ours in zip(times[best], times[engine], strict=True)]
        median, low, high = median_interval(ratios)
        if high < TOLERATED and not (where and engine == engines[0]):
            speed = f"{median:.2f} times as fast as {best} (95 %: {low:.2f} to {high:.2f})"
            complaints.append(f"{size}{where}: {engine} is chosen, {speed}")
    label = f"B {B}, T {T}, I {I}, H {H}: {engines[0]}"
    return Measured(TimingRow(label, {"auto": medians[engines[0]], **medians}), complaints)


def build_contenders(
    kind: str, size: tuple[int, int, int, int], bf16: bool, ragged: bool, training: bool
) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """The engines of the kind by name, and PyTorch's modules; each returns its outputs or its gradients."""
    torch.manual_seed(0)
    B, T, I, H = size
    fused: Any = build_cell("fused", I, H, kind=kind)
    lengths = torch.randint(T // 4, T + 1, (B,)) if ragged else None
    padding = None if lengths is None else (torch.arange(T) >= lengths[:, None]).unsqueeze(-1)
    x, d_output = torch.randn(B, T, I, requires_grad=training), torch.randn(B, T, H)
    if padding is not None:
        d_output = d_output.masked_fill(padding, 0)
    state = None if T > 1 else tuple(torch.randn(1, B, H) for _ in KINDS[kind].state._fields)
    calls: dict[str, Callable[[], Sequence[Tensor]]] = {}

    def add(name: str, module: nn.Module, forward: Run) -> None:
        def run() -> Sequence[Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(training):
                output = forward(x).float()
            if not training:
                return [output]
            return torch.autograd.grad(output, [x, *module.parameters()], d_output)

        calls[name] = run

    if load_kernel() is not None:
        native = copy_with_engine(fused, "native")
        add("native", native, lambda x: native(x, state, lengths)[0])
    if kind not in MODULES:
        plain = copy_with_engine(fused, "plain")
        add("plain", plain, lambda x: plain(x, state, lengths)[0])
        return calls
    operator = copy_with_engine(fused, "torch")
    add("torch", operator, lambda x: operator(x, state, lengths)[0])

    layer, one_step = MODULES[kind]
    module = layer(I, H, batch_first=True)
    module.load_state_dict(fused.state_dict())
    name, hx = f"nn.{layer.__name__}", None if state is None else as_hx(state)
    if lengths is None:
        add(name, module, lambda x: module(x, hx)[0])
    else:

        def run_packed(x: Tensor) -> Tensor:
            output, _ = module(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
            return pad_packed_sequence(output, True, total_length=T)[0]

        add(f"{name} packed", module, run_packed)
        add(f"{name} padded", module, lambda x: module(x)[0].masked_fill(padding, 0))
    if state is not None:
        cell = one_step(I, H)
        cell.load_state_dict({key.removesuffix("_l0"): weight for key, weight in fused.state_dict().items()})
        cell_hx = as_hx([s[0] for s in state])

        def run_one_step(x: Tensor) -> Tensor:
            final = cell(x[:, 0], cell_hx)
            return (final if isinstance(final, Tensor) else final[0]).unsqueeze(1)

        add(f"nn.{one_step.__name__}", cell, run_one_step)
    return calls
