import pytest
import torch
from torch import nn

from lstmlab.analysis.gradient_flow import measure_gradient_flow, measure_initial_flows
from lstmlab.cells import HiddenState, build_cell


class Linear(nn.Module):
    """h_t = W h_{t−1} + x_t."""

    def __init__(self, W: torch.Tensor):
        super().__init__()
        self.W = nn.Parameter(W)

    def forward(self, x, state=None):
        h = x.transpose(0, 1)  # (1, B, H)
        before = torch.zeros_like(h) if state is None else state.h
        h = before @ self.W.T + h
        return h.transpose(0, 1), HiddenState(h)


@pytest.mark.parametrize("share", [0.85, 0.98])
def test_a_scaled_rotation_gives_the_reference_line(share):
    Q = nn.init.orthogonal_(torch.empty(8, 8, dtype=torch.float64))
    flow = measure_gradient_flow(Linear(share * Q), torch.randn(3, 100, 8, dtype=torch.float64))
    expected = share ** torch.arange(99, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(flow["h"], expected)


def test_a_linear_recurrence():
    """∂loss/∂h_t = (Wᵀ)^(T−t) v: with a diagonal W, the share of each unit decays at its own rate."""
    w = torch.tensor([0.5, 0.9], dtype=torch.float64)
    flow = measure_gradient_flow(Linear(w.diag()), torch.zeros(1, 10, 2, dtype=torch.float64))
    v = torch.randn(1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([(w**k * v[0]).norm() / v.norm() for k in range(9, -1, -1)])
    torch.testing.assert_close(flow["h"], expected)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_against_finite_differences(kind):
    """Through two layers: the loss vᵀ h_T after a small change of h_t."""
    torch.manual_seed(0)
    cell = build_cell("torch", 3, 4, kind=kind, num_layers=2).double()
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    v = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow = measure_gradient_flow(cell, x)
    with torch.no_grad():
        _, state = cell(x[:, :2])

        def loss(h):
            output, _ = cell(x[:, 2:], state._replace(h=h))
            return (output[:, -1] * v).sum()

        slopes = []
        for k in range(state.h.numel()):
            nudge = torch.zeros_like(state.h)
            nudge.view(-1)[k] = 1e-6
            slopes.append((loss(state.h + nudge) - loss(state.h - nudge)) / 2e-6)
    torch.testing.assert_close(flow["h"][1], torch.stack(slopes).norm() / v.norm(), rtol=1e-5, atol=1e-9)


def test_untrained_cells_behave_as_known():
    """Over 100 steps the gradient of an RNN vanishes; that of an LSTM with chrono biases survives."""
    flows = measure_initial_flows(T=100, hidden_size=32)
    assert flows["RNN, PyTorch's"]["h"][0] < 1e-12
    assert flows["LSTM, chrono"]["c"][0] > 1e-3
    assert all(flow["h"][-1] == pytest.approx(1) for flow in flows.values())
