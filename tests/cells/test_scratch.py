"""Numbers worked by hand, derivatives by finite differences, traces."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from lstmlab.cells import BACKENDS, KINDS, HiddenState, LSTMState, build_cell
from lstmlab.cells.kinds import Kind
from lstmlab.cells.scratch import STEPS, ScratchCell

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
    members = len(KINDS[kind].state._fields)
    start = [torch.randn(1, 2, 3, dtype=F64, requires_grad=True) for _ in range(members)]

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
    x, lengths = torch.randn(B, T, 3), tensor([5, 2, 4])
    expected, expected_state = cell(x, None, lengths)
    assert isinstance(cell, ScratchCell)
    output, state, trace = cell.trace(x, None, lengths)
    assert torch.equal(output, expected)
    assert_close(state, expected_state, rtol=0, atol=0)
    gates, sigmoids = KINDS[kind].gates, KINDS[kind].sigmoids
    assert set(trace) == {*gates, *KINDS[kind].state._fields}
    assert set(sigmoids) == {gate for gate in gates if trace[gate].min() >= 0}
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


@pytest.mark.parametrize("kind", ["lstm", "peephole", "layernorm", "gru"])
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
    else:
        assert_close(now["f"] * before["c"] + now["i"] * now["g"], now["c"])
        assert_close(now["o"] * now["c"].tanh(), now["h"])


class MinGRU:
    """Feng et al. 2024: gate and candidate see the input alone."""

    def __init__(self, weight_ih, bias_ih):
        (self.W_z, self.W_k), (self.b_z, self.b_k) = weight_ih.chunk(2), bias_ih.chunk(2)

    def __call__(self, x, h):
        z, k = (x @ self.W_z.T + self.b_z).sigmoid(), x @ self.W_k.T + self.b_k
        return ((1 - z) * h + z * k,), {"z": z, "k": k}


@pytest.mark.parametrize("bias", [True, False])
def test_a_kind_whose_gates_do_not_see_the_hidden_state(monkeypatch, bias):
    kind = Kind(("scratch",), HiddenState, "zk", "z", reads_h=False)
    monkeypatch.setitem(KINDS, "mingru", kind)
    monkeypatch.setitem(BACKENDS, "scratch", ("mingru",))
    monkeypatch.setitem(STEPS, "mingru", MinGRU)
    cell = build_cell("scratch", 3, 4, kind="mingru", bidirectional=True, init="torch", bias=bias).double()
    names = ["weight_ih_l0", "bias_ih_l0"] if bias else ["weight_ih_l0"]
    names += [f"{name}_reverse" for name in names]
    assert list(cell.state_dict()) == names
    x, h = torch.randn(2, 5, 3, dtype=F64), torch.randn(2, 2, 4, dtype=F64)
    output, state = cell(x, h)
    for d, suffix in enumerate(["", "_reverse"]):
        now = h[d]
        for t in range(5) if d == 0 else reversed(range(5)):
            a = x[:, t] @ getattr(cell, f"weight_ih_l0{suffix}").T
            a = a + getattr(cell, f"bias_ih_l0{suffix}") if bias else a
            z = 1 / (1 + torch.exp(-a[:, :4]))
            now = now + z * (a[:, 4:] - now)
            assert_close(output[:, t, 4 * d : 4 * d + 4], now)
        assert_close(state[d], now)
    with pytest.raises(ValueError, match=r"^weight_drop=0.1 .* which kind=mingru does not have.$"):
        build_cell("scratch", 3, 4, kind="mingru", weight_drop=0.1)
