"""Recurrent cells: one contract, three backends. `BACKENDS` says which kinds each backend has.

Importing this package does not import torch, so that a configuration can be checked quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kinds import BACKENDS, KINDS, HiddenState, LSTMState, SLSTMState
from .options import INITS, CellOptions

if TYPE_CHECKING:
    from .base import Recurrent

__all__ = [
    "BACKENDS",
    "INITS",
    "KINDS",
    "CellOptions",
    "HiddenState",
    "LSTMState",
    "SLSTMState",
    "build_cell",
]


def build_cell(backend: str, input_size: int, hidden_size: int, **options: Any) -> Recurrent:
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
    what a call takes and returns, `CellOptions` which options there are, and README.md what differs
    from nn.LSTM.

    Raises ValueError for a pair of backend and kind that does not exist and for a value out of
    range.
    """
    checked = CellOptions(backend, hidden_size, **options)
    if input_size < 1:
        raise ValueError(f"input_size={input_size} must be at least 1.")
    # Imported here, because these import torch.
    if backend == "scratch":
        from .scratch import ScratchCell

        return ScratchCell(input_size, checked)
    if backend == "fused":
        from .fused import FusedCell

        return FusedCell(input_size, checked)
    from .builtin import CELLS

    return CELLS[checked.kind](input_size, checked)
