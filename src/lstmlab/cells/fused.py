"""The fast cell: one GEMM for all gates of a step, and its own backward pass.

On the CPU a native kernel runs the recurrence (`native`). Elsewhere, without a C++ compiler, and in bf16 on a
CPU that does not multiply it (AVX512-BF16), `Recurrence` does, in plain PyTorch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import native, operators
from .base import Weights, is_traced
from .builtin import run_operator
from .scratch import run_steps
from .stack import Scan, Stack


class Recurrence(torch.autograd.Function):
    """One layer over all steps, given the input's share of the gates.

    The gradients of a step's pre-activations are products of dc or dh and factors that depend on no gradient.
    So backward computes the factors of all steps at once, and its loop does little more than the GEMMs.
    In bf16 autocast gates and h are bf16, while c stays in its own dtype.
    """

    @staticmethod
    def forward(ctx, kind, gates_x, mask, weight_hh, own, h, c):
        """gates_x: W_ih·x + b (T, B, ·), b being both biases; layer norm none; GRU b_ih
        mask: (T, B, 1) or None · h, c: (B, H), GRU and RNN: c None
        own: peephole weights (3, H); layer norm gain and bias (2, 4, H); GRU b_hh (3H,); else None
        → h after each step (T, B, H), final c."""
        T, B, _ = gates_x.shape
        H = h.size(-1)
        W_hh_t = weight_hh.t().contiguous()
        hs = gates_x.new_empty(T + 1, B, H)
        gates = gates_x.new_empty(
            T, B, H if kind == "rnn" else 4 * H
        )  # activated; GRU: r, z, n, W_hn·h + b_hn
        cs: Any = None
        normalised: Any = None
        norms: Any = None
        hs[0] = h
        if c is not None:
            cs = c.new_empty(T + 1, B, H)
            cs[0] = c
        if kind == "layernorm":
            normalised = gates_x.new_empty(T, B, 4, H)
            norms = gates_x.new_empty(T, B, 4, 1)

        # Views of each step, made at once: in the loop each would cost as much as the arithmetic.
        x_t, h_t, a_t, a4_t = (
            gates_x.unbind(),
            hs.unbind(),
            gates.unbind(),
            gates.unflatten(-1, (-1, H)).unbind(),
        )
        parts = [part.unbind() for part in gates.split(H, -1)]
        first_two = gates[..., : 2 * H].unbind()
        c_t = () if cs is None else cs.unbind()
        for t in range(T):
            a, h_next = a_t[t], h_t[t + 1]
            if kind == "rnn":
                torch.addmm(x_t[t], h_t[t], W_hh_t, out=h_next).tanh_()
            elif kind == "gru":
                r, z, n, hidden_n = (part[t] for part in parts)
                x_rz, x_n = x_t[t].split([2 * H, H], -1)
                hidden_rz, new = torch.addmm(own, h_t[t], W_hh_t).split([2 * H, H], -1)
                torch.add(x_rz, hidden_rz, out=first_two[t]).sigmoid_()
                torch.addcmul(x_n, r, hidden_n.copy_(new), out=n).tanh_()
                torch.lerp(n, h_t[t], z, out=h_next)
            else:
                i, f, g, o = (part[t] for part in parts)
                c_next = c_t[t + 1]
                torch.addmm(x_t[t], h_t[t], W_hh_t, out=a)
                if kind == "layernorm":
                    n, _, norms[t] = torch.native_layer_norm(a4_t[t], [H], None, None, 1e-5)
                    normalised[t] = n
                    torch.addcmul(own[1], own[0], n, out=a4_t[t])
                if kind == "peephole":
                    a4_t[t][:, :2].addcmul_(own[:2], c_t[t].unsqueeze(1))
                first_two[t].sigmoid_()
                g.tanh_()
                torch.mul(i, g, out=c_next).addcmul_(f, c_t[t])
                if kind == "peephole":
                    o.addcmul_(own[2], c_next)
                torch.mul(o.sigmoid_(), c_next.tanh(), out=h_next)
            if mask is not None:
                torch.where(mask[t], h_next, h_t[t], out=h_next)
                if cs is not None:
                    torch.where(mask[t], c_t[t + 1], c_t[t], out=c_t[t + 1])
        ctx.kind = kind
        ctx.save_for_backward(gates, hs, cs, normalised, norms, mask, weight_hh, own)
        return hs[1:], None if cs is None else cs[-1]

    @staticmethod
    def backward(ctx, d_hs, d_c):
        native.refuse_other_gradients((d_hs, d_c))
        gates, hs, cs, normalised, norms, mask, weight_hh, own = ctx.saved_tensors
        kind = ctx.kind
        H = d_hs.size(-1)
        d_gates = torch.empty_like(gates)  # at first its factors
        d_parts = d_gates.split(H, -1)
        dh_to_dc: Any = None
        dc_to_dc: Any = None
        dh_to_dh: Any = None  # the ways that do not pass the pre-activations
        hidden = slice(None)  # the columns that W_hh·h reaches
        if kind == "rnn":
            torch.sub(1, hs[1:] ** 2, out=d_gates)
        elif kind == "gru":
            r, z, n, hidden_n = gates.split(H, -1)
            d_n, d_r, d_z, d_hidden_n = d_parts
            torch.mul(1 - z, 1 - n**2, out=d_n)
            torch.mul(d_n, r, out=d_hidden_n)
            torch.mul(d_hidden_n, 1 - r, out=d_r).mul_(hidden_n)
            torch.mul(hs[:-1] - n, z, out=d_z).mul_(1 - z)
            dh_to_dh = z
            hidden = slice(H, None)
        else:
            i, f, g, o = gates.split(H, -1)
            d_i, d_f, d_g, d_o = d_parts
            tanh_c = cs[1:].tanh()
            torch.mul(1 - i, i, out=d_i).mul_(g)
            torch.mul(1 - f, f, out=d_f).mul_(cs[:-1])
            torch.mul(1 - g**2, i, out=d_g)
            torch.mul(1 - o, o, out=d_o).mul_(tanh_c)
            dh_to_dc = (1 - tanh_c.square_()).mul_(o)
            dc_to_dc = f
            if kind == "peephole":
                dh_to_dc = dh_to_dc.addcmul_(d_o, own[2])
                dc_to_dc = f + d_i * own[0] + d_f * own[1]
        if mask is not None:
            d_gates.mul_(mask)
            dh_to_dh = ~mask if dh_to_dh is None else torch.where(mask, dh_to_dh, 1)
            if cs is not None:
                dh_to_dc = dh_to_dc * mask
                dc_to_dc = torch.where(mask, dc_to_dc, 1)

        d_normed: Any = torch.empty_like(normalised) if kind == "layernorm" else None
        d_pre = d_gates if d_normed is None else d_normed.flatten(2)
        d_i_f_g = d_gates[..., : 3 * H].unflatten(-1, (-1, H))
        steps = zip(
            *(d_gates.unflatten(-1, (-1, H)).unbind(), d_i_f_g.unbind(), d_parts[-1].unbind()),
            *(d_pre[..., hidden].unbind(), [torch.zeros_like(d_hs[0]), *d_hs[:-1].unbind()]),
            strict=True,
        )
        dh, dc = d_hs[-1], None if d_c is None else d_c.clone()
        for t, (d_all, d_by_c, d_by_h, d_hidden, d_h_before) in reversed(list(enumerate(steps))):
            if dc is None:
                d_all.mul_(dh.unsqueeze(1))
            else:
                dc.addcmul_(dh, dh_to_dc[t])
                d_by_c.mul_(dc.unsqueeze(1))
                d_by_h.mul_(dh)
                dc.mul_(dc_to_dc[t])
            if kind == "layernorm":
                n, d_n = normalised[t], d_all * own[0]
                d_n -= d_n.mean(-1, keepdim=True) + n * (d_n * n).mean(-1, keepdim=True)
                torch.mul(d_n, norms[t], out=d_normed[t])
            d_before = torch.addmm(d_h_before, d_hidden, weight_hh)
            dh = d_before if dh_to_dh is None else d_before.addcmul_(dh, dh_to_dh[t])

        d_hidden = d_pre[..., hidden].flatten(0, 1)
        d_own = None
        if kind == "gru":
            d_own = d_hidden.sum(0)
            d_pre = torch.cat([d_gates[..., H : 3 * H], d_gates[..., :H]], -1)
        if kind == "peephole":
            seen = (cs[:-1], cs[:-1], cs[1:])
            d_own = torch.stack([(d * c).sum((0, 1)) for d, c in zip((d_i, d_f, d_o), seen, strict=True)])
        if kind == "layernorm":
            d_outer = d_gates.view_as(normalised)
            d_own = torch.stack([(d_outer * normalised).sum((0, 1)), d_outer.sum((0, 1))])
        d_weight_hh = d_hidden.t() @ hs[:-1].flatten(0, 1)
        return None, d_pre, None, d_weight_hh, d_own, dh, dc


class FusedCell(Stack):
    """Any kind of cell, fast. Differentiating it twice, or in forward mode, is refused.

    recompute: run each layer again in the backward pass instead of storing its gates.
    engine: auto, or plain to do without the native kernel.
    """

    engine = "auto"

    def _layers(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        lengths: Tensor | None,
        weights: list[Weights],
        scan: Scan | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        if self.proj_size:
            return run_operator(self, x, state, lengths, weights)
        if self.engine == "plain" or not x.is_cpu:
            return super()._layers(x, state, lengths, weights)
        if lengths is not None:
            lengths = lengths.cpu().long().contiguous()
        flat = [weight for layer in weights for weight in layer]
        precision, plain = native.admit(x, state, lengths, flat)
        if precision is None:
            return super()._layers(x, state, lengths, weights)

        dtype = flat[0].dtype
        x = x if x.dtype is dtype else x.to(dtype)
        state = [s if s.dtype is dtype and s.is_contiguous() else s.to(dtype).contiguous() for s in state]
        if self.kind == "peephole":
            weights = [[*layer[:4], torch.cat(list(layer[4:]))] for layer in weights]
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *flat))
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        one_step = x.size(1) == 1 and lengths is None and not self.bidirectional and not drops
        if plain and one_step and not differentiable:  # as in decoding
            return native.step(self.kind, x, state, weights)
        run = native.scan if not differentiable else native.differentiable_scan
        scan = partial(run if plain else operators.traced_scan, self.kind, precision)
        return super()._layers(x, state, lengths, weights, self._stored(scan) if differentiable else scan)

    def _steps(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Sequence[Tensor]]:
        tensors = [x, *state, *weights]
        if is_traced() or not all(  # what sees operators, sees the equations
            type(tensor) in native.PLAIN_TYPES and not torch._is_functional_tensor(tensor)
            for tensor in tensors
        ):
            states = [state for state, _ in run_steps(self.kind, x, state, mask, weights)]
            return torch.stack([h for h, *_ in states]), states[-1]
        hs, *c = self._stored(self._recurrence)(x, mask, *state, *weights)
        return hs, (hs[-1], *c)

    def _recurrence(self, x: Tensor, mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        devices = {str(tensor.device) for tensor in (x, *tensors)}
        if len(devices) > 1:  # not every operation with out= looks
            raise RuntimeError(f"input, hx and weights are on several devices: {', '.join(sorted(devices))}.")
        (h, *c), (weight_ih, weight_hh, bias_ih, bias_hh, *own) = native.split(self.kind, tensors)
        bias: Any = bias_ih + bias_hh
        if self.kind == "layernorm":
            own, bias = [*own, bias], None
        elif self.kind == "gru":
            own, bias = [bias_hh], bias_ih
        gates_x = F.linear(x, weight_ih, bias)  # (T, B, 4H)
        dtype = gates_x.dtype  # under autocast not that of x
        shape = {"gru": (-1,), "layernorm": (2, 4, self.hidden_size)}.get(self.kind, (3, self.hidden_size))
        stacked = torch.cat(own).view(shape).to(dtype) if own else None
        args: Any = (self.kind, gates_x, mask, weight_hh.to(dtype), stacked, h.to(dtype), *(c or (None,)))
        hs, last = Recurrence.apply(*args)
        return (hs,) if last is None else (hs, last)

    def _stored(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, what its backward pass needs being stored, or computed again there."""
        if not self.recompute:
            return function
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
