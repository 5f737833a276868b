"""From the equations to a fast cell, one rung at a time: what each rung is worth in training."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

from lstmlab.benchmarks.cells import build_contender, copy_with_engine, work
from lstmlab.benchmarks.timing import Section, TimingRow, check_agreement, run_jobs, time_in_turn
from lstmlab.cells import build_cell

SIZES = [(32, 100, 64, 128), (64, 128, 64, 256)]


def run_four_products(cell: Any, x: Tensor) -> Sequence[Tensor]:
    """x (B, T, I) → [(B, T, H)]: the product W·[h, x] of one gate after the other."""
    W_i, W_f, W_g, W_o = torch.cat([cell.weight_hh_l0, cell.weight_ih_l0], 1).chunk(4)
    b_i, b_f, b_g, b_o = (cell.bias_ih_l0 + cell.bias_hh_l0).chunk(4)
    h = c = x.new_zeros(len(x), cell.hidden_size)
    outputs = []
    for x_t in x.unbind(1):
        hx = torch.cat([h, x_t], 1)
        i, f = sigmoid(linear(hx, W_i, b_i)), sigmoid(linear(hx, W_f, b_f))
        g, o = tanh(linear(hx, W_g, b_g)), sigmoid(linear(hx, W_o, b_o))
        c = f * c + i * g
        h = o * tanh(c)
        outputs.append(h)
    return [torch.stack(outputs, 1)]


def run_one_product(cell: Any, x: Tensor) -> Sequence[Tensor]:
    """x (B, T, I) → [(B, T, H)]: one product for all gates."""
    W = torch.cat([cell.weight_hh_l0, cell.weight_ih_l0], 1)
    b = cell.bias_ih_l0 + cell.bias_hh_l0
    h = c = x.new_zeros(len(x), cell.hidden_size)
    outputs = []
    for x_t in x.unbind(1):
        i, f, g, o = linear(torch.cat([h, x_t], 1), W, b).chunk(4, 1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        outputs.append(h)
    return [torch.stack(outputs, 1)]


def run_hoisted(cell: Any, x: Tensor) -> Sequence[Tensor]:
    """x (B, T, I) → [(B, T, H)]: the input's share of all steps in one product, before the loop."""
    gates_x = linear(x, cell.weight_ih_l0, cell.bias_ih_l0 + cell.bias_hh_l0)  # (B, T, 4H)
    W_hh_t = cell.weight_hh_l0.t()
    h = c = x.new_zeros(len(x), cell.hidden_size)
    outputs = []
    for gates_t in gates_x.unbind(1):
        i, f, g, o = torch.addmm(gates_t, h, W_hh_t).chunk(4, 1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        outputs.append(h)
    return [torch.stack(outputs, 1)]


RUNGS: dict[str, Callable[[Any, Tensor], Sequence[Tensor]]] = {
    "one product per gate": run_four_products,
    "one product for all gates": run_one_product,
    "the input's share before the loop": run_hoisted,
    "a hand-written backward pass": lambda cell, x: copy_with_engine(cell, "plain")(x)[:1],
    "a native loop": lambda cell, x: cell(x)[:1],
}


def measure_ladder(rounds: int) -> Section:
    """Time each rung against the one before and against the first."""
    jobs = [(f"rungs at {size}", work(*size), partial(time_rungs, *size, rounds)) for size in SIZES]
    rows = [row for rungs in run_jobs(jobs) for row in rungs]
    return Section("From the equations to a fast cell, training", "this", rows)


def time_rungs(B: int, T: int, I: int, H: int, rounds: int) -> list[TimingRow]:
    torch.manual_seed(0)
    cell = build_cell("fused", I, H)
    x, d_output = torch.randn(B, T, I, requires_grad=True), torch.randn(B, T, H)
    calls = {
        name: build_contender(partial(rung, cell), cell, x, [d_output], training=True)
        for name, rung in RUNGS.items()
    }
    check_agreement(calls)
    medians = time_in_turn(calls, rounds)
    names, rows = list(RUNGS), []
    for before, name in zip([names[0], *names], names, strict=False):
        columns = {"this": name, "the rung before": before, "the first rung": names[0]}
        size = f"B {B}, T {T}, I {I}, H {H}: {name}"
        rows.append(TimingRow(size, {label: medians[rung] for label, rung in columns.items()}))
    return rows
