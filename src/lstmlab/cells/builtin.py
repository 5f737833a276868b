"""nn.LSTM, nn.GRU and nn.RNN under the contract of the other cells."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .base import Recurrent, Weights
from .options import CellOptions

OPERATORS: dict[str, Any] = {"lstm": torch.lstm, "gru": torch.gru, "rnn": torch.rnn_tanh}


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
    options = (flat, True, len(weights) // D, dropout, cell.training, cell.bidirectional)
    if lengths is None or x.size(0) == 0:
        output, *final = operator(x, tuple(state) if len(state) == 2 else state[0], *options, True)
        return output, final
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    data, batch_sizes, sorted_rows, unsorted_rows = packed
    assert sorted_rows is not None and unsorted_rows is not None
    state = [s.index_select(1, sorted_rows) for s in state]
    data, *final = operator(data, batch_sizes, tuple(state) if len(state) == 2 else state[0], *options)
    packed = PackedSequence(data, batch_sizes, sorted_rows, unsorted_rows)
    output, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))
    return output, [s.index_select(1, unsorted_rows) for s in final]


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
