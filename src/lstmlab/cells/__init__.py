"""Recurrent cells: one contract, three backends. `KINDS` says which cells each backend has.

Importing this module does not import torch, so that a configuration can be checked quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Recurrent

KINDS = {
    "scratch": ("lstm", "peephole", "layernorm", "rnn", "gru"),
    "fused": ("lstm", "peephole", "layernorm", "rnn", "gru"),
    "torch": ("lstm", "rnn", "gru"),
}
# In the order in which nn.LSTM, nn.GRU and nn.RNN stack them in their weights.
GATES = {"lstm": "ifgo", "peephole": "ifgo", "layernorm": "ifgo", "rnn": "h", "gru": "rzn"}
INITS = ("xavier", "chrono", "torch")


class LSTMState(NamedTuple):
    """State of the LSTM kinds: hidden and cell state, each (L·D, B, H)."""

    h: Tensor
    c: Tensor


class HiddenState(NamedTuple):
    """State of the RNN and the GRU: the hidden state (L·D, B, H)."""

    h: Tensor


def build_cell(
    backend: str,
    input_size: int,
    hidden_size: int,
    *,
    kind: str = "lstm",
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    variational: bool = False,
    weight_drop: float = 0.0,
    init: str = "xavier",
    forget_bias: float = 1.0,
    chrono_steps: int | None = None,
    batch_first: bool = True,
    recompute: bool = False,
) -> Recurrent:
    """A recurrent module: `output, state = cell(x, state=None, lengths=None)`.

    All backends store the parameters of `nn.LSTM`, `nn.GRU` and `nn.RNN` (names, order, shapes),
    start from the same weights for the same seed, and compute the same numbers.

    backend: scratch (one equation a line), fused (fast), torch (nn.LSTM and its siblings).
    kind: see `KINDS`.
    dropout: on the outputs of each layer but the last, as in nn.LSTM; no effect with one layer.
    variational: the same dropout mask at each time step (Gal & Ghahramani 2016).
    weight_drop: share of the entries of weight_hh that a training call drops (Merity et al. 2018).
    init: xavier, chrono or torch, see `init.initialise`.
    forget_bias: the LSTM kinds' forget-gate bias under init=xavier, in total.
    chrono_steps: the longest dependency in steps (T_max), for init=chrono.
    recompute: fused alone: compute the gates again in the backward pass instead of storing them.

    Raises ValueError for a pair of backend and kind that does not exist and for a value out of
    range.
    """
    if kind not in KINDS.get(backend, ()):
        pairs = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in KINDS.items())
        raise ValueError(f"No cell of kind={kind!r} in backend={backend!r}. There are {pairs}.")
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    for name, share in {"dropout": dropout, "weight_drop": weight_drop}.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} must be at least 0 and less than 1.")
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown; there are {', '.join(INITS)}.")
    if init == "chrono" and "f" not in GATES[kind]:
        raise ValueError(f"init=chrono sets input and forget gates, which kind={kind} has not.")
    if init == "chrono" and (chrono_steps is None or chrono_steps < 3):
        raise ValueError(f"init=chrono needs chrono_steps of at least 3, not {chrono_steps}.")
    if recompute and backend != "fused":
        raise ValueError(f"recompute=true is for backend=fused, not {backend}.")

    options: dict[str, Any] = {
        "kind": kind,
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "dropout": dropout,
        "variational": variational,
        "weight_drop": weight_drop,
        "init": init,
        "forget_bias": forget_bias,
        "chrono_steps": chrono_steps,
        "batch_first": batch_first,
    }
    if backend == "scratch":
        from .scratch import ScratchCell

        return ScratchCell(input_size, hidden_size, **options)
    if backend == "fused":
        from .fused import FusedCell

        return FusedCell(input_size, hidden_size, recompute=recompute, **options)
    from .builtin import CELLS

    return CELLS[kind](input_size, hidden_size, **options)
