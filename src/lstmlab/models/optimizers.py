"""Build the optimizer that the `optimizer` group names."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lstmlab.schema import OptimizerConfig


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], factors: Iterable[float] | None = None
) -> Optimizer:
    """Vectors (biases, gains) get no weight decay and, if the optimizer takes only matrices, AdamW.

    factors: one of each parameter's learning rate, `config.lr`; None: 1.
    """
    parameters = list(parameters)
    factors = [1.0] * len(parameters) if factors is None else list(factors)
    matrices: list[dict[str, Any]] = []
    vectors: list[dict[str, Any]] = []
    for factor in sorted(set(factors), reverse=True):
        own = [p for p, of_p in zip(parameters, factors, strict=True) if of_p == factor]
        rate = {} if factor == 1 else {"lr": factor * config.lr}
        matrices.append({"params": [p for p in own if p.ndim > 1], **rate})
        vectors.append({"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, **rate})
    if config.matrices_only:
        of_matrices = config.build("optimizer", Optimizer, matrices)
        return TwoOptimizers(of_matrices, AdamW(vectors, config.lr, weight_decay=0.0))
    return config.build("optimizer", Optimizer, matrices + vectors)


class TwoOptimizers(Optimizer):
    """Several optimizers as one. They share its state and its parameter groups, which a scheduler changes."""

    def __init__(self, *parts: Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Loading replaces the shared objects
        self._share()
