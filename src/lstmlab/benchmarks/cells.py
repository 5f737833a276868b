"""The cells against nn.LSTM and other ways to run one: dense, ragged, step by step, and their memory."""

import copy
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmlab.benchmarks.timing import (
    Contenders,
    Section,
    TimingRow,
    check_agreement,
    run_jobs,
    time_in_turn,
)
from lstmlab.cells import build_cell
from lstmlab.cells.stack import Stack

DENSE = [(16, 50, 64, 128), (32, 100, 64, 128), (50, 50, 128, 256), (64, 128, 64, 256), (64, 128, 512, 512)]
RAGGED = [(32, 50, 128, 256), (32, 200, 100, 128)]
STEP = [128, 256, 512]
LARGEST = (64, 128, 512, 512)
Forward = Callable[[Tensor], Sequence[Tensor]]


def measure_cells(rounds: int) -> list[Section]:
    """Measure all sections of suite=cells. Raises RuntimeError if contenders disagree."""
    jobs: list[tuple[str, float, Callable[[], TimingRow]]] = []
    for training in (True, False):
        jobs += [
            (f"dense {size}", work(*size), partial(time_dense, *size, training, rounds)) for size in DENSE
        ]
    for training in (True, False):
        jobs += [
            (f"ragged {size}", work(*size), partial(time_ragged, *size, training, rounds)) for size in RAGGED
        ]
    jobs += [(f"bf16 {size}", 0.2 * work(*size), partial(time_bf16, *size, rounds)) for size in DENSE]
    jobs += [(f"one step of {H}", 1e6, partial(time_step, H, rounds)) for H in STEP]
    if sys.platform == "linux":
        jobs += [(f"memory of {layers} layers", 1e9, partial(measure_memory, layers)) for layers in (1, 4)]
    rows = iter(run_jobs(jobs))

    def take(number: int) -> list[TimingRow]:
        return list(islice(rows, number))

    names = ("training (forward and backward)", "forward")
    subjects = {
        "fused": ("nn.LSTM", "nn.LSTMCell loop", "scratch"),
        "fused without a compiler": ("nn.LSTM",),
        "fused peephole": ("nn.LSTM", "scratch peephole"),
        "fused layernorm": ("nn.LSTM", "scratch layernorm"),
    }
    sections = []
    for name, dense in zip(names, [take(len(DENSE)), take(len(DENSE))], strict=True):
        for subject, others in subjects.items():
            selected = [select_contenders(row, (subject, *others)) for row in dense]
            sections.append(Section(f"Dense {name}", subject, selected))
    sections += [Section(f"Ragged {name}", "fused", take(len(RAGGED))) for name in names]
    sections.append(Section("Dense training in bf16 autocast", "fused", take(len(DENSE))))
    sections.append(Section("One step, B 1, I = H, no gradient", "fused", take(len(STEP))))
    if memory := list(rows):
        sections.append(Section("Peak memory of a training step", "fused", memory, unit="MB"))
    return sections


def work(B: int, T: int, I: int, H: int) -> float:
    """What a call takes, relatively: products, and some microseconds for each step of a loop in Python."""
    return B * T * H * (I + H) + 1e5 * T


def select_contenders(row: TimingRow, names: Sequence[str]) -> TimingRow:
    shares = {name: share for name, share in (row.gemm_share or {}).items() if name in names}
    return TimingRow(row.size, {name: row.medians[name] for name in names}, shares)


def build_matching_cells(I: int, H: int) -> tuple[nn.LSTM, dict[str, Stack]]:
    """nn.LSTM, and fused and scratch cells: those of kind lstm with its weights, the other kinds in pairs."""
    reference = nn.LSTM(I, H, batch_first=True)
    cells: dict[str, Any] = {}
    for kind in ("lstm", "peephole", "layernorm"):
        fused, scratch = (build_cell(backend, I, H, kind=kind) for backend in ("fused", "scratch"))
        if kind == "lstm":
            fused.load_state_dict(reference.state_dict())
        scratch.load_state_dict(fused.state_dict())
        suffix = "" if kind == "lstm" else f" {kind}"
        cells |= {f"fused{suffix}": fused, f"scratch{suffix}": scratch}
    return reference, cells


def run_cell(cell: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return cell(x)[:1]


def copy_with_engine(cell: Any, engine: str) -> Any:
    """A copy of a fused cell that shares its parameters and runs on this engine."""
    forced = copy.copy(cell)
    forced.engine = engine
    return forced


def loop_over_steps(cell: nn.LSTMCell, x: Tensor) -> Tensor:
    """Run nn.LSTMCell over x (B, T, I) → (B, T, H)."""
    h = c = x.new_zeros(len(x), cell.hidden_size)
    outputs = []
    for x_t in x.unbind(1):
        h, c = cell(x_t, (h, c))
        outputs.append(h)
    return torch.stack(outputs, 1)


def build_lstm_cell(reference: nn.LSTM) -> nn.LSTMCell:
    """An nn.LSTMCell with the weights of a one-layer nn.LSTM."""
    cell = nn.LSTMCell(reference.input_size, reference.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in reference.state_dict().items()})
    return cell


def build_contender(
    forward: Forward, module: nn.Module, x: Tensor, gradients: Sequence[Tensor], training: bool
) -> Callable[[], Sequence[Tensor]]:
    """A call of the forward pass and, in training, of the backward pass, given the outputs' `gradients`."""

    def run() -> Sequence[Tensor]:
        if not training:
            with torch.no_grad():
                return forward(x)
        outputs = forward(x)
        d_inputs = torch.autograd.grad(outputs, [x, *module.parameters()], gradients)
        return [*(output.detach() for output in outputs), *d_inputs]

    return run


def time_against_peak(
    contenders: Contenders, flops: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians in ms, and shares of the peak rate.

    The peak is the best rate at which PyTorch's libraries, oneDNN and MKL (or another BLAS), multiply two
    1024 × 1024 matrices.
    """
    a, b = torch.randn(2, 1024, 1024)
    products: dict[str, Callable[[], object]] = {"BLAS": lambda: a @ b}
    if torch.backends.mkldnn.is_available():
        a_mkldnn, b_mkldnn = a.to_mkldnn(), b.to_mkldnn()
        products["oneDNN"] = lambda: F.linear(a_mkldnn, b_mkldnn)
    medians = time_in_turn({**contenders, **products}, rounds)
    peak = 2 * 1024**3 / min(medians.pop(name) for name in products)
    return medians, {name: flops / median / peak for name, median in medians.items()}


def time_dense(B: int, T: int, I: int, H: int, training: bool, rounds: int) -> TimingRow:
    torch.manual_seed(0)
    reference, cells = build_matching_cells(I, H)
    x = torch.randn(B, T, I, requires_grad=training)
    gradients = [torch.randn(B, T, H)]
    calls: dict[str, Callable[[], Sequence[Tensor]]] = {}

    def add(name: str, module: nn.Module, forward: Forward) -> None:
        calls[name] = build_contender(forward, module, x, gradients, training)

    lstm_cell, fused = build_lstm_cell(reference), cells["fused"]
    add("nn.LSTM", reference, lambda x: reference(x)[:1])
    add("nn.LSTMCell loop", lstm_cell, lambda x: [loop_over_steps(lstm_cell, x)])
    add("fused without a compiler", fused, partial(run_cell, copy_with_engine(fused, "torch")))
    for name, cell in cells.items():
        add(name, cell, partial(run_cell, cell))
    for kind in ("peephole", "layernorm"):
        check_agreement({name: calls[name] for name in (f"scratch {kind}", f"fused {kind}")})
    plain = {name: run for name, run in calls.items() if not name.endswith(("peephole", "layernorm"))}
    check_agreement(plain)
    flops = 2 * B * T * 4 * H * (I + H) * (3 if training else 1)
    return TimingRow(f"B {B}, T {T}, I {I}, H {H}", *time_against_peak(calls, flops, rounds))


def time_bf16(B: int, T: int, I: int, H: int, rounds: int) -> TimingRow:
    """Time training under bf16 autocast, which is too coarse for a check of agreement."""
    torch.manual_seed(0)
    reference, cells = build_matching_cells(I, H)
    x, gradients = torch.randn(B, T, I, requires_grad=True), [torch.randn(B, T, H)]

    def run_bf16(cell: nn.Module, x: Tensor) -> Sequence[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [cell(x)[0].float()]

    contenders: dict[str, tuple[Callable[..., Sequence[Tensor]], nn.Module]] = {
        "nn.LSTM": (run_bf16, reference),
        "fused": (run_bf16, cells["fused"]),
        "fused in float32": (run_cell, cells["fused"]),
    }
    calls = {
        name: build_contender(partial(forward, cell), cell, x, gradients, True)
        for name, (forward, cell) in contenders.items()
    }
    return TimingRow(f"B {B}, T {T}, I {I}, H {H}", time_in_turn(calls, rounds))


def time_ragged(B: int, T: int, I: int, H: int, training: bool, rounds: int) -> TimingRow:
    """Time lengths uniform in [T/4, T]. Each contender returns outputs and last hidden states (B, H)."""
    torch.manual_seed(0)
    reference, cells = build_matching_cells(I, H)
    lengths = torch.randint(T // 4, T + 1, (B,))
    padding = (torch.arange(T) >= lengths[:, None])[:, :, None]  # (B, T, 1)
    x = torch.randn(B, T, I).masked_fill(padding, 0).requires_grad_(training)
    gradients = [torch.randn(B, T, H).masked_fill(padding, 0), torch.randn(B, H)]

    def run_packed(x: Tensor) -> Sequence[Tensor]:
        output, (h, _) = reference(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
        return pad_packed_sequence(output, True, total_length=T)[0], h[0]

    def run_padded(x: Tensor) -> Sequence[Tensor]:
        output, _ = reference(x)
        return output.masked_fill(padding, 0), output[torch.arange(B), lengths - 1]

    def run_ours(name: str) -> Forward:
        def run(x: Tensor) -> Sequence[Tensor]:
            output, state = cells[name](x, lengths=lengths)
            return output, state.h[0]

        return run

    forwards: dict[str, Forward] = {
        "nn.LSTM packed": run_packed,
        "nn.LSTM padded, states gathered": run_padded,
    }
    forwards |= {name: run_ours(name) for name in ("fused", "scratch")}
    calls = {
        name: build_contender(forward, cells.get(name, reference), x, gradients, training)
        for name, forward in forwards.items()
    }
    check_agreement(calls)
    flops = 2 * int(lengths.sum()) * 4 * H * (I + H) * (3 if training else 1)
    return TimingRow(f"B {B}, T {T}, I {I}, H {H}", *time_against_peak(calls, flops, rounds))


@torch.no_grad()
def time_step(H: int, rounds: int) -> TimingRow:
    torch.manual_seed(0)
    reference, cells = build_matching_cells(H, H)
    lstm_cell = build_lstm_cell(reference)
    x, h, c = torch.randn(3, 1, 1, H)
    x_t, h_t, c_t = x[0], h[0], c[0]
    calls: Contenders = {
        "nn.LSTM": lambda: reference(x, (h, c))[1],
        "nn.LSTMCell": lambda: lstm_cell(x_t, (h_t, c_t)),
        "scratch": lambda: cells["scratch"](x, (h, c))[1],
        "fused": lambda: cells["fused"](x, (h, c))[1],
    }
    check_agreement(calls)
    return TimingRow(f"H {H}", time_in_turn(calls, rounds))


def measure_memory(layers: int) -> TimingRow:
    contenders: dict[str, dict[str, Any]] = {
        "nn.LSTM": {},
        "scratch": {"backend": "scratch"},
        "fused recompute": {"backend": "fused", "recompute": True},
        "fused": {"backend": "fused"},
    }
    jobs = [(LARGEST, {"num_layers": layers} | options) for options in contenders.values()]
    size = "B {}, T {}, I {}, H {}".format(*LARGEST)
    return TimingRow(f"{size}, layers {layers}", dict(zip(contenders, measure_peaks(jobs), strict=True)))


def measure_peaks(jobs: list[tuple[tuple[int, int, int, int], dict[str, Any]]]) -> list[float]:
    """Measure each size and cell in its own process, by the growth of its resident memory (Linux only)."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.starmap(measure_peak_memory, jobs, chunksize=1)


def measure_peak_memory(size: tuple[int, int, int, int], options: dict[str, Any]) -> float:
    """MB that a training step of B, T, I, H needs beside the input, the parameters and what the library
    always takes. `options` are those of `build_cell`; without a backend it is nn.LSTM."""
    B, T, I, H = size
    build: Any = build_cell if "backend" in options else partial(nn.LSTM, batch_first=True)
    cell = build(input_size=I, hidden_size=H, **options)
    x, d_output = torch.randn(B, T, I, requires_grad=True), torch.randn(B, T, H)

    def train(rows: int) -> None:
        output = cell(x[:rows, : 2 * rows])[0]
        torch.autograd.grad(output, [x, *cell.parameters()], d_output[:rows, : 2 * rows])

    train(1)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    reset.write_text("5")  # the peak is now the current size
    before = int(status.read_text().split("VmHWM:")[1].split()[0])
    train(B)
    after = int(status.read_text().split("VmHWM:")[1].split()[0])
    return (after - before) * 1024 / 1e6
