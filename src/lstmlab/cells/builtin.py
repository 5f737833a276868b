"""nn.LSTM, nn.GRU and nn.RNN under the contract of the other cells."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .base import Recurrent, Weights
from .options import CellOptions

OPERATORS: dict[str, Any] = {"lstm": torch.lstm, "gru": torch.gru, "rnn": torch.rnn_tanh}
STEP_OPERATORS: dict[str, Any] = {"lstm": torch.lstm_cell, "gru": torch.gru_cell, "rnn": torch.rnn_tanh_cell}
# cuDNN copies weights that are not its own, as dropped or padded ones, and advises against it at each call.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
CLOSED = -1e4  # a pre-activation at which a gate is exactly 0, and its opposite exactly 1, in every precision


def as_hx(state: Sequence[Tensor]) -> Any:
    """A state as PyTorch's operators and modules take it: (h, c), or h alone."""
    return tuple(state) if len(state) == 2 else state[0]


def run_operator(
    cell: Recurrent, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, weights: list[Weights]
) -> tuple[Tensor, Sequence[Tensor]]:
    """`Recurrent._run_layers` of `cell` by PyTorch's operator.

    The operator has no variational dropout, so a cell that needs it calls the operator once per layer.
    """
    if lengths is not None:
        lengths = lengths.cpu()  # pack_padded_sequence takes no others
    if not (cell.training and cell.variational and cell.dropout > 0):
        return _call_operator(cell, x, state, lengths, weights, cell.dropout)
    D = cell._num_directions
    finals = []
    for k in range(0, len(weights), D):
        if k > 0:
            x = cell._dropout(x)
        start = [s[k : k + D] for s in state]
        x, final = _call_operator(cell, x, start, lengths, weights[k : k + D], 0.0)
        finals.append(final)
    return x, [torch.cat(members) for members in zip(*finals, strict=True)]


def _call_operator(
    cell: Recurrent,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: list[Weights],
    dropout: float,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One call of the operator, for all layers whose weights are given."""
    operator, D = OPERATORS[cell.kind], cell._num_directions
    flat = [weight for layer in weights for weight in layer]
    differentiable = cell.training or torch.is_grad_enabled()  # cuDNN has no backward pass otherwise
    dropout = dropout if cell.training else 0.0
    options = (flat, True, len(weights) // D, dropout, differentiable, cell.bidirectional)
    if lengths is None or x.size(0) == 0:
        output, *final = operator(x, as_hx(state), *options, True)
        return output, final
    # Not by pack_padded_sequence, which would wait until the order of the rows has reached the device.
    lengths, order = lengths.sort(descending=True)
    rows, back = order.to(x.device, non_blocking=True), order.argsort().to(x.device, non_blocking=True)
    data, batch_sizes, _, _ = pack_padded_sequence(x.index_select(0, rows), lengths, batch_first=True)
    state = [s.index_select(1, rows) for s in state]
    data, *final = operator(data, batch_sizes, as_hx(state), *options)
    output, _ = pad_packed_sequence(PackedSequence(data, batch_sizes), True, total_length=x.size(1))
    return output.index_select(0, back), [s.index_select(1, back) for s in final]


def run_operator_scan(
    kind: str,
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer in one direction by PyTorch's operator, with what `Stack._scan_layer` takes and returns.

    Ragged rows stay padded: the operator for packed ones is slower on the CPU, and needs lengths that have
    been fetched from the device. An LSTM's c is held in the padding by more inputs, which are 1 there and
    close the gates i and o and open f. They are 16, because an odd size would slow the products down.
    """
    if lengths is None:
        y, final = _call_layer(kind, x.flip(1) if reverse else x, state, weights)
        return y.flip(1) if reverse else y, final
    B, T, _ = x.shape
    lengths = lengths.to(x.device, non_blocking=True).long().clamp(0, T).unsqueeze(1)  # unchecked on a GPU
    t = torch.arange(T, device=x.device)
    padding = (t >= lengths).unsqueeze(-1)  # (B, T, 1)
    first = torch.arange(0, B * T, T, device=x.device).unsqueeze(1)  # each row's first step among all
    x = x.masked_fill(padding, 0)  # NaN in the padding must not reach a gradient.
    if reverse:
        order = (first + torch.where(t < lengths, lengths - 1 - t, t)).flatten()
        x = x.flatten(0, 1).index_select(0, order).view_as(x)
    if kind == "lstm":
        closed = weights[0].new_full((len(weights[0]) // 4, 16), CLOSED / 16)
        x = torch.cat([x, padding.to(x.dtype).expand(-1, -1, 16)], -1)
        weights = [torch.cat([weights[0], torch.cat([closed, -closed, closed, closed])], 1), *weights[1:]]
    y, (_, *c) = _call_layer(kind, x, state, weights)
    last = (first + (lengths - 1).clamp(min=0)).flatten()
    h = torch.where(lengths > 0, y.flatten(0, 1).index_select(0, last), state[0])
    y = y.masked_fill(padding, 0)
    if reverse:
        y = y.flatten(0, 1).index_select(0, order).view_as(y)
    return y, [h, *c]


def _call_layer(
    kind: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """All steps of a layer. The operator for a single one costs less, but it has no oneDNN, and it would read
    numbers from tensors of the meta device."""
    one_step = x.size(1) == 1 and len(weights) == 4
    dense = one_step and all(t.is_cpu and t.layout is torch.strided for t in (x, *state, *weights))
    if dense and (kind != "lstm" or x.size(0) <= 32 or torch.is_autocast_enabled("cpu")):
        final = STEP_OPERATORS[kind](x[:, 0], as_hx(state), *weights)
        final = (final,) if isinstance(final, Tensor) else final
        return final[0].unsqueeze(1), final
    hx = as_hx([s.unsqueeze(0).contiguous() for s in state])
    y, *final = OPERATORS[kind](x, hx, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return y, [s.squeeze(0) for s in final]


class _Builtin(Recurrent):
    """What nn.LSTM, nn.GRU and nn.RNN have in common; it stands before them among the base classes."""

    def __init__(self, input_size: int, options: CellOptions) -> None:
        # Set before the constructor of nn.LSTM runs, which calls reset_parameters.
        self._set_options(input_size, options)
        super().__init__(
            input_size,
            options.hidden_size,
            options.num_layers,
            bias=options.bias,
            batch_first=options.batch_first,
            bidirectional=options.bidirectional,
            **({"proj_size": options.proj_size} if options.kind == "lstm" else {}),
        )
        self.dropout = options.dropout  # Set afterwards, since nn.LSTM warns of dropout with one layer.
        self._shapes = self._parameter_shapes()

    def _run_layers(
        self, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, weights: list[Weights]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        return run_operator(self, x, state, lengths, weights)


class BuiltinLSTM(_Builtin, nn.LSTM):
    pass


class BuiltinGRU(_Builtin, nn.GRU):
    pass


class BuiltinRNN(_Builtin, nn.RNN):
    """tanh, as nn.RNN's default."""


CELLS = {"lstm": BuiltinLSTM, "gru": BuiltinGRU, "rnn": BuiltinRNN}
