"""The recurrence of the LSTM kinds in plain PyTorch with its own backward pass, as one autograd Function; and
that of the kinds that are linear in their state.

The gradients of a step's pre-activations are products of dc or dh and of factors that depend on no gradient.
So backward computes the factors of all steps at once, and its loop does little more than the matrix products.

Within a loop a view would cost as much as the arithmetic, so `unbind` makes those of all steps before it.
In bf16 autocast gates and h are bf16, while c keeps its own dtype.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import refuse_other_derivatives
from .scratch import STEPS


def run_recurrence(
    kind: str, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer forward in time: the arguments and the results are those of `Stack._run_steps`.

    Raises RuntimeError if the tensors are on several devices, which not every operation with out= notices.
    """
    devices = {str(tensor.device) for tensor in (x, *state, *weights)}
    if len(devices) > 1:
        raise RuntimeError(f"input, hx and weights are on several devices: {', '.join(sorted(devices))}.")
    (h, *c), (weight_ih, weight_hh, bias_ih, bias_hh, *own) = state, weights
    H, bias = h.size(-1), bias_ih + bias_hh

    gates_x = F.linear(x, weight_ih, None if kind == "layernorm" else bias)
    dtype = gates_x.dtype  # under autocast not that of x
    weight_hh, h = weight_hh.to(dtype), h.to(dtype)
    peepholes = torch.cat(own).view(3, H).to(dtype) if kind == "peephole" else None
    norm = torch.cat([*own, bias]).view(2, 4, H).to(dtype) if kind == "layernorm" else None
    hs, final_c = LSTMRecurrence.apply(gates_x, mask, weight_hh, peepholes, norm, h, *c)
    return hs, [hs[-1], final_c]


class LSTMRecurrence(torch.autograd.Function):
    """The gates are those of gates_x + W_hh·h; c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh(c').

    gates_x: (T, B, 4H), the share of the input, for all steps at once.
    mask: (T, B, 1) or None; where it is False, the state stays as it was.
    peepholes: (3, H), whose products with c, c and c' are added to i, f and o; or None.
    norm: (2, 4, H), gain and bias by which each gate's pre-activation is normalised over H; or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates_x: Tensor,
        mask: Tensor | None,
        weight_hh: Tensor,
        peepholes: Tensor | None,
        norm: Tensor | None,
        h: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, Tensor]:
        (T, B, _), H = gates_x.shape, h.size(-1)
        W_hh_t = weight_hh.t().contiguous()
        hs, cs = gates_x.new_empty(T + 1, B, H), c.new_empty(T + 1, B, H)
        hs[0], cs[0] = h, c
        gates = gates_x.new_empty(T, B, 4 * H)  # activated
        normalised: Any = None if norm is None else gates_x.new_empty(T, B, 4, H)
        scales: Any = None if norm is None else gates_x.new_empty(T, B, 4, 1)  # 1/σ

        x_t, h_t, c_t = gates_x.unbind(), hs.unbind(), cs.unbind()
        a_t, a4_t = gates.unbind(), gates.unflatten(-1, (4, H)).unbind()
        i_t, f_t, g_t, o_t = (gate.unbind() for gate in gates.split(H, -1))
        if_t = gates[..., : 2 * H].unbind()
        for t in range(T):
            torch.addmm(x_t[t], h_t[t], W_hh_t, out=a_t[t])
            if norm is not None:
                n, _, scales[t] = torch.native_layer_norm(a4_t[t], [H], None, None, 1e-5)
                normalised[t] = n
                torch.addcmul(norm[1], norm[0], n, out=a4_t[t])
            if peepholes is not None:
                a4_t[t][:, :2].addcmul_(peepholes[:2], c_t[t].unsqueeze(1))
            if_t[t].sigmoid_()
            g_t[t].tanh_()
            torch.mul(i_t[t], g_t[t], out=c_t[t + 1]).addcmul_(f_t[t], c_t[t])
            if peepholes is not None:
                o_t[t].addcmul_(peepholes[2], c_t[t + 1])
            torch.mul(o_t[t].sigmoid_(), c_t[t + 1].tanh(), out=h_t[t + 1])
            if mask is not None:
                torch.where(mask[t], h_t[t + 1], h_t[t], out=h_t[t + 1])
                torch.where(mask[t], c_t[t + 1], c_t[t], out=c_t[t + 1])
        ctx.save_for_backward(gates, hs, cs, normalised, scales, mask, weight_hh, peepholes, norm)
        return hs[1:], cs[-1]

    @staticmethod
    def backward(ctx: Any, d_hs: Tensor, d_c: Tensor) -> Any:
        refuse_other_derivatives((d_hs, d_c))
        gates, hs, cs, normalised, scales, mask, weight_hh, peepholes, norm = ctx.saved_tensors
        H = d_hs.size(-1)
        d_gates, dh_to_dc, dc_to_dc = _lstm_factors(gates, cs, mask, peepholes)
        # Of gates_x + W_hh·h: layer norm's derivative lies between that and the gates.
        d_a = d_gates if norm is None else torch.empty_like(gates)

        d_ifg_t = d_gates[..., : 3 * H].unflatten(-1, (3, H)).unbind()
        d_o_t, d4_t = d_gates[..., 3 * H :].unbind(), d_gates.unflatten(-1, (4, H)).unbind()
        d_a_t, d_a4_t, d_h_t = d_a.unbind(), d_a.unflatten(-1, (4, H)).unbind(), d_hs.unbind()
        passes_t = None if mask is None else (~mask).unbind()  # padding passes dh on
        dh, dc = d_h_t[-1], d_c.clone()
        for t in reversed(range(len(d_gates))):
            dc.addcmul_(dh, dh_to_dc[t])
            d_ifg_t[t].mul_(dc.unsqueeze(1))
            d_o_t[t].mul_(dh)
            dc.mul_(dc_to_dc[t])
            if norm is not None:
                n, d_n = normalised[t], d4_t[t] * norm[0]
                d_n -= d_n.mean(-1, keepdim=True) + n * (d_n * n).mean(-1, keepdim=True)
                torch.mul(d_n, scales[t], out=d_a4_t[t])
            d_h_before = torch.addmm(d_h_t[t - 1] if t else torch.zeros_like(dh), d_a_t[t], weight_hh)
            dh = d_h_before if passes_t is None else d_h_before.addcmul_(dh, passes_t[t])

        d_weight_hh = d_a.flatten(0, 1).t() @ hs[:-1].flatten(0, 1)
        d_peepholes = d_norm = None
        if peepholes is not None:
            d_i, d_f, _, d_o = d_gates.split(H, -1)
            pairs = ((d_i, cs[:-1]), (d_f, cs[:-1]), (d_o, cs[1:]))
            d_peepholes = torch.stack([(d * c).sum((0, 1)) for d, c in pairs])
        if norm is not None:
            d_outer = d_gates.view_as(normalised)
            d_norm = torch.stack([(d_outer * normalised).sum((0, 1)), d_outer.sum((0, 1))])
        return d_a, None, d_weight_hh, d_peepholes, d_norm, dh, dc


def _lstm_factors(
    gates: Tensor, cs: Tensor, mask: Tensor | None, peepholes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """∂(i, f, g)/∂a without dc' and ∂o/∂a without dh', as (T, B, 4H); ∂c'/∂h' and ∂c/∂c', each (T, B, H)."""
    i, f, g, o = gates.split(gates.size(-1) // 4, -1)
    d_gates = torch.empty_like(gates)
    d_i, d_f, d_g, d_o = d_gates.split(gates.size(-1) // 4, -1)
    tanh_c = cs[1:].tanh()
    torch.mul(1 - i, i, out=d_i).mul_(g)
    torch.mul(1 - f, f, out=d_f).mul_(cs[:-1])
    torch.mul(1 - g**2, i, out=d_g)
    torch.mul(1 - o, o, out=d_o).mul_(tanh_c)
    dh_to_dc = (1 - tanh_c.square_()).mul_(o)
    dc_to_dc = f
    if peepholes is not None:
        dh_to_dc = dh_to_dc.addcmul_(d_o, peepholes[2])
        dc_to_dc = f + d_i * peepholes[0] + d_f * peepholes[1]
    if mask is not None:
        d_gates.mul_(mask)
        dh_to_dc = dh_to_dc * mask
        dc_to_dc = torch.where(mask, dc_to_dc, 1)
    return d_gates, dh_to_dc, dc_to_dc


def run_linear_recurrence(
    kind: str, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """As `run_recurrence`, for kinds whose steps are linear, h' = a ⊙ h + b. Two such steps are one again, so
    T steps take log₂ T passes over all of them (Hillis & Steele 1986)."""
    [h] = state
    a, b = STEPS[kind](*weights).terms(x)  # (T, B, H)
    a, b = a.to(h.dtype), b.to(h.dtype)  # under autocast not yet
    if mask is not None:
        a, b = torch.where(mask, a, 1), b.masked_fill(~mask, 0)
    b = torch.cat([torch.addcmul(b[:1], a[:1], h), b[1:]])
    step = 1
    while step < len(b):
        b = torch.cat([b[:step], torch.addcmul(b[step:], a[step:], b[:-step])])
        a = torch.cat([a[:step], a[step:] * a[:-step]])
        step *= 2
    return b, [b[-1]]
