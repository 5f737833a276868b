"""The recurrence in plain PyTorch with its own backward pass, one autograd Function per family of cells.

Each takes gates_x (T, B, ·), the share of the gates that comes from the input, for all steps at once; a mask
(T, B, 1) or None; W_hh; and the state before the first step, each (B, H). It returns h after each step,
(T, B, H), and the LSTM also the final c. Where the mask is False, the state stays as it was.

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

    if kind == "gru":
        gates_x = F.linear(x, weight_ih, bias_ih)
    else:
        gates_x = F.linear(x, weight_ih, None if kind == "layernorm" else bias)
    dtype = gates_x.dtype  # under autocast not that of x
    weight_hh, h = weight_hh.to(dtype), h.to(dtype)
    if kind == "rnn":
        hs = RNNRecurrence.apply(gates_x, mask, weight_hh, h)
        return hs, [hs[-1]]
    if kind == "gru":
        hs = GRURecurrence.apply(gates_x, mask, weight_hh, bias_hh.to(dtype), h)
        return hs, [hs[-1]]

    peepholes = torch.cat(own).view(3, H).to(dtype) if kind == "peephole" else None
    norm = torch.cat([*own, bias]).view(2, 4, H).to(dtype) if kind == "layernorm" else None
    hs, final_c = LSTMRecurrence.apply(gates_x, mask, weight_hh, peepholes, norm, h, *c)
    return hs, [hs[-1], final_c]


def _step_back(
    t: int,
    dh: Tensor,
    d_h_t: Sequence[Tensor],
    d_a: Tensor,
    weight_hh: Tensor,
    dh_to_dh_t: Sequence[Tensor] | None,
) -> Tensor:
    """The gradient of h before step t, given dh of h after it.

    d_h_t: those of the outputs · d_a: of W_hh·h at step t · dh_to_dh_t: what share of dh passes
    each step without the gates: all of it in padding, and z in a GRU.
    """
    d_h_before = d_h_t[t - 1] if t else torch.zeros_like(dh)
    d_h_before = torch.addmm(d_h_before, d_a, weight_hh)
    return d_h_before if dh_to_dh_t is None else d_h_before.addcmul_(dh, dh_to_dh_t[t])


class RNNRecurrence(torch.autograd.Function):
    """h' = tanh(a), with a = gates_x + W_hh·h."""

    @staticmethod
    def forward(ctx: Any, gates_x: Tensor, mask: Tensor | None, weight_hh: Tensor, h: Tensor) -> Tensor:
        T, B, H = gates_x.shape
        W_hh_t = weight_hh.t().contiguous()
        hs = gates_x.new_empty(T + 1, B, H)
        hs[0] = h
        x_t, h_t = gates_x.unbind(), hs.unbind()
        for t in range(T):
            torch.addmm(x_t[t], h_t[t], W_hh_t, out=h_t[t + 1]).tanh_()
            if mask is not None:
                torch.where(mask[t], h_t[t + 1], h_t[t], out=h_t[t + 1])
        ctx.save_for_backward(hs, mask, weight_hh)
        return hs[1:]

    @staticmethod
    def backward(ctx: Any, d_hs: Tensor) -> Any:
        refuse_other_derivatives((d_hs,))
        hs, mask, weight_hh = ctx.saved_tensors
        d_a = 1 - hs[1:] ** 2  # at first without the factor dh'
        if mask is not None:
            d_a.mul_(mask)
        d_a_t, d_h_t = d_a.unbind(), d_hs.unbind()
        dh_to_dh_t = None if mask is None else (~mask).unbind()
        dh = d_h_t[-1]
        for t in reversed(range(len(d_a))):
            d_a_t[t].mul_(dh)
            dh = _step_back(t, dh, d_h_t, d_a_t[t], weight_hh, dh_to_dh_t)
        d_weight_hh = d_a.flatten(0, 1).t() @ hs[:-1].flatten(0, 1)
        return d_a, None, d_weight_hh, dh


class GRURecurrence(torch.autograd.Function):
    """r and z are σ of gates_x + W_hh·h + b_hh, n = tanh(gates_x + r ⊙ (W_hn·h + b_hn)), and
    h' = (1 − z) ⊙ n + z ⊙ h; gates_x holds b_ih."""

    @staticmethod
    def forward(
        ctx: Any, gates_x: Tensor, mask: Tensor | None, weight_hh: Tensor, bias_hh: Tensor, h: Tensor
    ) -> Tensor:
        (T, B, _), H = gates_x.shape, h.size(-1)
        W_hh_t = weight_hh.t().contiguous()
        hs = gates_x.new_empty(T + 1, B, H)
        hs[0] = h
        gates = gates_x.new_empty(T, B, 4 * H)  # activated: r, z, n, and W_hn·h + b_hn
        x_t, h_t = gates_x.unbind(), hs.unbind()
        r_t, z_t, n_t, hidden_n_t = (gate.unbind() for gate in gates.split(H, -1))
        rz_t = gates[..., : 2 * H].unbind()
        for t in range(T):
            x_rz, x_n = x_t[t].split([2 * H, H], -1)
            hidden_rz, hidden_n = torch.addmm(bias_hh, h_t[t], W_hh_t).split([2 * H, H], -1)
            torch.add(x_rz, hidden_rz, out=rz_t[t]).sigmoid_()
            torch.addcmul(x_n, r_t[t], hidden_n_t[t].copy_(hidden_n), out=n_t[t]).tanh_()
            torch.lerp(n_t[t], h_t[t], z_t[t], out=h_t[t + 1])
            if mask is not None:
                torch.where(mask[t], h_t[t + 1], h_t[t], out=h_t[t + 1])
        ctx.save_for_backward(gates, hs, mask, weight_hh)
        return hs[1:]

    @staticmethod
    def backward(ctx: Any, d_hs: Tensor) -> Any:
        refuse_other_derivatives((d_hs,))
        gates, hs, mask, weight_hh = ctx.saved_tensors
        H = d_hs.size(-1)
        r, z, n, hidden_n = gates.split(H, -1)
        d_gates = torch.empty_like(gates)  # n first, so that what W_hh·h reaches lies together; without dh'
        d_n, d_r, d_z, d_hidden_n = d_gates.split(H, -1)
        torch.mul(1 - z, 1 - n**2, out=d_n)
        torch.mul(d_n, r, out=d_hidden_n)
        torch.mul(d_hidden_n, 1 - r, out=d_r).mul_(hidden_n)
        torch.mul(hs[:-1] - n, z, out=d_z).mul_(1 - z)
        if mask is not None:
            d_gates.mul_(mask)
        dh_to_dh_t = (z if mask is None else torch.where(mask, z, 1)).unbind()

        d_t, d_h_t = d_gates.unflatten(-1, (4, H)).unbind(), d_hs.unbind()
        d_hidden = d_gates[..., H:]  # of W_hh·h + b_hh: r, z and n
        d_hidden_t = d_hidden.unbind()
        dh = d_h_t[-1]
        for t in reversed(range(len(d_gates))):
            d_t[t].mul_(dh.unsqueeze(1))
            dh = _step_back(t, dh, d_h_t, d_hidden_t[t], weight_hh, dh_to_dh_t)

        d_gates_x = torch.cat([d_gates[..., H : 3 * H], d_n], -1)
        d_hidden = d_hidden.flatten(0, 1)
        d_weight_hh = d_hidden.t() @ hs[:-1].flatten(0, 1)
        return d_gates_x, None, d_weight_hh, d_hidden.sum(0), dh


class LSTMRecurrence(torch.autograd.Function):
    """The gates are those of gates_x + W_hh·h; c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh(c').

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
        dh_to_dh_t = None if mask is None else (~mask).unbind()
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
            dh = _step_back(t, dh, d_h_t, d_a_t[t], weight_hh, dh_to_dh_t)

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
