"""The cells against nn.LSTM and the other ways to run one: dense, ragged, step by step, and in memory."""

import copy
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmlab.benchmarks.timing import Contenders, Row, Section, agree, alternate
from lstmlab.cells import build_cell
from lstmlab.cells.stack import Stack

DENSE = [(16, 50, 64, 128), (32, 100, 64, 128), (50, 50, 128, 256), (64, 128, 64, 256), (64, 128, 512, 512)]
RAGGED = [(32, 50, 128, 256), (32, 200, 100, 128)]
STEP = [128, 256, 512]
LARGEST = (64, 128, 512, 512)
Forward = Callable[[Tensor], Sequence[Tensor]]


def sections(rounds: int) -> list[Section]:
    """All that there is, measured. Raises RuntimeError where contenders disagree."""
    found = []
    for training in (True, False):
        work = "training (forward and backward)" if training else "forward"
        rows = [dense(*size, training, rounds) for size in DENSE]
        subjects = {
            "fused": ("nn.LSTM", "nn.LSTMCell loop", "scratch"),
            "fused without a compiler": ("nn.LSTM",),
            "fused peephole": ("nn.LSTM", "scratch peephole"),
            "fused layernorm": ("nn.LSTM", "scratch layernorm"),
        }
        for subject, others in subjects.items():
            found.append(Section(f"Dense {work}", subject, [chosen(row, subject, *others) for row in rows]))
        found.append(Section(f"Ragged {work}", "fused", [ragged(*s, training, rounds) for s in RAGGED]))
    rows = [mixed(*size, rounds) for size in DENSE]
    found.append(Section("Dense training in bf16 autocast", "fused", rows))
    found.append(Section("One step, B 1, I = H, no gradient", "fused", [step(H, rounds) for H in STEP]))
    if sys.platform == "linux":
        found.append(Section("Peak memory of a training step", "fused", [memory(1), memory(4)], unit="MB"))
    return found


def chosen(row: Row, *names: str) -> Row:
    shares = row.gemm_share or {}
    return Row(row.size, {n: row.medians[n] for n in names}, {n: shares[n] for n in names if n in shares})


def same_weights(I: int, H: int) -> tuple[nn.LSTM, dict[str, Stack]]:
    """nn.LSTM, and the other cells with its weights; those of a kind of its own share theirs."""
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


def outputs_of(cell: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return cell(x)[:1]


def without_kernel(cell: Any) -> Any:
    """The same fused cell, parameters included, that runs its plain path."""
    plain = copy.copy(cell)
    plain.engine = "plain"
    return plain


def loop(cell: nn.LSTMCell, x: Tensor) -> Tensor:
    """nn.LSTMCell over x (B, T, I) → (B, T, H)."""
    h = c = x.new_zeros(len(x), cell.hidden_size)
    outputs = []
    for x_t in x.unbind(1):
        h, c = cell(x_t, (h, c))
        outputs.append(h)
    return torch.stack(outputs, 1)


def as_cell(reference: nn.LSTM) -> nn.LSTMCell:
    """nn.LSTMCell with the weights of a one-layer nn.LSTM."""
    cell = nn.LSTMCell(reference.input_size, reference.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in reference.state_dict().items()})
    return cell


def contender(
    forward: Forward, module: nn.Module, x: Tensor, gradients: Sequence[Tensor], training: bool
) -> Callable[[], Sequence[Tensor]]:
    """The forward pass, and in training the gradients of x and of every parameter, given the outputs'."""

    def run() -> Sequence[Tensor]:
        if not training:
            with torch.no_grad():
                return forward(x)
        outputs = forward(x)
        found = torch.autograd.grad(outputs, [x, *module.parameters()], gradients)
        return [*(output.detach() for output in outputs), *found]

    return run


def timed(contenders: Contenders, flops: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians, and shares of the peak: the best rate at which PyTorch's libraries, MKL (or another BLAS)
    and oneDNN, multiply two 1024 × 1024 matrices."""
    a, b = torch.randn(2, 1024, 1024)
    products: dict[str, Callable[[], object]] = {"BLAS": lambda: a @ b}
    if torch.backends.mkldnn.is_available():
        a_mkldnn, b_mkldnn = a.to_mkldnn(), b.to_mkldnn()
        products["oneDNN"] = lambda: F.linear(a_mkldnn, b_mkldnn)
    medians = alternate({**contenders, **products}, rounds)
    peak = 2 * 1024**3 / min(medians.pop(name) for name in products)
    return medians, {name: flops / median / peak for name, median in medians.items()}


def dense(B: int, T: int, I: int, H: int, training: bool, rounds: int) -> Row:
    torch.manual_seed(0)
    reference, cells = same_weights(I, H)
    x = torch.randn(B, T, I, requires_grad=training)
    gradients = [torch.randn(B, T, H)]
    calls: dict[str, Callable[[], Sequence[Tensor]]] = {}

    def add(name: str, module: nn.Module, forward: Forward) -> None:
        calls[name] = contender(forward, module, x, gradients, training)

    lstm_cell, fused = as_cell(reference), cells["fused"]
    add("nn.LSTM", reference, lambda x: reference(x)[:1])
    add("nn.LSTMCell loop", lstm_cell, lambda x: [loop(lstm_cell, x)])
    add("fused without a compiler", fused, partial(outputs_of, without_kernel(fused)))
    for name, cell in cells.items():
        add(name, cell, partial(outputs_of, cell))
    for kind in ("peephole", "layernorm"):
        agree({name: calls[name] for name in (f"scratch {kind}", f"fused {kind}")})
    agree({name: run for name, run in calls.items() if not name.endswith(("peephole", "layernorm"))})
    flops = 2 * B * T * 4 * H * (I + H) * (3 if training else 1)
    return Row(f"B {B}, T {T}, I {I}, H {H}", *timed(calls, flops, rounds))


def mixed(B: int, T: int, I: int, H: int, rounds: int) -> Row:
    """bf16 is too coarse for the contenders to agree."""
    torch.manual_seed(0)
    reference, cells = same_weights(I, H)
    x, gradients = torch.randn(B, T, I, requires_grad=True), [torch.randn(B, T, H)]

    def cast(cell: nn.Module, x: Tensor) -> Sequence[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [cell(x)[0].float()]

    contenders: dict[str, tuple[Callable[..., Sequence[Tensor]], nn.Module]] = {
        "nn.LSTM": (cast, reference),
        "fused": (cast, cells["fused"]),
        "fused in float32": (outputs_of, cells["fused"]),
    }
    calls = {
        name: contender(partial(forward, cell), cell, x, gradients, True)
        for name, (forward, cell) in contenders.items()
    }
    return Row(f"B {B}, T {T}, I {I}, H {H}", alternate(calls, rounds))


def ragged(B: int, T: int, I: int, H: int, training: bool, rounds: int) -> Row:
    """Lengths uniform in [T/4, T]; each contender gives the outputs and the last hidden states (B, H)."""
    torch.manual_seed(0)
    reference, cells = same_weights(I, H)
    lengths = torch.randint(T // 4, T + 1, (B,))
    padding = (torch.arange(T) >= lengths[:, None])[:, :, None]  # (B, T, 1)
    x = torch.randn(B, T, I).masked_fill(padding, 0).requires_grad_(training)
    gradients = [torch.randn(B, T, H).masked_fill(padding, 0), torch.randn(B, H)]

    def packed(x: Tensor) -> Sequence[Tensor]:
        output, (h, _) = reference(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
        return pad_packed_sequence(output, True, total_length=T)[0], h[0]

    def padded(x: Tensor) -> Sequence[Tensor]:
        output, _ = reference(x)
        return output.masked_fill(padding, 0), output[torch.arange(B), lengths - 1]

    def ours(name: str) -> Forward:
        def run(x: Tensor) -> Sequence[Tensor]:
            output, state = cells[name](x, lengths=lengths)
            return output, state.h[0]

        return run

    forwards: dict[str, Forward] = {"nn.LSTM packed": packed, "nn.LSTM padded, states gathered": padded}
    forwards |= {name: ours(name) for name in ("fused", "scratch")}
    calls = {
        name: contender(forward, cells.get(name, reference), x, gradients, training)
        for name, forward in forwards.items()
    }
    agree(calls)
    flops = 2 * int(lengths.sum()) * 4 * H * (I + H) * (3 if training else 1)
    return Row(f"B {B}, T {T}, I {I}, H {H}", *timed(calls, flops, rounds))


@torch.no_grad()
def step(H: int, rounds: int) -> Row:
    torch.manual_seed(0)
    reference, cells = same_weights(H, H)
    lstm_cell = as_cell(reference)
    x, h, c = torch.randn(3, 1, 1, H)
    x_t, h_t, c_t = x[0], h[0], c[0]
    calls: Contenders = {
        "nn.LSTM": lambda: reference(x, (h, c))[1],
        "nn.LSTMCell": lambda: lstm_cell(x_t, (h_t, c_t)),
        "scratch": lambda: cells["scratch"](x, (h, c))[1],
        "fused": lambda: cells["fused"](x, (h, c))[1],
    }
    agree(calls)
    return Row(f"H {H}", alternate(calls, rounds))


def memory(layers: int) -> Row:
    """Each in a process of its own, whose resident memory's peak grows by so much; Linux alone tells it."""
    names = ["nn.LSTM", "scratch", "fused recompute", "fused"]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_memory, [(name, layers, *LARGEST) for name in names], chunksize=1)
    size = "B {}, T {}, I {}, H {}".format(*LARGEST)
    return Row(f"{size}, layers {layers}", dict(zip(names, peaks, strict=True)))


def peak_memory(name: str, layers: int, B: int, T: int, I: int, H: int) -> float:
    """MB that a training step needs beside the input, the parameters and what the library takes anyway."""
    if name == "nn.LSTM":
        cell: nn.Module = nn.LSTM(I, H, layers, batch_first=True)
    else:
        backend, _, recompute = name.partition(" ")
        cell = build_cell(backend, I, H, num_layers=layers, recompute=bool(recompute))
    x, d_output = torch.randn(B, T, I, requires_grad=True), torch.randn(B, T, H)

    def train(rows: int) -> None:
        output = cell(x[:rows, : 2 * rows])[0]
        torch.autograd.grad(output, [x, *cell.parameters()], d_output[:rows, : 2 * rows])

    train(1)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    reset.write_text("5")  # the peak is now what there is
    before = int(status.read_text().split("VmHWM:")[1].split()[0])
    train(B)
    after = int(status.read_text().split("VmHWM:")[1].split()[0])
    return (after - before) * 1024 / 1e6
