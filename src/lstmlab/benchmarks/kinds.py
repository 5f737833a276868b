"""The kinds of 2020 and later against nn.GRU, the LSTM of `fused` and a public package; all kinds with equal
parameters."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lstmlab.benchmarks.cells import build_contender, copy_with_engine, measure_peaks, run_cell
from lstmlab.benchmarks.timing import Section, TimingRow, check_agreement, run_jobs, time_in_turn
from lstmlab.cells import build_cell

LINEAR = (32, 512, 256, 256)
STEPWISE = [(32, 100, 64, 128), (64, 128, 256, 256)]
# Units with which the models of sweep=kinds have as many parameters as that of an LSTM of 128
EQUAL = {"lstm": 128, "peephole": 128, "layernorm": 128, "rnn": 268, "gru": 152, "mogrifier": 108}
EQUAL |= {"slstm": 204, "minlstm": 416, "mingru": 552}


def measure_kinds(rounds: int) -> list[Section]:
    """The linear kinds and nn.GRU in one run, the others and the LSTM in another."""
    jobs: list[tuple[str, float, Callable[[], TimingRow]]] = [
        (f"linear kinds {LINEAR}", 2.0, partial(time_linear_kinds, *LINEAR, rounds))
    ]
    jobs += [
        (f"stepwise kinds {size}", 1.0, partial(time_stepwise_kinds, *size, rounds)) for size in STEPWISE
    ]
    jobs += [
        ("equal parameters, training", 1.0, partial(time_equal_kinds, 16, 64, True, rounds)),
        ("equal parameters, one step", 0.5, partial(time_equal_kinds, 1, 1, False, rounds)),
    ]
    if sys.platform == "linux":
        jobs.append(("equal parameters, memory", 1.0, measure_equal_memory))
    linear, *others = run_jobs(jobs)
    stepwise, equal = others[: len(STEPWISE)], others[len(STEPWISE) :]
    sections = []
    for kind, package in (("mingru", "minGRU-pytorch"), ("minlstm", "minGRU-pytorch, minLSTM")):
        names = [name for name in (kind, "nn.GRU", package) if name in linear.medians]
        row = TimingRow(linear.size, {name: linear.medians[name] for name in names})
        sections.append(Section(f"Training of {kind}", kind, [row]))
    for kind in ("slstm", "mogrifier"):
        rows = [TimingRow(row.size, {name: row.medians[name] for name in (kind, "lstm")}) for row in stepwise]
        sections.append(Section(f"Training of {kind}", kind, rows))
    titles = ("Training with equal parameters", "One step with equal parameters, no gradient", "Peak memory")
    for title, row, unit in zip(titles, equal, ("ms", "ms", "MB"), strict=False):
        sections.append(Section(title, "lstm", [row], unit))
    return sections


def time_equal_kinds(B: int, T: int, training: bool, rounds: int) -> TimingRow:
    torch.manual_seed(0)
    x = torch.randn(B, T, 64, requires_grad=training)
    calls = {}
    for kind, H in EQUAL.items():
        cell = build_cell("fused", 64, H, kind=kind)
        state = cell(x)[1]
        forward = partial(run_cell, cell) if training else partial(step_cell, cell, state)
        calls[kind] = build_contender(forward, cell, x, [torch.randn(B, T, H)], training)
    return TimingRow(f"B {B}, T {T}, I 64", time_in_turn(calls, rounds))


def step_cell(cell: nn.Module, state: Sequence[Tensor], x: Tensor) -> Sequence[Tensor]:
    return cell(x, state)[:1]


def measure_equal_memory() -> TimingRow:
    """Beside the gates and states of each step, whatever else the kernel and PyTorch take."""
    B, T, I = 64, 128, 64
    jobs = [((B, T, I, H), {"backend": "fused", "kind": kind}) for kind, H in EQUAL.items()]
    return TimingRow(f"B {B}, T {T}, I {I}", dict(zip(EQUAL, measure_peaks(jobs), strict=True)))


def time_linear_kinds(B: int, T: int, I: int, H: int, rounds: int) -> TimingRow:
    """Beside nn.GRU, minGRU-pytorch if it is installed; it has as many inputs as units."""
    cells: dict[str, Any] = {kind: build_cell("fused", I, H, kind=kind) for kind in ("mingru", "minlstm")}
    cells["nn.GRU"] = nn.GRU(I, H, batch_first=True)
    run = {name: partial(run_cell, cell) for name, cell in cells.items()}
    try:
        from minGRU_pytorch.minGRU import minGRU
        from minGRU_pytorch.minLSTM import minLSTM
    except ModuleNotFoundError:
        pass
    else:
        for name, module in (("minGRU-pytorch", minGRU), ("minGRU-pytorch, minLSTM", minLSTM)):
            cells[name] = module(I)
            run[name] = partial(call_alone, cells[name])
    return time_training((B, T, I, H), cells, run, rounds)


def call_alone(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return [module(x)]


def time_stepwise_kinds(B: int, T: int, I: int, H: int, rounds: int) -> TimingRow:
    """slstm has its four heads, mogrifier its four rounds."""
    kinds = ("lstm", "slstm", "mogrifier")
    cells: dict[str, Any] = {kind: build_cell("fused", I, H, kind=kind) for kind in kinds}
    run = {name: partial(run_cell, cell) for name, cell in cells.items()}
    return time_training((B, T, I, H), cells, run, rounds)


def time_training(
    size: tuple[int, int, int, int], cells: dict[str, Any], run: dict[str, Any], rounds: int
) -> TimingRow:
    B, T, I, H = size
    torch.manual_seed(0)
    x, d_output = torch.randn(B, T, I, requires_grad=True), torch.randn(B, T, H)
    calls = {name: build_contender(run[name], cell, x, [d_output], True) for name, cell in cells.items()}
    for name, cell in cells.items():
        if getattr(cell, "backend", None) == "fused":
            # Outputs alone: rounding may move a candidate of minGRU over 0, where its slope jumps.
            forced = copy_with_engine(cell, "plain")
            check_agreement({"plain": partial(run_cell, forced, x), name: partial(run_cell, cell, x)})
    return TimingRow(f"B {B}, T {T}, I {I}, H {H}", time_in_turn(calls, rounds))
