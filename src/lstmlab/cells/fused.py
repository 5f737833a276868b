"""The fast cell: one GEMM for all gates of a step, and its own backward pass.

On the CPU a native kernel runs the recurrence (`native`). Elsewhere, without a C++ compiler, and in bf16 on a
CPU that does not multiply it (AVX512-BF16), `Recurrence` does, in plain PyTorch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import native, operators
from .base import Weights, is_traced
from .builtin import run_operator
from .recurrence import run_recurrence
from .scratch import run_steps
from .stack import Scan, Stack


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
        return self._stored(run_recurrence)(self.kind, x, state, mask, weights)

    def _stored(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, what its backward pass needs being stored, or computed again there."""
        if not self.recompute:
            return function
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
