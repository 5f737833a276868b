"""The contract of every cell, and layers × directions × dropout × lengths, written once."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import GATES, HiddenState, LSTMState
from .init import initialise

State = LSTMState | HiddenState


class Recurrent(nn.Module):
    """`output, state = cell(x, state=None, lengths=None)`, the call of nn.LSTM.

    x: (B, T, I), or (T, B, I) with batch_first=False.
    state: named tuple, each member (L·D, B, H): (h, c) for the LSTM kinds, (h,) for RNN and GRU.
        None: zeros of the dtype and device of x. It returns in the dtype in which it came.
    lengths: (B,) integers on any device, in any order, 1 ≤ length ≤ T; None: all T. Steps past a
        row's length leave its state untouched, give zeros in output, and nothing there matters.
    output: (B, T, D·H), or (T, B, D·H) with batch_first=False.

    Raises ValueError for a wrong shape, and for lengths out of range where they are on the CPU: on
    a GPU the check would halt it, so there a longer one counts as T and a shorter one as 0.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dropout: float
    batch_first: bool
    kind: str
    variational: bool
    weight_drop: float
    init: str
    forget_bias: float
    chrono_steps: int | None

    def reset_parameters(self) -> None:
        initialise(
            self.named_parameters(),
            kind=self.kind,
            hidden_size=self.hidden_size,
            init=self.init,
            forget_bias=self.forget_bias,
            chrono_steps=self.chrono_steps,
        )

    @property
    def _num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _state_type(self) -> type[State]:
        return HiddenState if self.kind in ("rnn", "gru") else LSTMState

    def _check(self, x: Tensor, state: State | None, lengths: Tensor | None) -> State:
        """The given state, or zeros."""
        dims = "(B, T, I)" if self.batch_first else "(T, B, I)"
        sizes = x.shape
        if len(sizes) != 3 or sizes[2] != self.input_size or 0 in sizes:
            raise ValueError(
                f"x must be {dims}, none of them 0, with I={self.input_size}, not {tuple(sizes)}."
            )
        T, B, _ = sizes
        if self.batch_first:
            B, T = T, B
        if lengths is not None:
            if lengths.shape != (B,) or lengths.is_floating_point():
                raise ValueError(
                    f"lengths must be ({B},) integers, one for each row of x, "
                    f"not {tuple(lengths.shape)} {lengths.dtype}."
                )
            if lengths.device.type == "cpu" and not 1 <= lengths.min() <= lengths.max() <= T:
                raise ValueError(f"lengths must be 1 to T={T}, not {lengths.tolist()}.")

        shape = (self.num_layers * self._num_directions, B, self.hidden_size)
        fields = self._state_type._fields
        if state is None:
            return self._state_type(*(x.new_zeros(shape) for _ in fields))
        if not isinstance(state, tuple) or [s.shape for s in state] != [shape] * len(fields):
            got = [tuple(s.shape) for s in state]
            raise ValueError(f"state must be ({', '.join(fields)}), each {shape}, not {got}.")
        return self._state_type(*state)

    def _weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction; weight drop is done here."""
        parameters: dict[str, Any] = self._parameters  # all there are, in order
        weights = list(parameters.values())
        if self.training and self.weight_drop:
            weights = [
                F.dropout(weight, self.weight_drop) if name.startswith("weight_hh") else weight
                for name, weight in parameters.items()
            ]
        each = len(weights) // (self.num_layers * self._num_directions)
        return [weights[k : k + each] for k in range(0, len(weights), each)]

    def _dropout(self, x: Tensor, time: int) -> Tensor:
        """Dropout between layers; variational: one mask (B, D·H) for all steps."""
        if not self.variational:
            return F.dropout(x, self.dropout, self.training)
        mask = F.dropout(torch.ones_like(x.select(time, 0)), self.dropout, self.training)
        return x * mask.unsqueeze(time)


Scan = Callable[[Tensor, Sequence[Tensor], Tensor | None, list[Tensor]], tuple[Tensor, Sequence[Tensor]]]


class Stack(Recurrent):
    """Layers × directions around `_scan`, which runs one of them over all steps."""

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
        super().__init__()
        self.input_size = input_size
        self.hidden_size = H = hidden_size
        self.kind = kind
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.variational = variational
        self.weight_drop = weight_drop
        self.init = init
        self.forget_bias = forget_bias
        self.chrono_steps = chrono_steps
        self.batch_first = batch_first

        rows = len(GATES[kind]) * H
        for layer, direction in product(range(num_layers), range(self._num_directions)):
            columns = input_size if layer == 0 else self._num_directions * H
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, columns),
                "weight_hh": (rows, H),
                "bias_ih": (rows,),
                "bias_hh": (rows,),
            }
            if kind == "peephole":
                shapes |= {"weight_ci": (H,), "weight_cf": (H,), "weight_co": (H,)}
            if kind == "layernorm":
                shapes |= {"gain": (rows,)}
            suffix = f"_l{layer}" + ("_reverse" if direction == 1 else "")
            for name, shape in shapes.items():
                self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def _scan(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """One layer in one direction, forward in time.

        x (T, B, I) · state: each (B, H) · mask (T, B, 1): True within a row's length, or None ·
        weights: the parameters as stored → h after each step (T, B, H), final state. Where the
        mask is False, the state stays as it was.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return self._run(self._scan, x, state, lengths)

    def _run(
        self, scan: Scan, x: Tensor, state: State | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        initial = self._check(x, state, lengths)
        if self.batch_first:
            x = x.transpose(0, 1)  # (T, B, I)
        mask = None
        if lengths is not None:
            steps = torch.arange(x.size(0), device=x.device)
            mask = (steps[:, None] < lengths.to(x.device, non_blocking=True)).unsqueeze(-1)
            x = x.masked_fill(~mask, 0)  # even NaN must not reach a gradient

        weights = self._weights()
        finals: list[Sequence[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = self._dropout(x, time=0)
            outputs = []
            for direction in range(self._num_directions):
                k = layer * self._num_directions + direction
                start = [s[k] for s in initial]
                if direction == 0:
                    h, final = scan(x, start, mask, weights[k])
                else:  # a row's padding now comes first, and leaves its state untouched
                    backwards = None if mask is None else mask.flip(0)
                    h, final = scan(x.flip(0), start, backwards, weights[k])
                    h = h.flip(0)
                outputs.append(h)
                finals.append(final)
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]  # (T, B, D·H)
            if mask is not None:
                x = x.masked_fill(~mask, 0)

        output = x.transpose(0, 1) if self.batch_first else x
        return output, self._state_type(
            *(
                torch.stack(list(last)).to(first.dtype)
                for last, first in zip(zip(*finals, strict=True), initial, strict=True)
            )
        )

    def extra_repr(self) -> str:
        return (
            f"{self.kind}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}, batch_first={self.batch_first}"
        )
