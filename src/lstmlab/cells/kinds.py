"""Every kind of cell, as one entry of a table. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LSTMState(NamedTuple):
    """The state of the LSTM kinds: hidden and cell state, each (L·D, B, H)."""

    h: Tensor
    c: Tensor


class HiddenState(NamedTuple):
    """The state of the RNN, the GRU, the minGRU and the minLSTM: the hidden state (L·D, B, H)."""

    h: Tensor


class SLSTMState(NamedTuple):
    """The state of the sLSTM, each (L·D, B, H): hidden and cell state, normaliser and stabiliser.

    Where n = 0, as in a state of zeros, a unit has not started, and its c and m do not count.
    """

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


State = LSTMState | HiddenState | SLSTMState


@dataclass(frozen=True)
class Kind:
    """What the project knows of a kind of cell, beside its equations in `scratch`.

    backends: the backends that have it.
    state: what it carries from step to step.
    gates: one letter each, in the order in which nn.LSTM, nn.GRU and nn.RNN stack them in their weights.
    sigmoids: the gates whose values lie between 0 and 1.
    retains: what multiplies the old state, if that measures memory: a gate, or 1 minus one, as "1 − z". The
        sLSTM has none, since its factor f depends on its stabiliser.
    reads_h: whether its gates see the old hidden state; if not, there are no weight_hh and bias_hh.
    own: the parameters that it has beside weight_ih, weight_hh, bias_ih and bias_hh, by name, with their
        shapes in units of H: (4,) is (4H,). `mogrifier_shapes` has those of a mogrifier, and
        `init.initialise_parameters` says what all start as.
    """

    backends: tuple[str, ...]
    state: type[State]
    gates: str
    sigmoids: str
    retains: str | None = None
    reads_h: bool = True
    own: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def mogrifier_shapes(I: int, H: int, rounds: int, rank: int | None) -> dict[str, tuple[int, ...]]:
    """The matrices of a mogrifier's rounds, whole or, of low rank, as left · right."""
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(1, rounds + 1):
        name, rows, columns = (f"weight_q{k}", I, H) if k % 2 else (f"weight_r{k}", H, I)
        if rank is None:
            shapes[name] = (rows, columns)
        else:
            shapes |= {f"{name}_left": (rows, rank), f"{name}_right": (rank, columns)}
    return shapes


ROUNDS = 4  # of a mogrifier, unless cell.rounds says otherwise
HEADS = 4  # of an sLSTM, unless cell.heads says otherwise
PEEPHOLES = {"weight_ci": (1,), "weight_cf": (1,), "weight_co": (1,)}

KINDS = {
    "lstm": Kind(("scratch", "fused", "torch"), LSTMState, "ifgo", "ifo", retains="f"),
    "peephole": Kind(("scratch", "fused"), LSTMState, "ifgo", "ifo", retains="f", own=PEEPHOLES),
    "layernorm": Kind(("scratch", "fused"), LSTMState, "ifgo", "ifo", retains="f", own={"gain": (4,)}),
    "rnn": Kind(("scratch", "fused", "torch"), HiddenState, "h", ""),
    "gru": Kind(("scratch", "fused", "torch"), HiddenState, "rzn", "rz", retains="z"),
    "mogrifier": Kind(("scratch", "fused"), LSTMState, "ifgo", "ifo", retains="f"),
    "mingru": Kind(("scratch", "fused"), HiddenState, "zg", "z", retains="1 − z", reads_h=False),
    "minlstm": Kind(("scratch", "fused"), HiddenState, "ifg", "if", retains="f", reads_h=False),
    "slstm": Kind(("scratch", "fused"), SLSTMState, "ifgo", "ifo"),
}
BACKENDS = {
    backend: tuple(name for name, kind in KINDS.items() if backend in kind.backends)
    for backend in ("scratch", "fused", "torch")
}
