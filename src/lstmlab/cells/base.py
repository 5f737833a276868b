"""The contract of every cell: the call of nn.LSTM, in all its forms."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .dropout import dropout
from .init import initialise_parameters
from .kinds import KINDS, HiddenState, State, mogrifier_shapes
from .options import CellOptions

Weights = Sequence[Tensor]  # of one layer and direction: weight_ih, weight_hh, bias_ih, bias_hh, a kind's own
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_traced() -> bool:
    """Whether PyTorch must see operators, since a compiler, a tracer, a dispatch mode (fake tensors, FLOPs),
    a function transform (torch.func) or forward-mode differentiation is at work."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


class Recurrent(nn.Module):
    """`output, state = cell(input, hx=None, lengths=None)`, the call of nn.LSTM.

    input: (B, T, I), or (T, B, I) with batch_first=False; (T, I) is one sequence without a batch
        axis; or a PackedSequence. B may be 0, but T may not.
    hx: the state before the first step: a tuple or list, each member (L·D, B, H), of one sequence
        (L·D, H): (h, c) for the LSTM kinds, (h, c, n, m) for the sLSTM, (h,) or the tensor h alone
        for the others. With proj_size=P, h has P units in place of H. None: zeros of the weights'
        dtype.
    lengths: (B,) integers, a tensor on any device, a list or a tuple, in any order,
        1 ≤ length ≤ T; None: all T. Steps past a row's length leave its state untouched and give
        zeros in output, and the values there are ignored.

    output: (B, T, D·H), (T, B, D·H) with batch_first=False, (T, D·H) of one sequence, packed if the
        input was.
    state: after the last step, a named tuple `LSTMState`, `HiddenState` or `SLSTMState`; a bare
        tensor, without a batch axis, and in the dtype of hx, if hx was so.

    Raises ValueError for a wrong shape of input, hx or a weight, for an hx of another dtype than
    the input outside of autocast, and for lengths out of range if they are on the CPU and nothing
    traces the call. On a GPU the check would wait for the device, so there a length above T counts
    as T and one below 1 as 0.
    """

    input_size: int
    # The fields of CellOptions
    hidden_size: int
    kind: str
    num_layers: int
    bias: bool
    proj_size: int
    bidirectional: bool
    dropout: float
    variational: bool
    weight_drop: float
    init: str
    forget_bias: float
    chrono_steps: int | None
    batch_first: bool
    recompute: bool
    engine: str
    heads: int | None
    rounds: int | None
    rank: int | None

    _state_type: type[State]
    _shapes: list[dict[str, tuple[int, ...]]]

    def _set_options(self, input_size: int, options: CellOptions) -> None:
        """Make each option an attribute, as nn.LSTM does."""
        self.input_size = input_size
        for name, value in vars(options).items():
            setattr(self, name, value)
        self._state_type = KINDS[self.kind].state

    def _parameter_shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Names and shapes of the parameters of each layer and direction, in the order of nn.LSTM."""
        kind, H, output_size = KINDS[self.kind], self.hidden_size, self.proj_size or self.hidden_size
        rows = len(kind.gates) * H
        layers = []
        for layer, direction in product(range(self.num_layers), range(self._num_directions)):
            columns = self.input_size if layer == 0 else self._num_directions * output_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns)}
            if kind.reads_h:
                shapes |= {"weight_hh": (rows, output_size // (self.heads or 1))}
            if self.bias:
                shapes |= {name.replace("weight", "bias"): (rows,) for name in shapes}
            if self.proj_size:
                shapes |= {"weight_hr": (self.proj_size, H)}
            shapes |= {name: tuple(n * H for n in shape) for name, shape in kind.own.items()}
            if self.rounds is not None:
                if self.rank is not None and self.rank >= min(columns, H):
                    raise ValueError(
                        f"rank={self.rank} must be less than the {columns} inputs and {H} units."
                    )
                shapes |= mogrifier_shapes(columns, H, self.rounds, self.rank)
            suffix = f"_l{layer}" + ("_reverse" if direction == 1 else "")
            layers.append({name + suffix: shape for name, shape in shapes.items()})
        return layers

    def reset_parameters(self) -> None:
        initialise_parameters(
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

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor] | Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, Any]:
        return self._call(self._run_layers, input, hx, lengths)

    def _call(self, layers: Callable, input: Any, hx: Any, lengths: Any) -> tuple[Any, Any]:
        """Call `layers` with x (B, T, I), whatever form input, state and lengths have."""
        if isinstance(input, PackedSequence):
            return self._call_packed(layers, input, hx, lengths)
        if input.dim() == 2:
            return self._call_unbatched(layers, input, hx, lengths)
        bare = isinstance(hx, Tensor) and self._state_type is HiddenState
        weights = self._weights()
        x, state, lengths = self._check_arguments(input, (hx,) if bare else hx, lengths, weights[0][0].dtype)
        output, final = layers(x, state, lengths, weights)
        # Autocast changes the dtype of the state.
        if final[0].dtype is not state[0].dtype or final[-1].dtype is not state[-1].dtype:
            final = [s.to(given.dtype) for s, given in zip(final, state, strict=True)]
        if not self.batch_first:
            output = output.transpose(0, 1)  # (T, B, D·H)
        return output, final[0] if bare else self._state_type(*final)

    def _call_packed(
        self, layers: Callable, packed: PackedSequence, hx: Any, lengths: Any
    ) -> tuple[PackedSequence, Any]:
        if lengths is not None:
            raise ValueError("lengths are for a padded input: a PackedSequence holds its own.")
        x, lengths = pad_packed_sequence(packed, self.batch_first)
        output, state = self._call(layers, x, hx, lengths)
        batch_axis = 0 if self.batch_first else 1
        if packed.sorted_indices is not None:
            output = output.index_select(batch_axis, packed.sorted_indices)
            lengths = lengths[packed.sorted_indices.cpu()]
        data, batch_sizes, _, _ = pack_padded_sequence(output, lengths, self.batch_first)
        return PackedSequence(data, batch_sizes, packed.sorted_indices, packed.unsorted_indices), state

    def _call_unbatched(self, layers: Callable, x: Tensor, hx: Any, lengths: Any) -> tuple[Tensor, Any]:
        batch_axis = 0 if self.batch_first else 1
        for s in () if hx is None else (hx,) if isinstance(hx, Tensor) else hx:
            if s.dim() != 2:
                raise ValueError(f"hx of one sequence (T, I) has members (L·D, H), not {tuple(s.shape)}.")
        if isinstance(hx, Tensor):
            hx = hx.unsqueeze(1)  # (L·D, 1, H)
        elif hx is not None:
            hx = [s.unsqueeze(1) for s in hx]
        output, state = self._call(layers, x.unsqueeze(batch_axis), hx, lengths)
        if isinstance(state, Tensor):
            return output.squeeze(batch_axis), state.squeeze(1)
        return output.squeeze(batch_axis), self._state_type(*(s.squeeze(1) for s in state))

    def _check_arguments(
        self, x: Tensor, state: Any, lengths: Any, dtype: torch.dtype
    ) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
        """x as (B, T, I), the state or zeros of `dtype`, the lengths as a tensor or None."""
        sizes = x.shape
        if len(sizes) != 3 or sizes[2] != self.input_size or sizes[1 if self.batch_first else 0] == 0:
            dims = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(
                f"input must be {dims} or (T, I), T at least 1 and I={self.input_size}, not {tuple(sizes)}."
            )
        if not self.batch_first:
            x = x.transpose(0, 1)
        B, T, _ = x.shape
        if lengths is not None:
            lengths = self._check_lengths(lengths, B, T)

        names = self._state_type._fields
        batch = (self.num_layers * self._num_directions, B)
        shapes = [(*batch, self.proj_size or self.hidden_size)]
        shapes += [(*batch, self.hidden_size)] * (len(names) - 1)
        if state is None:
            return x, [x.new_zeros(shape, dtype=dtype) for shape in shapes], lengths
        if not isinstance(state, tuple | list) or [s.shape for s in state] != shapes:
            got = [tuple(s.shape) for s in state]
            expected = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
            raise ValueError(f"hx must be ({expected}), not {got}.")
        for s in state:
            if s.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise ValueError(f"hx must have the dtype of input, {x.dtype}, not {s.dtype}.")
        return x, state, lengths

    def _check_lengths(self, lengths: Any, B: int, T: int) -> Tensor:
        if not isinstance(lengths, Tensor):
            lengths = torch.as_tensor(lengths, device="cpu")
        if lengths.shape != (B,) or lengths.dtype not in INTEGERS:
            raise ValueError(
                f"lengths must be ({B},) integers, one for each row of input, "
                f"not {tuple(lengths.shape)} {lengths.dtype}."
            )
        if lengths.is_cpu and B > 0 and not is_traced() and not 1 <= lengths.min() <= lengths.max() <= T:
            raise ValueError(f"lengths must be 1 to T={T}, not {lengths.tolist()}.")
        return lengths

    def _weights(self) -> list[Weights]:
        """The weights of each layer and direction; weight drop is done here, and bias=False is zeros.

        Each is fetched by its name, as an attribute: it may be a parameter, parametrised, pruned or
        a buffer, and `_parameters` holds only some of these, in any order.
        """
        parameters, dtype = self._parameters, None
        layers: list[Weights] = []
        for shapes in self._shapes:
            weights = []
            for name, shape in shapes.items():
                weight: Any = parameters.get(name)
                if weight is None:
                    weight = getattr(self, name)
                if weight.shape != shape:
                    raise ValueError(f"{name} must be {shape}, not {tuple(weight.shape)}.")
                dtype = dtype or weight.dtype
                if weight.dtype is not dtype and not torch.is_autocast_enabled(weight.device.type):
                    raise ValueError(f"{name} must be {dtype} as the other weights, not {weight.dtype}.")
                if self.training and self.weight_drop and name.startswith("weight_hh"):
                    weight = F.dropout(weight, self.weight_drop)
                weights.append(weight)
            if not self.bias:
                matrices = 2 if KINDS[self.kind].reads_h else 1
                weights[matrices:matrices] = [weights[0].new_zeros(len(weights[0]))] * matrices
            layers.append(weights)
        return layers

    def _run_layers(
        self, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, weights: list[Weights]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """x (B, T, I) through all layers → output (B, T, D·H), the final state's members."""
        raise NotImplementedError

    def _dropout(self, x: Tensor) -> Tensor:
        """Dropout between layers, of x (B, T, D·H); variational: one mask for all steps."""
        if not self.variational:
            return dropout(x, self.dropout, self.training)
        mask = dropout(torch.ones_like(x[:, 0]), self.dropout, self.training)  # (B, D·H)
        return x * mask.unsqueeze(1)
