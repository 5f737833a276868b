"""Recurrent cells: one contract, three backends. `BACKENDS` says which kinds each backend has.

Importing this module does not import torch, so that a configuration can be checked quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kinds import BACKENDS, KINDS, HiddenState, LSTMState

if TYPE_CHECKING:
    from .base import Recurrent

__all__ = ["BACKENDS", "INITS", "KINDS", "HiddenState", "LSTMState", "build_cell"]

INITS = ("xavier", "chrono", "torch")


def build_cell(
    backend: str,
    input_size: int,
    hidden_size: int,
    *,
    kind: str = "lstm",
    num_layers: int = 1,
    bias: bool = True,
    proj_size: int = 0,
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
    """A recurrent module with the call of nn.LSTM, and `lengths` for rows of a batch that end early.

    >>> cell = build_cell("fused", input_size=8, hidden_size=16, num_layers=2, kind="lstm")
    >>> x = torch.randn(3, 5, 8)  # (B, T, I): batch_first is True here
    >>> output, state = cell(x, lengths=[5, 2, 4])
    >>> output.shape, state.h.shape, state.c.shape
    (torch.Size([3, 5, 16]), torch.Size([2, 3, 16]), torch.Size([2, 3, 16]))
    >>> output, state = cell(x, state)  # the next window, from where the last one ended
    >>> lstm = torch.nn.LSTM(8, 16, num_layers=2, batch_first=True)
    >>> cell.load_state_dict(lstm.state_dict())
    <All keys matched successfully>
    >>> torch.allclose(cell(x)[0], lstm(x)[0], atol=1e-6)
    True

    All backends store the parameters of `nn.LSTM`, `nn.GRU` and `nn.RNN` (names, order, shapes),
    start from the same weights for the same seed, and compute the same numbers. `Recurrent` says
    what a call takes and returns, README.md what differs from nn.LSTM.

    backend: scratch (one equation per line), fused (fast), torch (nn.LSTM and its siblings).
    kind: see `BACKENDS`.
    bias: False: no bias_ih and bias_hh.
    proj_size: units P of a projected hidden state (Sak et al. 2014), for kind=lstm; 0: none.
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
    if kind not in BACKENDS.get(backend, ()):
        pairs = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in BACKENDS.items())
        raise ValueError(f"No cell of kind={kind!r} in backend={backend!r}. There are {pairs}.")
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if proj_size and kind != "lstm":
        raise ValueError(f"proj_size={proj_size} is for kind=lstm, not {kind}.")
    if not 0 <= proj_size < hidden_size:
        raise ValueError(f"proj_size={proj_size} must be less than hidden_size={hidden_size}, or 0 for none.")
    for name, share in {"dropout": dropout, "weight_drop": weight_drop}.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} must be at least 0 and less than 1.")
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown; there are {', '.join(INITS)}.")
    if init == "chrono" and not {"i", "f"} <= set(KINDS[kind].gates):
        raise ValueError(f"init=chrono sets input and forget gates, which kind={kind} does not have.")
    if init == "chrono" and (chrono_steps is None or chrono_steps < 3):
        raise ValueError(f"init=chrono needs chrono_steps of at least 3, not {chrono_steps}.")
    if init == "chrono" and not bias:
        raise ValueError("init=chrono sets biases, of which bias=False has none.")
    if recompute and backend != "fused":
        raise ValueError(f"recompute=true is for backend=fused, not {backend}.")

    options: dict[str, Any] = {
        "kind": kind,
        "num_layers": num_layers,
        "bias": bias,
        "proj_size": proj_size,
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
