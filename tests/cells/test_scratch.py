"""Numbers worked by hand, derivatives by finite differences, traces."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from cell_reference import build_cell, random_state
from lstmlab.cells import BACKENDS, KINDS, LSTMState
from lstmlab.cells.scratch import ScratchCell

F64 = torch.float64
LSTMS = [(backend, "lstm") for backend in BACKENDS] + [("scratch", "peephole")]


def blank(backend, kind, input_size, hidden_size):
    """All parameters zero."""
    cell = build_cell(backend, input_size, hidden_size, kind=kind).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    return cell


def one_step(cell, x, h, c):
    output, state = cell(x[None, None], LSTMState(h[None, None], c[None, None]))
    assert_close(output[0, 0], state.h[0, 0])
    return state.h[0, 0], state.c[0, 0]


@pytest.mark.parametrize("backend, kind", LSTMS)
def test_cell_state_from_given_gates(backend, kind):
    f = tensor([0.9, 0.1, 0.8, 0.95], dtype=F64)
    i = tensor([0.3, 0.9, 0.2, 0.1], dtype=F64)
    g = tensor([0.5, 0.8, -0.3, 0.1], dtype=F64)
    cell = blank(backend, kind, 1, 4)
    with torch.no_grad():
        cell.bias_ih_l0.copy_(torch.cat([i.logit(), f.logit(), g.atanh(), tensor([0.0] * 4)]))
    c = tensor([1, -0.5, 0.3, 0.7], dtype=F64)
    h, c = one_step(cell, torch.zeros(1, dtype=F64), torch.zeros(4, dtype=F64), c)
    assert_close(c, tensor([1.05, 0.67, 0.18, 0.675], dtype=F64))
    assert_close(h, 0.5 * c.tanh())


@pytest.mark.parametrize("backend, kind", LSTMS)
def test_one_step_on_seven_numbers(backend, kind):
    """Pre-activations 1.050, 0.470, 0.480, 0.510 of f, i, g, o, made from all of [h, x]."""
    h = tensor([0.1, 0.3, -0.1, 0.2], dtype=F64)
    x = tensor([0.5, -0.2, 0.8], dtype=F64)
    hx = torch.cat([h, x])
    wanted = {"i": 0.470, "f": 1.050, "g": 0.480, "o": 0.510}
    cell = blank(backend, kind, 3, 4)
    with torch.no_grad():
        for k, a in enumerate(wanted.values()):
            row = a * hx / hx.square().sum()  # W·[h, x] = a
            cell.weight_hh_l0[4 * k : 4 * k + 4] = row[:4]
            cell.weight_ih_l0[4 * k : 4 * k + 4] = row[4:]
    h, c = one_step(cell, x, h, torch.full((4,), 0.700, dtype=F64))
    assert_close(c, torch.full_like(c, 0.793), atol=5e-4, rtol=0)
    assert_close(h, torch.full_like(h, 0.412), atol=5e-4, rtol=0)


def test_gates_of_the_seven_numbers_in_the_trace():
    cell = blank("scratch", "lstm", 3, 1)
    with torch.no_grad():
        cell.bias_hh_l0.copy_(tensor([0.470, 1.050, 0.480, 0.510]))
    start = LSTMState(torch.zeros(1, 1, 1, dtype=F64), torch.full((1, 1, 1), 0.7, dtype=F64))
    _, _, trace = cell.trace(torch.zeros(1, 1, 3, dtype=F64), start)
    numbers = {name: round(values.item(), 3) for name, values in trace.items()}
    assert numbers == {"i": 0.615, "f": 0.741, "g": 0.446, "o": 0.625, "h": 0.412, "c": 0.793}


@pytest.mark.parametrize("backend, kind", LSTMS)
def test_open_forget_gate_and_closed_input_gate_keep_the_cell_state_exactly(backend, kind):
    cell = blank(backend, kind, 2, 3)
    with torch.no_grad():
        cell.bias_ih_l0[:3] = -1000
        cell.bias_ih_l0[3:6] = 1000
        cell.bias_ih_l0[6:] = 1
    c = torch.randn(1, 2, 3, dtype=F64)
    _, state = cell(torch.randn(2, 100, 2, dtype=F64), LSTMState(torch.zeros_like(c), c))
    assert torch.equal(state.c, c)


@pytest.mark.parametrize("kind", BACKENDS["scratch"])
def test_first_and_second_derivatives(kind):
    torch.manual_seed(0)
    cell = build_cell("scratch", 2, 3, kind=kind, init="torch").double()
    names = [name for name, _ in cell.named_parameters()]
    x = torch.randn(2, 2, 2, dtype=F64, requires_grad=True)
    start = [s.requires_grad_() for s in random_state(kind, 1, 2, 3, dtype=F64)]
    members = len(start)

    def function(x, *numbers):
        state, parameters = numbers[:members], numbers[members:]
        weights = dict(zip(names, parameters, strict=True))
        output, final = torch.func.functional_call(cell, weights, (x, state, tensor([2, 1])))
        return output, *final

    inputs = (x, *start, *cell.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", BACKENDS["scratch"])
def test_trace_shows_what_the_call_computes(kind):
    torch.manual_seed(0)
    L, D, B, T, H = 2, 2, 3, 5, 4
    cell = build_cell("scratch", 3, H, kind=kind, num_layers=L, bidirectional=True)
    x, lengths = 3 * torch.randn(B, T, 3), tensor([5, 2, 4])
    expected, expected_state = cell(x, None, lengths)
    assert isinstance(cell, ScratchCell)
    output, state, trace = cell.trace(x, None, lengths)
    assert torch.equal(output, expected)
    assert_close(state, expected_state, rtol=0, atol=0)
    gates, sigmoids = KINDS[kind].gates, KINDS[kind].sigmoids
    assert set(trace) == {*gates, *KINDS[kind].state._fields}
    assert set(sigmoids) == {gate for gate in gates if 0 <= trace[gate].min() <= trace[gate].max() <= 1}
    assert all(values.shape == (L, D, B, T, H) for values in trace.values())
    assert torch.equal(torch.cat(list(trace["h"][-1]), -1), expected)

    last = lengths - 1
    rows = torch.arange(B)
    for name, final in expected_state._asdict().items():
        final = final.unflatten(0, (L, D))
        assert torch.equal(trace[name][:, 0][:, rows, last], final[:, 0])
        assert torch.equal(trace[name][:, 1, :, 0], final[:, 1])
    padding = torch.arange(T) >= lengths[:, None]
    assert all(not values[:, :, padding].any() for values in trace.values())


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS["scratch"] if kind != "rnn"])
@pytest.mark.parametrize("direction", [0, 1])
def test_the_gates_of_the_trace_make_its_states(kind, direction):
    torch.manual_seed(0)
    cell = build_cell("scratch", 3, 4, kind=kind, num_layers=2, bidirectional=True)
    assert isinstance(cell, ScratchCell)
    _, _, trace = cell.trace(torch.randn(2, 5, 3))
    at = {name: values[:, direction] for name, values in trace.items()}  # (L, B, T, H)
    if direction == 1:
        at = {name: values.flip(2) for name, values in at.items()}
    now = {name: values[:, :, 1:] for name, values in at.items()}
    before = {name: values[:, :, :-1] for name, values in at.items()}
    if kind == "gru":
        assert_close((1 - now["z"]) * now["n"] + now["z"] * before["h"], now["h"])
    elif kind == "mingru":
        assert_close((1 - now["z"]) * before["h"] + now["z"] * now["g"], now["h"])
    elif kind == "minlstm":
        assert_close(now["f"] * before["h"] + now["i"] * now["g"], now["h"])
        assert_close(now["i"] + now["f"], torch.ones_like(now["i"]))
    else:
        assert_close(now["f"] * before["c"] + now["i"] * now["g"], now["c"])
        memory = now["c"] / now["n"] if kind == "slstm" else now["c"].tanh()
        assert_close(now["o"] * memory, now["h"])
