"""How far back a gradient reaches: ‖∂loss/∂h_t‖ along a sequence (Bengio et al. 1994)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lstmlab.cells import build_cell


def measure_gradient_flow(cell: Callable, x: Tensor) -> dict[str, Tensor]:
    """‖∂loss/∂h_t‖ for t = 1 … T as a share of ‖∂loss/∂h_T‖, and the same for c_t of the LSTM kinds.

    The loss is vᵀ h_T of the last layer, for a random direction v. Each norm is over layers and units, and
    averaged over the rows: member of the state → (T,). It is 0 for c_T, since the loss reads only h_T.

    cell: called step by step as `output, state = cell(x_t, state)`, x (B, T, I); not bidirectional.
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


def count_steps_reached(norms: Tensor, share: float) -> int:
    """How many steps back from the end all `norms` (T,) are at least `share`."""
    return int((norms.flip(0)[1:] >= share).long().cumprod(0).sum())


def measure_initial_flows(
    T: int = 100, hidden_size: int = 128, seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """The gradient flow of untrained cells on 32 rows of Gaussian noise: name → flow.

    The cells are an RNN and an LSTM, each with PyTorch's initialisation and with orthogonal recurrent weights
    (and a forget bias of 1), and an LSTM with biases for memories of up to T steps (chrono).
    """
    kinds: dict[str, dict[str, Any]] = {
        "RNN, PyTorch's": {"kind": "rnn", "init": "torch"},
        "RNN, orthogonal": {"kind": "rnn", "init": "xavier"},
        "LSTM, PyTorch's": {"init": "torch"},
        "LSTM, orthogonal": {"init": "xavier"},
        "LSTM, chrono": {"init": "chrono", "chrono_steps": T},
    }
    x = torch.randn(32, T, hidden_size, generator=torch.Generator().manual_seed(seed))
    flows = {}
    for name, options in kinds.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            cell = build_cell("torch", hidden_size, hidden_size, **options)
        flows[name] = measure_gradient_flow(cell, x)
    return flows
