"""The fast cell: one matrix product for all gates of a step, and its own backward pass.

On the CPU a native kernel runs the recurrence (`native`). Elsewhere, without a C++ compiler, and in bf16 on a
CPU without AVX512-BF16, `recurrence` runs it in plain PyTorch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import native, operators
from .admission import PLAIN_TYPES, admit
from .base import Weights, is_traced
from .builtin import run_operator
from .recurrence import run_recurrence
from .scratch import run_steps
from .stack import LayerScan, Stack


class FusedCell(Stack):
    """Any kind of cell, fast. It refuses second derivatives and forward-mode differentiation.

    engine: auto, or plain to do without the native kernel.
    """

    engine = "auto"

    def _run_layers(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        lengths: Tensor | None,
        weights: list[Weights],
        scan: LayerScan | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        if self.proj_size:
            return run_operator(self, x, state, lengths, weights)
        if self.engine == "plain" or not x.is_cpu:
            return super()._run_layers(x, state, lengths, weights)
        if lengths is not None:
            lengths = lengths.cpu().long().contiguous()
        flat = [weight for layer in weights for weight in layer]
        precision, plain = admit(x, state, lengths, flat)
        if precision is None:
            return super()._run_layers(x, state, lengths, weights)

        dtype = flat[0].dtype
        x = x if x.dtype is dtype else x.to(dtype)
        state = [s if s.dtype is dtype and s.is_contiguous() else s.to(dtype).contiguous() for s in state]
        if self.kind == "peephole":
            weights = [[*layer[:4], torch.cat(list(layer[4:]))] for layer in weights]
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *flat))
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        one_step = x.size(1) == 1 and lengths is None and not self.bidirectional and not drops
        if plain and one_step and not differentiable:  # as in decoding
            return native.run_step(self.kind, x, state, weights)
        run = native.run_scan if not differentiable else native.run_differentiable_scan
        scan = partial(run if plain else operators.run_traced_scan, self.kind, precision)
        return super()._run_layers(
            x, state, lengths, weights, self._checkpointed(scan) if differentiable else scan
        )

    def _run_steps(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Sequence[Tensor]]:
        tensors = [x, *state, *weights]
        # A tracer would not see into an autograd Function, so it sees the equations.
        if is_traced() or not all(
            type(tensor) in PLAIN_TYPES and not torch._is_functional_tensor(tensor) for tensor in tensors
        ):
            states = [state for state, _ in run_steps(self.kind, x, state, mask, weights)]
            return torch.stack([h for h, *_ in states]), states[-1]
        return self._checkpointed(run_recurrence)(self.kind, x, state, mask, weights)

    def _checkpointed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; with recompute=True, its backward pass computes again what it else would store."""
        if not self.recompute:
            return function
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
