"""The recurrence in native code, on the CPU: float32, float64 and, where the CPU has them, bf16 products.

`kernel.cpp` is compiled on first use, in some seconds, into the user's cache folder ($XDG_CACHE_HOME or
~/.cache).
"""

import ctypes
import functools
import hashlib
import os
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

SOURCES = [Path(__file__).with_name(name) for name in ("kernel.cpp", "gemm.h")]
# Not -march=native: what lies in a cache folder must run on each machine that shares it.
CPU_FLAGS = {"AVX512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "AVX2": ["-march=x86-64-v3"]}
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
]

if torch.cpu._is_avx512_bf16_supported():
    CPU_FLAGS["AVX512"].append("-mavx512bf16")

KINDS = ("lstm", "peephole", "layernorm", "rnn", "gru")  # as numbered in kernel.cpp
PRECISIONS = {torch.float32: "f32", torch.float64: "f64"}  # of a tensor's products; under autocast "bf16"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None, said once, where there is no compiler that can build it."""
    compiler = os.environ.get("CXX") or "c++"
    flags = FLAGS + CPU_FLAGS.get(torch.backends.cpu.get_cpu_capability(), [])
    key = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES) + repr(flags).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lstmlab"
    target = cache / f"kernel-{key.hexdigest()[:16]}.so"
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                compiled, linked = Path(folder, "kernel.o"), Path(folder, "kernel.so")
                # Linked without OpenMP: torch has loaded its own, whose threads are those to use.
                for command in (
                    [compiler, *flags, "-c", str(SOURCES[0]), "-o", str(compiled)],
                    [compiler, "-shared", str(compiled), "-o", str(linked)],
                ):
                    subprocess.run(command, check=True, capture_output=True, text=True)
                os.replace(linked, target)  # at once, whoever else may be compiling
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        # Not logging: Hydra's settings may have switched that off
        warnings.warn(
            f"cell=fused runs its plain path: {compiler} cannot build the native kernel ({reason})",
            stacklevel=2,
        )
        return None


def precision(dtype: torch.dtype) -> str | None:
    """What the kernel computes the products of tensors of this type in; None: it has none for them.

    In bf16 autocast float32's products are of bf16, summed in float32; all else stays float32.
    """
    if library() is None:
        return None
    if not torch.is_autocast_enabled("cpu"):
        return PRECISIONS.get(dtype)
    cast = (dtype, torch.get_autocast_dtype("cpu")) == (torch.float32, torch.bfloat16)
    return "bf16" if cast and hasattr(library(), "forward_bf16") else None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strided(tensor: Tensor | None) -> tuple[int, ...]:
    """Of (B, T, ·): the address, and the strides of B and T."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride()[:2])


def _operands(weights: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """W_ih, W_hh, b_ih, b_hh, a kind's own ones in one: to be held while the kernel runs; their addresses."""
    held = [weight if weight.is_contiguous() else weight.contiguous() for weight in weights]
    if len(held) > 4:
        held[4:] = [torch.cat(held[4:])]
    addresses = [weight.data_ptr() for weight in held]
    return held, addresses if len(held) > 4 else [*addresses, 0]


def _fields(
    kind: str,
    shape: Sequence[int],
    reverse: bool,
    lengths: Tensor | None,
    x: Sequence[int],
    initial: Sequence[int],
    operands: Sequence[int],
    y: Sequence[int],
    *rest: int,
) -> bytes:
    """Scan in kernel.cpp. shape: B, T, I, H · x, y: see `_strided` · initial: the addresses of h and c ·
    operands: those of W_ih … · rest: what follows y."""
    fields = (
        *(KINDS.index(kind), *shape, reverse, torch.get_num_threads(), _address(lengths)),
        *(*x, *initial, *(0,) * (2 - len(initial))),
        *(*operands, *y, *rest),
    )
    return struct.pack("38q", *fields, *(0,) * (38 - len(fields)))


def _call(function: str, precision: str, *scans: bytes) -> None:
    getattr(library(), f"{function}_{precision}")(b"".join(scans), len(scans))


def scan(
    precision: str,
    kind: str,
    reverse: bool,
    lengths: Tensor | None,
    x: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    final: Sequence[Tensor],
    k: int = 0,
    kept: Sequence[Tensor | None] = (),
) -> Tensor:
    """One layer in one direction → h after each step (B, T, H), zeros past a row's length.

    precision: see `precision` · lengths: (B,) int64, or None · x: (B, T, I), contiguous in I · weights:
    the parameters as stored · initial, final: the k-th (B, H) of each of these tensors is read, and
    written · kept: for `Scan`.
    """
    y = x.new_empty(x.size(0), x.size(1), initial[0].size(-1))
    skip = k * initial[0].stride(0) * x.element_size()
    start = [state.data_ptr() + skip for state in initial]
    end = [state.data_ptr() + skip for state in final]
    end += [0] * (2 - len(end))
    _held, operands = _operands(weights)
    shape = (*x.shape, y.size(-1))
    fields = (kind, shape, reverse, lengths, _strided(x), start, operands, _strided(y))
    _call("forward", precision, _fields(*fields, *end, *map(_address, kept)))
    return y


def step(
    kind: str,
    x: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    final: Sequence[Tensor],
) -> Tensor:
    """One step of a stack of layers in one call → h of the last one (B, 1, H).

    x: (B, 1, I), contiguous in I · initial, final: (L, B, H) each; the latter is written · weights: of
    each layer, as stored.
    """
    B, _, I = x.shape
    H = initial[0].size(-1)
    y = torch.empty(B, 1, H, dtype=x.dtype)
    start, end = [s.data_ptr() for s in initial], [s.data_ptr() for s in final]
    source, top, held, scans = _strided(x), len(weights) - 1, [], []
    for k, layer in enumerate(weights):
        tensors, operands = _operands(layer)
        held.append(tensors)
        to = _strided(y) if k == top else (end[0], H, H)
        scans.append(_fields(kind, (B, 1, I, H), False, None, source, start, operands, to, *end))
        source, I = to, H
        size = B * H * x.element_size()
        start, end = [address + size for address in start], [address + size for address in end]
    _call("forward", PRECISIONS[x.dtype], *scans)
    return y


def _buffers(kind: str, lengths: Tensor | None, x: Tensor, H: int) -> list[Tensor | None]:
    """What backward needs: gates, c, and layer norm's 1/σ, of each cell of the unpadded batch."""
    cells = x.size(0) * x.size(1) if lengths is None else int(lengths.sum())
    return [
        x.new_empty(cells, H if kind == "rnn" else 4 * H),
        None if kind in ("rnn", "gru") else x.new_empty(cells, H),
        x.new_empty(cells, 4) if kind == "layernorm" else None,
    ]


def refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("The fused cell has no second derivative (create_graph=True): use cell=scratch.")


class Scan(torch.autograd.Function):
    """`scan` with its own backward pass: (y, *final state) of tensors = (*initial state, *weights).

    Backward writes the gates' gradients over the gates; asked again, it runs forward again.
    """

    @staticmethod
    def forward(ctx, precision, kind, reverse, lengths, x, *tensors):
        state, weights = split(kind, tensors)
        kept = _buffers(kind, lengths, x, state[0].size(-1))
        final = [torch.empty_like(s) for s in state]
        y = scan(precision, kind, reverse, lengths, x, state, weights, final, kept=kept)
        ctx.how, ctx.gates_overwritten = (precision, kind, reverse), False
        ctx.save_for_backward(lengths, x, y, *kept, *tensors)
        ctx.set_materialize_grads(False)
        return y, *final

    @staticmethod
    def backward(ctx, dy, *d_final):
        refuse_second_derivative()
        lengths, x, y, gates, cs, norms, *tensors = ctx.saved_tensors
        (precision, kind, reverse), kept = ctx.how, [gates, cs, norms]
        state, weights = split(kind, tensors)
        H = state[0].size(-1)
        if ctx.gates_overwritten:
            kept = _buffers(kind, lengths, x, H)
            unwanted = [torch.empty_like(s) for s in state]
            scan(precision, kind, reverse, lengths, x, state, weights, unwanted, kept=kept)
        ctx.gates_overwritten = True

        _, _, _, _, x_needs, *needs = ctx.needs_input_grad
        _, weights_need = split(kind, needs)
        if dy is not None and dy.stride(-1) != 1:
            dy = dy.contiguous()
        dx = torch.empty_like(x) if x_needs else None
        d_state = [
            torch.zeros_like(s) if d is None else d.clone(memory_format=torch.contiguous_format)
            for d, s in zip(d_final, state, strict=True)
        ]
        dw_ih, dw_hh = (
            torch.empty_like(w) if need else None
            for w, need in zip(weights[:2], weights_need[:2], strict=True)
        )
        d_bias = x.new_empty(kept[0].size(1))
        d_own = x.new_empty(sum(w.numel() for w in weights[4:]))
        out = (dw_ih, dw_hh, d_bias, d_own)
        start = [s.data_ptr() for s in state]
        _held, operands = _operands(weights)
        fields = _fields(
            *(kind, (*x.shape, H), reverse, lengths, _strided(x), start, operands, _strided(y), 0, 0),
            *(*map(_address, kept), *_strided(dy), *_strided(dx)),
            *(*[d.data_ptr() for d in d_state], *(0,) * (2 - len(d_state)), *map(_address, out)),
        )
        _call("backward", precision, fields)
        d_biases = [d_bias, d_bias]
        if kind == "gru":  # r, z and the two halves of n
            d_biases = [d_bias[: 3 * H], torch.cat([d_bias[: 2 * H], d_bias[3 * H :]])]
        return (
            None,
            None,
            None,
            None,
            dx,
            *d_state,
            dw_ih,
            dw_hh,
            *d_biases,
            *d_own.split([w.numel() for w in weights[4:]]),
        )


def split(kind: str, tensors: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Of the state, and of the weights."""
    members = 1 if kind in ("rnn", "gru") else 2
    return tensors[:members], tensors[members:]
