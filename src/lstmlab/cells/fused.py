"""The fast LSTM: all four gates in one GEMM a step, and its own backward pass.

The input's share of the gates is one GEMM for all steps before the loop, left to autograd, which
so finds dx and dW_ih by one GEMM each; dW_hh is one GEMM after the backward loop.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Stack


class LSTMFunction(torch.autograd.Function):
    """The recurrence, given the gates' input share W_ih·x + b of all steps.

    In bf16 autocast the gates and h are bf16, while c stays in its own dtype.
    """

    @staticmethod
    def forward(ctx, gates_x, h, c, weight_hh, mask):
        """gates_x (T, B, 4H), h and c (B, H), weight_hh (4H, H), mask (T, B, 1) or None
        → h after each step (T, B, H), final c (B, H)."""
        T, B, _ = gates_x.shape
        H = h.size(-1)
        gates = torch.empty_like(gates_x)  # activated
        hs = gates_x.new_empty(T + 1, B, H)
        cs = c.new_empty(T + 1, B, H)
        hs[0], cs[0] = h, c
        W_hh_t = weight_hh.t().contiguous()
        for t in range(T):
            torch.addmm(gates_x[t], hs[t], W_hh_t, out=gates[t])
            i, f, g, o = gates[t].chunk(4, -1)
            gates[t, :, : 2 * H].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.add(f * cs[t], i * g, out=cs[t + 1])
            torch.mul(o, cs[t + 1].tanh(), out=hs[t + 1])
            if mask is not None:
                torch.where(mask[t], hs[t + 1], hs[t], out=hs[t + 1])
                torch.where(mask[t], cs[t + 1], cs[t], out=cs[t + 1])
        ctx.save_for_backward(gates, hs, cs, weight_hh, mask)
        return hs[1:], cs[-1]

    @staticmethod
    def backward(ctx, d_hs, d_c):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The fused cell has no second derivative (create_graph=True): use cell=scratch."
            )
        gates, hs, cs, weight_hh, mask = ctx.saved_tensors
        T, B, H = d_hs.shape
        d_gates = torch.empty_like(gates)
        d_h = torch.zeros_like(d_hs[0])
        for t in reversed(range(T)):
            d_h = d_h + d_hs[t]
            d_h_kept, d_c_kept = d_h, d_c
            if mask is not None:
                d_h, d_c = d_h * mask[t], d_c * mask[t]
            i, f, g, o = gates[t].chunk(4, -1)
            d_i, d_f, d_g, d_o = d_gates[t].chunk(4, -1)
            tanh_c = cs[t + 1].tanh()
            d_c = d_c + d_h * o * (1 - tanh_c**2)
            d_i.copy_(d_c * g * i * (1 - i))
            d_f.copy_(d_c * cs[t] * f * (1 - f))
            d_g.copy_(d_c * i * (1 - g**2))
            d_o.copy_(d_h * tanh_c * o * (1 - o))
            d_c = d_c * f
            d_h = d_gates[t] @ weight_hh
            if mask is not None:
                d_c = torch.where(mask[t], d_c, d_c_kept)
                d_h = torch.where(mask[t], d_h, d_h_kept)
        d_weight_hh = d_gates.view(T * B, 4 * H).t() @ hs[:-1].view(T * B, H)
        return d_gates, d_h, d_c, d_weight_hh, None


class FusedCell(Stack):
    """The LSTM, fast. Twice differentiating it is refused."""

    def _scan(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        h, c = state
        gates_x = F.linear(x, weight_ih, bias_ih + bias_hh)  # (T, B, 4H)
        dtype = gates_x.dtype  # under autocast not that of x
        hs, c = LSTMFunction.apply(gates_x, h.to(dtype), c, weight_hh.to(dtype), mask)
        return hs, (hs[-1], c)
