"""The derivatives that `fused` refuses, with the way out: it has a backward pass of its own, and no more."""

from collections.abc import Sequence

import torch
from torch import Tensor

NO_SECOND_DERIVATIVE = "cell=fused has no second derivative (create_graph, hessian): use cell=scratch."
NO_FORWARD_MODE = "cell=fused has no forward-mode derivative (jvp, dual tensors): use cell=scratch."
NO_BATCHED_GRADIENTS = (
    "cell=fused has no batched gradients (is_grads_batched, vectorize): use torch.func.vmap or cell=scratch."
)


def refuse_other_derivatives(gradients: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError in a backward pass that is to be differentiated or that gets batched gradients."""
    if torch.is_grad_enabled():
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    if any(d is not None and torch._C._functorch.is_legacy_batchedtensor(d) for d in gradients):
        raise RuntimeError(NO_BATCHED_GRADIENTS)
