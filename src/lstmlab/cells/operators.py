"""The native kernel as two operators of PyTorch, `lstmlab::scan` and `lstmlab::scan_backward`.

They are for whatever watches operators: torch.compile, torch.export, tracers, fake tensors, the FLOP counter,
and torch.func, which gets them through `TransformedScan`. A call that nothing watches goes straight to the
kernel (`native.run_scan`, `native.DifferentiableScan`), because an operator costs more.

The argument `extra` holds peephole weights (3H,), layer norm's gain (4H,) or a mogrifier's matrices. What
a kind does not have (minGRU has no weight_hh) is None as an argument and an empty tensor as a result.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import native
from .admission import is_compiled
from .derivatives import NO_FORWARD_MODE, NO_SECOND_DERIVATIVE
from .kinds import KINDS


def run_traced_scan(
    kind: str,
    precision: str,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: native.Operands,
    reverse: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The same as `native.run_scan`, through the operator."""
    transformed = not torch.compiler.is_compiling() and is_transformed()
    differentiable = torch.is_grad_enabled() and any(
        t.requires_grad for t in (x, *state, *weights) if t is not None
    )
    # torch.jit.trace runs with gradients, checks without them, and wants the same graph both times.
    keep = transformed or differentiable or torch._C._get_tracing_state() is not None
    operands = (*state, *[None] * (2 - len(state)), *weights, *[None] * (5 - len(weights)))
    run = TransformedScan.apply if transformed else scan
    y, *final = run(kind, precision, reverse, keep, x, lengths, *operands)
    return y, final[: len(state)]


def is_transformed() -> bool:
    """Whether torch.func, functionalize excepted, or forward-mode differentiation is at work."""
    if torch._C._are_functorch_transforms_active():
        top = torch._C._functorch.peek_interpreter_stack()
        return top.key() != torch._C._functorch.TransformType.Functionalize
    return forward_ad._current_level >= 0


@torch.library.custom_op("lstmlab::scan", mutates_args=(), device_types="cpu")
def scan(
    kind: str,
    precision: str,
    reverse: bool,
    keep: bool,
    x: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor | None,
    bias_ih: Tensor,
    bias_hh: Tensor | None,
    extra: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the final h and c and, with `keep`, the three buffers that backward needs. Any strides will do.

    Raises ValueError for shapes and dtypes that do not fit together, and for lengths out of range.
    """
    tensors = (h, c, weight_ih, weight_hh, bias_ih, bias_hh, extra)
    x, state, lengths, weights = _check_operands(kind, precision, x, lengths, tensors)
    cells = x.size(0) * x.size(1)
    buffers = native.empty_buffers(kind, cells, x, h.size(1), weights) if keep else [None] * 3
    y, final = native.run_scan(kind, precision, x, state, lengths, weights, reverse, buffers)
    return _results(x, y, *final, *[None] * (2 - len(final)), *buffers)


@scan.register_fake
def _(kind, precision, reverse, keep, x, lengths, h, c, *weights):
    (B, T, _), H = x.shape, h.size(1)
    final = [None if s is None else s.new_empty(s.shape) for s in (h, c)]
    buffers = native.empty_buffers(kind, B * T, x, H, weights) if keep else [None] * 3
    return _results(x, x.new_empty(B, T, H), *final, *buffers)


@torch.library.custom_op("lstmlab::scan_backward", mutates_args=(), device_types="cpu")
def scan_backward(
    kind: str,
    precision: str,
    reverse: bool,
    needs: Sequence[bool],
    x: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor | None,
    bias_ih: Tensor,
    bias_hh: Tensor | None,
    extra: Tensor | None,
    y: Tensor,
    gates: Tensor,
    cs: Tensor,
    norms: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, h, c and the five weights, given those of y and of the final h and c.

    needs: whether those of x, weight_ih and weight_hh are wanted; one that is not is an empty tensor.
    """
    tensors = (h, c, weight_ih, weight_hh, bias_ih, bias_hh, extra)
    x, state, lengths, weights = _check_operands(kind, precision, x, lengths, tensors)
    (B, T, _), H, cells = x.shape, h.size(1), x.size(0) * x.size(1)
    width = native.width_of_norms(kind, x.size(2), H, weights)
    expected = {
        "y": (y, (B, T, H)),
        "gates": (gates, (cells, native.COLUMNS[kind] * H)),
        "cs": (cs, (cells, state[1].size(1)) if len(state) == 2 else (0,)),
        "norms": (norms, (cells, width) if width else (0,)),
        "dy": (dy, (B, T, H)),
        "dh_n": (dh_n, (B, H)),
        "dc_n": (dc_n, state[-1].shape),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            _expect(name, tensor, shape, x.dtype)
    buffers = [buffer.contiguous() for buffer in (gates, cs, norms)]
    if kind == "mogrifier":
        buffers[2] = buffers[2].clone()  # Gradients overwrite it.
    dgates = torch.empty_like(buffers[0])  # Not the gates: an operator may not overwrite its arguments.
    dx, *gradients = native.run_scan_backward(
        *(kind, precision, x, state, lengths, weights, reverse),
        *(needs, y.contiguous(), buffers, dgates, dy, (dh_n, dc_n)[: len(state)]),
    )
    d_state, d_weights = native.split_state(kind, gradients)
    d_operands = (*d_state, *[None] * (2 - len(state)), *d_weights, *[None] * (5 - len(weights)))
    return _results(x, dx, *d_operands)


@scan_backward.register_fake
def _(kind, precision, reverse, needs, x, lengths, *tensors):
    x_needs, ih_needs, hh_needs = needs
    wanted = [x_needs, True, True, ih_needs, hh_needs, True, True, True]
    return _results(
        x,
        *(
            tensor.new_empty(tensor.shape) if tensor is not None and want else None
            for tensor, want in zip((x, *tensors[:7]), wanted, strict=True)
        ),
    )


def _results(x: Tensor, *tensors: Tensor | None) -> Any:
    return tuple(x.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _check_operands(
    kind: str, precision: str, x: Tensor, lengths: Tensor | None, tensors: Sequence[Tensor | None]
) -> tuple[Tensor, Sequence[Tensor], Tensor | None, native.Operands]:
    """x, state, lengths and weights for `native.run_scan`, checked, since anyone may call an operator.

    tensors: h, c, weight_ih, weight_hh, bias_ih, bias_hh, extra.
    """
    if not is_compiled(precision):
        raise RuntimeError(f"lstmlab::scan needs the native kernel, which has no {precision} here.")
    h, c, weight_ih, weight_hh, bias_ih, bias_hh, extra = tensors
    assert h is not None
    (B, T, I), H, rows = x.shape, h.size(-1), len(KINDS[kind].gates) * h.size(-1)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {"h": (h, (B, H))}
    if columns := len(KINDS[kind].state._fields) - 1:
        expected["c"] = (c, (B, columns * H))
    expected |= {"weight_ih": (weight_ih, (rows, I)), "bias_ih": (bias_ih, (rows,))}
    if KINDS[kind].reads_h:
        K = H if kind != "slstm" or weight_hh is None else weight_hh.size(-1)
        if H % K:
            raise ValueError(f"weight_hh has {K} columns, units of each head, which do not divide {H}.")
        expected |= {"weight_hh": (weight_hh, (rows, K)), "bias_hh": (bias_hh, (rows,))}
    if own := KINDS[kind].own:
        expected["extra"] = (extra, (sum(n for (n,) in own.values()) * H,))
    if kind == "mogrifier" and extra is not None and extra.dim() in (2, 3):
        rounds, rank, *_ = extra.shape
        expected["extra"] = (extra, (rounds, I * H) if extra.dim() == 2 else (rounds, rank, I + H))
    dtype = torch.float64 if precision == "f64" else torch.float32
    if B == 0 or T == 0:
        raise ValueError(f"x must have rows and steps, not {tuple(x.shape)}.")
    _expect("x", x, (B, T, I), dtype)
    present = {name: _expect(name, tensor, shape, dtype) for name, (tensor, shape) in expected.items()}
    state = [present[name].contiguous() for name in "hc" if name in present]
    weights = [present.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weights += [present[name] for name in ("extra",) if name in present]
    if kind == "mogrifier" and len(weights) < 5:
        raise ValueError("extra must hold the matrices of the mogrifier's rounds.")
    if lengths is not None:
        lengths = _expect("lengths", lengths, (B,), torch.int64).contiguous()
        if not 1 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be 1 to T={T}, not {lengths.tolist()}.")
    return x, state, lengths, weights


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
        found = None if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
        raise ValueError(f"{name} must be {shape} {dtype}, not {found}.")
    return tensor


class TransformedScan(torch.autograd.Function):
    """`scan` under torch.func, which needs an autograd.Function in place of an operator's formula."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        return scan(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        kind, precision, reverse, _, *tensors = inputs
        y, _, _, *buffers = output
        ctx.how = kind, precision, reverse
        ctx.mark_non_differentiable(*buffers)
        ctx.save_for_backward(*tensors, y, *buffers)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n, *_):
        _, _, _, _, x_needs, _, _, _, ih_needs, hh_needs, *_ = ctx.needs_input_grad
        dx, *d_tensors = TransformedScanBackward.apply(
            *ctx.how, [x_needs, ih_needs, hh_needs], *ctx.saved_tensors, dy, dh_n, dc_n
        )
        gradients = (None, None, None, None, dx, None, *d_tensors)
        return tuple(d if need else None for d, need in zip(gradients, ctx.needs_input_grad, strict=True))

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError(NO_FORWARD_MODE)


class TransformedScanBackward(torch.autograd.Function):
    """`scan_backward`, which refuses to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        return scan_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError(NO_SECOND_DERIVATIVE)

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError(NO_FORWARD_MODE)


def call_one_by_one(operator: Callable) -> Callable:
    """The operator's rule for vmap: one call per sample."""

    def rule(info, in_dims, *arguments):
        samples = []
        for i in range(info.batch_size):
            sample = [
                argument.select(dim, i) if isinstance(dim, int) else argument
                for argument, dim in zip(arguments, in_dims, strict=True)
            ]
            samples.append(operator(*sample))
        results = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
        return results, (0,) * len(results)

    return rule


scan.register_autograd(TransformedScan.backward, setup_context=TransformedScan.setup_context)
scan.register_vmap(call_one_by_one(scan))
scan_backward.register_vmap(call_one_by_one(scan_backward))


@register_flop_formula(torch.ops.lstmlab.scan)
def scan_flops(kind, precision, reverse, keep, x, lengths, h, c, weight_ih, weight_hh, *rest, **__) -> int:
    """The FLOPs of the products. The counter passes shapes in place of tensors."""
    (B, T, _), (rows, I) = x, weight_ih
    rounds = math.prod(rest[2]) if kind == "mogrifier" else 0
    return 2 * B * T * (rows * (I + (weight_hh[1] if weight_hh else 0)) + rounds)


@register_flop_formula(torch.ops.lstmlab.scan_backward)
def scan_backward_flops(
    kind, precision, reverse, needs, x, lengths, h, c, weight_ih, weight_hh, *rest, **__
) -> int:
    (B, T, _), (rows, I), (x_needs, ih_needs, hh_needs) = x, weight_ih, needs
    H, rounds = weight_hh[1] if weight_hh else 0, 0
    if kind == "mogrifier":  # whose rounds need the gradient of x
        rounds, x_needs = math.prod(rest[2]), True
    return 2 * B * T * (rows * (I * (x_needs + ih_needs) + H * (1 + hh_needs)) + 2 * rounds)
