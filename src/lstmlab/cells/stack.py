"""The loop over layers and directions, with dropout between the layers, for `scratch` and `fused`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .base import Recurrent, Weights
from .options import CellOptions

LayerScan = Callable[
    [Tensor, Sequence[Tensor], Tensor | None, Weights, bool], tuple[Tensor, Sequence[Tensor]]
]


class Stack(Recurrent):
    """The loop over layers and directions around `_scan_layer`, which runs one of them over all steps."""

    def __init__(self, input_size: int, options: CellOptions) -> None:
        super().__init__()
        self._set_options(input_size, options)
        self._shapes = self._parameter_shapes()
        for shapes in self._shapes:
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, as in nn.LSTM."""
        return [[getattr(self, name) for name in shapes] for shapes in self._shapes]

    def flatten_parameters(self) -> None:
        """Do nothing. Code for nn.LSTM calls it, so that the weights lie side by side for cuDNN."""

    def _run_layers(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        lengths: Tensor | None,
        weights: list[Weights],
        scan: LayerScan | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        scan = scan or self._scan_layer
        D = self._num_directions
        finals: list[Sequence[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = self._dropout(x)
            outputs = []
            for k in range(layer * D, layer * D + D):
                y, final = scan(x, [s[k] for s in state], lengths, weights[k], k % D == 1)
                outputs.append(y)
                finals.append(final)
            x = torch.cat(outputs, -1) if D == 2 else outputs[0]  # (B, T, D·H)
        return x, [torch.stack(members) for members in zip(*finals, strict=True)]

    def _scan_layer(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        lengths: Tensor | None,
        weights: Weights,
        reverse: bool,
        steps: Callable | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """One layer in one direction: x (B, T, I), the state, each (B, H) → h after each step (B, T, H), the
        final state. A row's padding leaves its state untouched and gives zeros."""
        x, mask = x.transpose(0, 1), None  # (T, B, I)
        if lengths is not None:
            t = torch.arange(x.size(0), device=x.device)
            mask = (t[:, None] < lengths.to(x.device, non_blocking=True)).unsqueeze(-1)  # (T, B, 1)
            x = x.masked_fill(~mask, 0)  # NaN in the padding must not reach a gradient.
        if reverse:  # A row's padding then comes first.
            x, mask = x.flip(0), None if mask is None else mask.flip(0)
        h, final = (steps or self._run_steps)(x, state, mask, weights)  # (T, B, H)
        if mask is not None:
            h = h.masked_fill(~mask, 0)
        if reverse:
            h = h.flip(0)
        return h.transpose(0, 1), final

    def _run_steps(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """One layer forward in time.

        x (T, B, I), the state, each (B, H), and the mask (T, B, 1), True within a row's length, or None
        → h after each step (T, B, H), the final state. Where the mask is False, the state stays as it was.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"{self.kind}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}, batch_first={self.batch_first}"
        )
