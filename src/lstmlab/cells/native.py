"""The recurrence in native code, on the CPU: in float32, float64 and, where the CPU has them, bf16 products.

The kernel gets addresses and trusts them; `admission.admit` decides which tensors it may have.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .admission import PRECISIONS, are_plain
from .derivatives import refuse_other_derivatives
from .kinds import KINDS
from .library import find_kernel

T = TypeVar("T")
Operands = Sequence[Tensor | None]  # of one layer and direction, see `as_operands`

KIND_NAMES = ("lstm", "peephole", "layernorm", "rnn", "gru", "mingru", "minlstm", "slstm", "mogrifier")
NUMBERS = {name: number for number, name in enumerate(KIND_NAMES)}  # as in cell.h
# Columns of a row of gates in units of H, as G in scan.h
COLUMNS = dict.fromkeys(NUMBERS, 4) | {"rnn": 1, "mingru": 2, "minlstm": 3, "slstm": 5}


class Scan(ctypes.Structure):
    """The arguments of a call of the kernel: the same fields as Scan in scan.h, which explains them.

    A field that is not given is 0, or null.
    """

    # fmt: off
    _fields_ = [(name, ctypes.c_int64) for name in (
        "kind", "B", "T", "I", "H", "K", "reverse", "threads", "rounds", "rank",
        "lengths", "x", "x_b", "x_t", "h0", "c0",
        "w_ih", "w_hh", "b_ih", "b_hh", "extra", "y", "y_b", "y_t", "h", "c", "gates", "cs", "norms",
        "dy", "dy_b", "dy_t", "dx", "dx_b", "dx_t", "dh", "dc",
        "dw_ih", "dw_hh", "dbias", "dextra", "dgates",
    )]
    # fmt: on


def run_scan(
    kind: str,
    precision: str,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: Operands,
    reverse: bool,
    buffers: Sequence[Tensor | None] = (None, None, None),
) -> tuple[Tensor, list[Tensor]]:
    """One layer in one direction → h after each step (B, T, H), zeros past a row's length; the final state.

    precision: see `admission.find_precision`.
    x: (B, T, I).
    state: h (B, H) and, if there is more, c (B, H), of the sLSTM c, n and m side by side (B, 3H); contiguous.
    lengths: (B,) int64, contiguous, or None.
    weights: see `as_operands`.
    buffers: filled with what the backward pass needs, see `empty_buffers`.
    """
    x = _contiguous_rows(x)
    (B, T, I), H = x.shape, state[0].size(-1)
    y, final = x.new_empty(B, T, H), [torch.empty_like(s) for s in state]
    (x_b, x_t, _), (h0, c0), (h, c) = x.stride(), _addresses(state), _addresses(final)
    _held, (w_ih, w_hh, b_ih, b_hh, extra) = _operands(weights)
    gates, cs, norms = map(_address, buffers)
    rounds, rank = _rounds_and_rank(kind, weights)
    arguments = Scan(
        kind=NUMBERS[kind], B=B, T=T, I=I, H=H, K=_columns(weights[1]), reverse=reverse,
        threads=torch.get_num_threads(), rounds=rounds, rank=rank,
        lengths=_address(lengths), x=x.data_ptr(), x_b=x_b, x_t=x_t, h0=h0, c0=c0,
        w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, extra=extra,
        y=y.data_ptr(), y_b=T * H, y_t=H, h=h, c=c, gates=gates, cs=cs, norms=norms,
    )  # fmt: skip
    _call_kernel("forward", precision, arguments)
    return y, final


def run_step(
    kind: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Operands]
) -> tuple[Tensor, list[Tensor]]:
    """One step of a stack of layers in one call → h of the last layer (B, 1, H); the state after the step.

    x: (B, 1, I).
    state: as for `run_scan`, with a first axis of L layers.
    weights: of each layer, see `as_operands`.
    """
    x = _contiguous_rows(x)
    (B, _, I), H = x.shape, state[0].size(-1)
    y, final = x.new_empty(B, 1, H), [torch.empty_like(s) for s in state]
    (h0, c0), (h, c) = _addresses(state), _addresses(final)
    source, x_b = x.data_ptr(), x.stride(0)
    size, c_size = (B * s.size(-1) * s.element_size() for s in (state[0], state[-1]))
    number, threads, held, calls = NUMBERS[kind], torch.get_num_threads(), [], []
    for k, layer in enumerate(weights):
        tensors, (w_ih, w_hh, b_ih, b_hh, extra) = _operands(layer)
        held.append(tensors)
        target = y.data_ptr() if k == len(weights) - 1 else h
        rounds, rank = _rounds_and_rank(kind, layer)
        calls.append(
            Scan(
                kind=number, B=B, T=1, I=I, H=H, K=_columns(layer[1]), threads=threads,
                rounds=rounds, rank=rank, x=source, x_b=x_b, h0=h0, c0=c0,
                w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, extra=extra, y=target, y_b=H, h=h, c=c,
            )
        )  # fmt: skip
        source, x_b, I = target, H, H
        h0, c0, h, c = h0 + size, c0 + c_size, h + size, c + c_size
    _call_kernel("forward", PRECISIONS[x.dtype], *calls)
    return y, final


def empty_buffers(kind: str, cells: int, x: Tensor, H: int, weights: Operands) -> list[Tensor | None]:
    """What forward keeps for backward: gates, c and layer norm's 1/σ or what a mogrifier's rounds made, each
    with a row per unpadded step."""
    width = width_of_norms(kind, x.size(-1), H, weights)
    return [
        x.new_empty(cells, COLUMNS[kind] * H),
        x.new_empty(cells, columns * H) if (columns := len(KINDS[kind].state._fields) - 1) else None,
        x.new_empty(cells, width) if width else None,
    ]


def width_of_norms(kind: str, I: int, H: int, weights: Operands) -> int:
    """As width in mogrifier.h; 0: the kind keeps nothing there."""
    rounds, rank = _rounds_and_rank(kind, weights)
    widths = 2 * (I * ((rounds + 1) // 2) + H * (rounds // 2) + rank * rounds)
    return 4 if kind == "layernorm" else widths


def _rounds_and_rank(kind: str, weights: Operands) -> tuple[int, int]:
    """Of a mogrifier, by the shape of its matrices, see `as_operands`; of another kind, zeros."""
    matrices = weights[-1]
    if kind != "mogrifier" or matrices is None:
        return 0, 0
    return matrices.size(0), matrices.size(1) if matrices.dim() == 3 else 0


def run_scan_backward(
    kind: str,
    precision: str,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: Operands,
    reverse: bool,
    needs: Sequence[bool],
    y: Tensor,
    buffers: Sequence[Tensor | None],
    dgates: Tensor,
    dy: Tensor | None,
    d_final: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of x, of each member of the state and of each weight, given those of y and of the final
    state (None: zeros).

    needs: whether those of x, W_ih and W_hh are wanted; the others come at no cost.
    buffers: those that `run_scan` filled.
    dgates: memory as large as the gates; if it is theirs, they are overwritten.
    """
    x = _contiguous_rows(x)
    (B, T, I), H, (W_ih, W_hh, *_) = x.shape, y.size(-1), weights
    assert W_ih is not None
    # Not empty_like: x or a weight may have other strides than those in which the kernel writes.
    dx = x.new_empty(B, T, I) if needs[0] else None
    dw_ih = x.new_empty(W_ih.shape) if needs[1] else None
    dw_hh = x.new_empty(W_hh.shape) if W_hh is not None and needs[2] else None
    d_state = [
        torch.zeros_like(s) if d is None else d.clone(memory_format=torch.contiguous_format)
        for d, s in zip(d_final, state, strict=True)
    ]
    d_bias = x.new_empty(dgates.size(1))
    d_extra: list[Tensor | None] = [x.new_empty(w.shape) for w in weights[4:] if w is not None]
    (x_b, x_t, _), (y_b, y_t, _) = x.stride(), y.stride()
    (h0, c0), (dh, dc), (gates, cs, norms) = _addresses(state), _addresses(d_state), map(_address, buffers)
    _held, (w_ih, w_hh, b_ih, b_hh, extra) = _operands(weights)
    rounds, rank = _rounds_and_rank(kind, weights)
    arguments = Scan(
        kind=NUMBERS[kind], B=B, T=T, I=I, H=H, K=_columns(weights[1]), reverse=reverse,
        threads=torch.get_num_threads(), rounds=rounds, rank=rank,
        lengths=_address(lengths), x=x.data_ptr(), x_b=x_b, x_t=x_t, h0=h0, c0=c0,
        w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, extra=extra,
        y=y.data_ptr(), y_b=y_b, y_t=y_t, gates=gates, cs=cs, norms=norms, dh=dh, dc=dc,
        dx=_address(dx), dx_b=T * I, dx_t=I, dw_ih=_address(dw_ih), dw_hh=_address(dw_hh),
        dbias=d_bias.data_ptr(), dextra=_address(d_extra[0] if d_extra else None), dgates=dgates.data_ptr(),
    )  # fmt: skip
    if dy is not None:
        dy = _contiguous_rows(dy)
        arguments.dy, (arguments.dy_b, arguments.dy_t, _) = dy.data_ptr(), dy.stride()
    _call_kernel("backward", precision, arguments)
    db_ih = d_bias[: len(W_ih)]
    db_hh = None if W_hh is None else db_ih.clone()
    if kind == "gru":  # The kernel's are of r, z and the two parts of n.
        db_hh = torch.cat([d_bias[: 2 * H], d_bias[3 * H :]])
    return [dx, *d_state, dw_ih, dw_hh, db_ih, db_hh, *d_extra]


def _call_kernel(function: str, precision: str, *calls: Scan) -> None:
    run = getattr(find_kernel(precision), f"{function}_{precision}")
    error = run((Scan * len(calls))(*calls), len(calls))
    if error == 1:
        raise RuntimeError("cell=fused got a tensor without memory of its own.")
    if error == 2:
        raise RuntimeError("engine=amx: the operating system does not allow AMX. Use engine=auto.")


def _contiguous_rows(x: Tensor) -> Tensor:
    """x (B, T, ·) as the kernel takes it: contiguous in the last axis, with any strides of B and T."""
    return x if x.stride(-1) == 1 else x.contiguous()


def as_operands(kind: str, weights: Sequence[Tensor]) -> Operands:
    """The weights of a layer as the kernel takes them: W_ih, W_hh, b_ih, b_hh (W_hh and b_hh None where the
    gates do not see h) and, if the kind has parameters of its own, one tensor of all. The matrices of a
    mogrifier's rounds are (rounds, I · H) there, or (rounds, rank, I + H) if each is a product of two."""
    if not KINDS[kind].reads_h:
        return weights[0], None, weights[1], None
    common, own = weights[:4], list(weights[4:])
    if kind == "mogrifier":
        numbers, (I, H) = torch.cat([weight.flatten() for weight in own]), (len(own[0]), weights[1].size(1))
        rank = own[0].size(1)
        own = [numbers.view(-1, I * H) if rank == H else numbers.view(-1, rank, I + H)]
    return [*common, torch.cat(own)] if own else common


def _operands(weights: Operands) -> tuple[Operands, list[int]]:
    """The weights as the kernel reads them, which must live while it runs, and five addresses."""
    held = [weight if weight is None or weight.is_contiguous() else weight.contiguous() for weight in weights]
    addresses = [_address(weight) for weight in held]
    return held, addresses if len(held) == 5 else [*addresses, 0]


def _addresses(state: Sequence[Tensor]) -> tuple[int, int]:
    """The addresses of h and c; 0 if there is no c."""
    return state[0].data_ptr(), state[1].data_ptr() if len(state) == 2 else 0


def _columns(weight_hh: Tensor | None) -> int:
    return 0 if weight_hh is None else weight_hh.size(1)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def run_differentiable_scan(
    kind: str,
    precision: str,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: Operands,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    y, *final = DifferentiableScan.apply(
        kind, precision, _contiguous_rows(x), lengths, reverse, *state, *weights
    )
    return y, final


class DifferentiableScan(torch.autograd.Function):
    """`run_scan` with its own backward pass. tensors: the members of the state, then the weights.

    Backward writes the gates' gradients over the gates; if it is called again, it first runs forward again.
    """

    @staticmethod
    def forward(ctx, kind, precision, x, lengths, reverse, *tensors):
        state, weights = split_state(kind, tensors)
        cells = x.size(0) * x.size(1) if lengths is None else int(lengths.sum())
        buffers = empty_buffers(kind, cells, x, state[0].size(-1), weights)
        y, final = run_scan(kind, precision, x, state, lengths, weights, reverse, buffers)
        saved = (x, lengths, y, *buffers, *tensors)
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        ctx.described = [_description(tensor) for tensor in saved] if hooked else None
        ctx.how, ctx.gates_overwritten = (kind, precision, reverse), False
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return y, *final

    @staticmethod
    def backward(ctx, dy, *d_final):
        refuse_other_derivatives((dy, *d_final))
        given = [d if d is None else d.resolve_neg() for d in (dy, *d_final)]
        if not are_plain([d for d in given if d is not None]):
            raise RuntimeError(
                "cell=fused got gradients of another device or type than the tensors of the call."
            )
        dy, *d_state = given
        saved: list[Any] = list(ctx.saved_tensors)
        if ctx.described is not None:
            if ctx.described != [_description(tensor) for tensor in saved]:
                raise RuntimeError(
                    "cell=fused cannot run backward: a hook on saved tensors changed shape, dtype or device."
                )
            saved = [None if tensor is None else tensor.contiguous() for tensor in saved]
        x, lengths, y, *rest = saved
        kind, precision, reverse = ctx.how
        buffers = rest[:3]
        state, weights = split_state(kind, rest[3:])
        scanned = (kind, precision, x, state, lengths, weights, reverse)
        if ctx.gates_overwritten:
            buffers = empty_buffers(kind, len(buffers[0]), x, y.size(-1), weights)
            run_scan(*scanned, buffers)
        ctx.gates_overwritten = True
        _, _, x_needs, _, _, *needs = ctx.needs_input_grad
        needs = (x_needs, *split_state(kind, needs)[1][:2])
        dx, *gradients = run_scan_backward(*scanned, needs, y, buffers, buffers[0], dy, d_state)
        return None, None, dx, None, None, *gradients


def _description(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def split_state(kind: str, tensors: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """What belongs to the members of the state, and what belongs to the weights."""
    members = min(2, len(KINDS[kind].state._fields))
    return tensors[:members], tensors[members:]
