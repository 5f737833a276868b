"""Build the optimizer that the `optimizer` group names."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lstmlab.schema import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Vectors (biases, gains) get no weight decay and, if the optimizer takes only matrices, AdamW."""
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    if config.matrices_only:
        of_matrices = config.build("optimizer", Optimizer, matrices)
        return TwoOptimizers(of_matrices, AdamW(vectors, config.lr, weight_decay=0.0))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return config.build("optimizer", Optimizer, groups)


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
