import pytest
import torch
from torch.testing import assert_close

from lstmlab.cells import build_cell

F64 = torch.float64


@pytest.fixture
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("lengths", [None, [2, 3]])
def test_derivatives_to_all_inputs(lengths, uninitialised_memory_is_nan):
    torch.manual_seed(0)
    cell = build_cell("fused", 2, 3, num_layers=2, bidirectional=True, init="torch").double()
    names = [name for name, _ in cell.named_parameters()]

    def function(x, h, c, *parameters):
        weights = dict(zip(names, parameters, strict=True))
        given = None if lengths is None else torch.tensor(lengths)
        output, state = torch.func.functional_call(cell, weights, (x, (h, c), given))
        return output, *state

    x = torch.randn(2, 3, 2, dtype=F64, requires_grad=True)
    h, c = (torch.randn(4, 2, 3, dtype=F64, requires_grad=True) for _ in "hc")
    assert torch.autograd.gradcheck(function, (x, h, c, *cell.parameters()))


@pytest.mark.parametrize("part", ["output", "h", "c"])
@pytest.mark.parametrize("T", [1, 63])
def test_each_result_alone_has_the_gradients_of_scratch(part, T, uninitialised_memory_is_nan):
    results = []
    for backend in ("scratch", "fused"):
        torch.manual_seed(0)
        cell = build_cell(backend, 3, 5, num_layers=2).double()
        x = torch.randn(4, T, 3, dtype=F64, requires_grad=True)
        output, state = cell(x, None, torch.randint(1, T + 1, (4,)))
        loss = {"output": output, "h": state.h, "c": state.c}[part].sin().sum()
        results.append(torch.autograd.grad(loss, [x, *cell.parameters()]))
    assert_close(*results)


def test_second_derivative_is_refused_with_the_way_out():
    cell = build_cell("fused", 3, 5)
    loss = cell(torch.randn(2, 4, 3))[0].sum()
    with pytest.raises(RuntimeError, match="cell=scratch"):
        torch.autograd.grad(loss, list(cell.parameters()), create_graph=True)


def test_only_what_is_asked_for_gets_a_gradient():
    cell = build_cell("fused", 3, 5).requires_grad_(False)
    x = torch.randn(2, 4, 3, requires_grad=True)
    cell(x)[0].sum().backward()
    assert x.grad is not None and cell.weight_hh_l0.grad is None
    with torch.no_grad():
        assert not cell(x)[0].requires_grad
