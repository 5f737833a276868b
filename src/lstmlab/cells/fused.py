"""The fast cell. For each call it takes the engine that `engines` names: the native kernel for the CPU
(`native`), PyTorch's operator (`builtin`), or a loop in plain PyTorch (`recurrence`)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import native, operators
from .admission import CAST_BY_AUTOCAST, admit, is_watched
from .base import Weights
from .builtin import OPERATORS, run_operator, run_operator_scan
from .cpu import find_cpu
from .engines import Call, choose_engine, operator_casts_to_bf16
from .kinds import KINDS
from .recurrence import run_linear_recurrence, run_recurrence
from .scratch import run_steps
from .stack import LayerScan, Stack


class FusedCell(Stack):
    """Any kind of cell, fast. The native kernel and the plain loop refuse second derivatives and forward-mode
    differentiation.

    Raises ValueError if the option `engine` forces one that cannot take the tensors of a call.
    """

    def _run_layers(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        lengths: Tensor | None,
        weights: list[Weights],
        scan: LayerScan | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        if x.is_cpu and lengths is not None:
            lengths = lengths.cpu().long().contiguous()
        flat = [weight for layer in weights for weight in layer]
        precision, plain = None, False
        if x.is_cpu and not self.proj_size:
            precision, plain = admit(x, state, lengths, flat, self.engine == "amx")
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *flat))
        if plain or (precision is None and not is_watched([x, *state, *flat])):
            engine = self._choose_engine(x, lengths, precision is not None, differentiable)
        elif precision is not None:
            engine = "native"
        elif self.kind in OPERATORS and torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return self._run_untraced_operator(x, state, lengths, weights)
        else:
            equations = partial(self._scan_layer, steps=self._run_equations)
            return super()._run_layers(x, state, lengths, weights, equations)
        if engine == "torch":
            return self._run_operator(x, state, lengths, weights)
        if engine == "plain":
            return super()._run_layers(x, state, lengths, weights)

        assert precision is not None
        dtype = flat[0].dtype
        x = x if x.dtype is dtype else x.to(dtype)
        state = [s if s.dtype is dtype and s.is_contiguous() else s.to(dtype).contiguous() for s in state]
        H, names = self.hidden_size, self._state_type._fields
        if len(names) > 2:  # The kernel takes c, n and m as one.
            state = [state[0], torch.cat(list(state[1:]), -1)]
        operands: Any = [native.as_operands(self.kind, layer) for layer in weights]
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        one_step = x.size(1) == 1 and lengths is None and not self.bidirectional and not drops
        if plain and one_step and not differentiable:  # as in decoding
            output, (h, *c) = native.run_step(self.kind, x, state, operands)
            return output, [h, *(s for cs in c for s in cs.split(H, -1))]
        run = native.run_scan if not differentiable else native.run_differentiable_scan
        scan = partial(run if plain else operators.run_traced_scan, self.kind, precision)
        scan = self._checkpointed(scan) if differentiable else scan
        output, (h, *c) = super()._run_layers(x, state, lengths, operands, scan)
        return output, [h, *(s for cs in c for s in cs.split(H, -1))]

    def _choose_engine(self, x: Tensor, lengths: Tensor | None, compiled: bool, differentiable: bool) -> str:
        if self.engine == "amx" and "AMX-BF16" not in find_cpu().instruction_sets:
            raise ValueError(f"engine=amx needs a CPU with AMX, not {find_cpu().model}. Use engine=auto.")
        if self.engine in ("native", "amx") and not compiled and x.numel() > 0:
            raise ValueError(
                f"engine={self.engine} has no kernel for input of {x.dtype} on {x.device}: it takes float32 "
                "and float64 on the CPU, needs a C++ compiler, and has no proj_size. Use engine=auto."
            )
        if self.engine in ("torch", "plain") or (self.engine != "auto" and compiled):
            return self.engine
        (B, T, I), ragged = x.shape, lengths is not None
        bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
        call = Call(x.device.type, self.kind, bf16, ragged, differentiable, B, T, I, self.hidden_size)
        return choose_engine(call, find_cpu(), compiled)

    def _run_operator(
        self, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, weights: list[Weights]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """By PyTorch's operator, without waiting for the device."""
        packable = lengths is None or (x.is_cuda and lengths.is_cpu)
        if packable and not x.is_cpu and not self.recompute:
            return run_operator(self, x, state, lengths, weights)  # cuDNN runs the layers beside each other.
        scan = self._checkpointed(partial(run_operator_scan, self.kind))
        if not x.is_cpu or not torch.is_autocast_enabled("cpu"):
            return super()._run_layers(x, state, lengths, weights, scan)
        dtype = weights[0][0].dtype
        state = [s.to(dtype) for s in state]
        if torch.get_autocast_dtype("cpu") is torch.bfloat16 and operator_casts_to_bf16(find_cpu()):
            return super()._run_layers(x, state, lengths, weights, scan)
        x = x.to(dtype) if x.dtype in CAST_BY_AUTOCAST else x
        weights = [[weight.to(dtype) for weight in layer] for layer in weights]
        with torch.autocast("cpu", enabled=False):
            return super()._run_layers(x, state, lengths, weights, scan)

    @torch._disable_dynamo  # which cannot trace it, and breaks its graph here
    def _run_untraced_operator(self, *arguments: Any) -> tuple[Tensor, Sequence[Tensor]]:
        return self._run_operator(*arguments)

    def _run_steps(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Sequence[Tensor]]:
        if self.kind in ("slstm", "mogrifier"):
            return self._checkpointed(self._run_equations)(x, state, mask, weights)
        run = run_recurrence if KINDS[self.kind].reads_h else run_linear_recurrence
        return self._checkpointed(run)(self.kind, x, state, mask, weights)

    def _run_equations(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Sequence[Tensor]]:
        states = [state for state, _ in run_steps(self.kind, x, state, mask, weights)]
        return torch.stack([h for h, *_ in states]), states[-1]

    def _checkpointed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; with recompute=True, its backward pass computes again what it else would store."""
        if not self.recompute:
            return function
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
