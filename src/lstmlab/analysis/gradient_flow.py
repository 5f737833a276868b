"""How far back does a gradient reach? ‖∂loss/∂h_t‖ through a sequence (Bengio et al. 1994)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lstmlab.cells import build_cell


def gradient_flow(cell: Callable, x: Tensor) -> dict[str, Tensor]:
    """‖∂loss/∂h_t‖ for t = 1 … T as a share of ‖∂loss/∂h_T‖, and likewise of c_t for the LSTM kinds.

    The loss is vᵀ h_T of the last layer, for a random direction v. Each norm is over layers and units and
    averaged over the rows: member of the state → (T,). For c_T it is 0, since the loss reads only h_T.

    cell: called `output, state = cell(x_t, state)` step by step, x (B, T, I); one direction only.
    """
    state: Any = None
    states = []
    for x_t in x.split(1, 1):
        _, state = cell(x_t, state)
        for member in state:
            member.retain_grad()
        states.append(state)
    h = states[-1].h  # (L, B, H)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(h.shape[1:], generator=generator, dtype=h.dtype).to(h.device)
    (h[-1] * v).sum().backward()
    flow = {}
    for name in state._fields:
        steps = [getattr(state, name).grad for state in states]
        norms = torch.stack([h.new_zeros(()) if s is None else s.norm(dim=(0, 2)).mean() for s in steps])
        flow[name] = norms / v.norm(dim=1).mean()
    return flow


def steps_reached(norms: Tensor, share: float) -> int:
    """How many steps back from the last of `norms` (T,) all of them are at least `share`."""
    return int((norms.flip(0)[1:] >= share).long().cumprod(0).sum())


def at_initialisation(T: int = 100, hidden_size: int = 128, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The gradient flow of untrained cells on 32 rows of Gaussian noise: name → `gradient_flow`.

    They are the RNN and the LSTM, each as PyTorch initialises it and with orthogonal recurrent weights (and
    a forget bias of 1), and the LSTM with biases drawn for memories of up to T steps (chrono).
    """
    kinds: dict[str, dict[str, Any]] = {
        "RNN, PyTorch's": {"kind": "rnn", "init": "torch"},
        "RNN, orthogonal": {"kind": "rnn", "init": "xavier"},
        "LSTM, PyTorch's": {"init": "torch"},
        "LSTM, orthogonal": {"init": "xavier"},
        "LSTM, chrono": {"init": "chrono", "chrono_steps": T},
    }
    x = torch.randn(32, T, hidden_size, generator=torch.Generator().manual_seed(seed))
    found = {}
    for name, options in kinds.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            cell = build_cell("torch", hidden_size, hidden_size, **options)
        found[name] = gradient_flow(cell, x)
    return found
