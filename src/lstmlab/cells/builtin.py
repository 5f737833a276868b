"""nn.LSTM, nn.GRU and nn.RNN under the contract of the other cells."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .base import Recurrent, State


class _Builtin(Recurrent):
    """What nn.LSTM, nn.GRU and nn.RNN need alike; it precedes them among the bases."""

    function: ClassVar[Callable]  # the operator behind the module

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        kind: str,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        variational: bool,
        weight_drop: float,
        init: str,
        forget_bias: float,
        chrono_steps: int | None,
        batch_first: bool,
    ) -> None:
        # Set before the constructor of nn.LSTM runs, which calls reset_parameters.
        self.kind = kind
        self.variational = variational
        self.weight_drop = weight_drop
        self.init = init
        self.forget_bias = forget_bias
        self.chrono_steps = chrono_steps
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        self.dropout = dropout  # not above: nn.LSTM warns of dropout with one layer

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if lengths is not None:
            lengths = lengths.cpu()  # as pack_padded_sequence needs them
        initial = self._check(x, state, lengths)
        weights = self._weights()
        locked = self.training and self.variational and self.dropout > 0
        if not locked:
            x, final = self._call(x, initial, lengths, weights, self.dropout)
        else:  # nn.LSTM knows no such dropout: one layer at a time
            D = self._num_directions
            finals = []
            for k in range(0, len(weights), D):
                if k > 0:
                    x = self._dropout(x, time=1 if self.batch_first else 0)
                start = [s[k : k + D] for s in initial]
                x, last = self._call(x, start, lengths, weights[k : k + D], 0.0)
                finals.append(last)
            final = [torch.cat(layers) for layers in zip(*finals, strict=True)]
        dtype = initial[0].dtype
        return x, self._state_type(*(s.to(dtype) for s in final))

    def _call(
        self,
        x: Tensor,
        state: Sequence[Tensor],
        lengths: Tensor | None,
        weights: list[list[Tensor]],
        dropout: float,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The operator with these weights: those of some layers, maybe with entries dropped."""
        flat = [weight for each in weights for weight in each]
        num_layers = len(weights) // self._num_directions
        options = (flat, True, num_layers, dropout, self.training, self.bidirectional)
        if lengths is None:
            hidden = tuple(state) if len(state) == 2 else state[0]
            output, *final = self.function(x, hidden, *options, self.batch_first)
            return output, final
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        data, batch_sizes, sorted_rows, unsorted_rows = packed
        assert sorted_rows is not None and unsorted_rows is not None
        state = [s.index_select(1, sorted_rows) for s in state]
        hidden = tuple(state) if len(state) == 2 else state[0]
        data, *final = self.function(data, batch_sizes, hidden, *options)
        output, _ = pad_packed_sequence(
            PackedSequence(data, batch_sizes, sorted_rows, unsorted_rows),
            self.batch_first,
            total_length=x.size(1 if self.batch_first else 0),
        )
        return output, [s.index_select(1, unsorted_rows) for s in final]


# The ignores below: the calls of nn.LSTM, nn.GRU and nn.RNN have no lengths.
class BuiltinLSTM(_Builtin, nn.LSTM):  # type: ignore[misc]
    function = staticmethod(torch.lstm)


class BuiltinGRU(_Builtin, nn.GRU):  # type: ignore[misc]
    function = staticmethod(torch.gru)


class BuiltinRNN(_Builtin, nn.RNN):  # type: ignore[misc]
    """tanh, as nn.RNN's default."""

    function = staticmethod(torch.rnn_tanh)


CELLS = {"lstm": BuiltinLSTM, "gru": BuiltinGRU, "rnn": BuiltinRNN}
