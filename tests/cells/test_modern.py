"""Against public implementations; the kinds of 2020 and later at extreme gates, and what they refuse."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from cell_reference import random_state, reference
from lstmlab.cells import build_cell
from lstmlab.cells.library import load_kernel

F64 = torch.float64
MIN = ["mingru", "minlstm"]
backends = pytest.mark.parametrize("backend", ["scratch", "fused"])


def with_gradients(results: Any, leaves: Iterable[Tensor]) -> list[Tensor]:
    """Output, state, and the gradient of each leaf."""
    output, state = results
    loss = output.sin().sum() + sum(s.cos().sum() for s in state)
    return [output, *state, *torch.autograd.grad(loss, list(leaves))]


@backends
@pytest.mark.parametrize("kind", MIN)
@pytest.mark.parametrize("T", [1, 40])
def test_min_kinds_are_those_of_the_public_package(kind, backend, T):
    """Its scan is in log space, so it takes no negative state."""
    pytest.importorskip("minGRU_pytorch", reason="minGRU-pytorch is not installed")
    from minGRU_pytorch.minGRU import minGRU
    from minGRU_pytorch.minLSTM import minLSTM

    torch.manual_seed(0)
    theirs = (minGRU(16) if kind == "mingru" else minLSTM(16)).double()
    [weight] = theirs.parameters()
    cell = build_cell(backend, 16, 16, kind=kind, bias=False).double()
    g, *gates = weight.chunk(2 if kind == "mingru" else 3)
    x = torch.randn(3, T, 16, dtype=F64, requires_grad=True)
    h = torch.rand(3, 1, 16, dtype=F64) if kind == "mingru" else None  # its minLSTM changes a given state
    weights = {"weight_ih_l0": torch.cat([*reversed(gates), g])}
    output, _ = functional_call(cell, weights, (x, None if h is None else h.transpose(0, 1)))
    expected = with_gradients((theirs(x, h), ()), (x, weight))
    assert_close(with_gradients((output, ()), (x, weight)), expected)


@backends
def test_slstm_is_that_of_its_authors(backend):
    """The plain loop of their package."""
    pytest.importorskip("xlstm", reason="xlstm is not installed")
    from xlstm.blocks.slstm.src.vanilla import slstm_forward
    from xlstm.blocks.slstm.src.vanilla.slstm import slstm_forward_pointwise

    torch.manual_seed(0)
    cell: Any = build_cell(backend, 5, 12, kind="slstm", heads=3, init="torch").double()
    x, start = torch.randn(4, 9, 5, dtype=F64, requires_grad=True), torch.zeros(4, 4, 12, dtype=F64)
    products, bias = (x @ cell.weight_ih_l0.T).transpose(0, 1), cell.bias_ih_l0 + cell.bias_hh_l0
    heads = cell.weight_hh_l0.unflatten(0, (4, 3, 4)).transpose(0, 1).flatten(1, 2)  # (heads, 4 gates · 4, 4)
    states, final, _ = slstm_forward(products, start, heads, bias, slstm_forward_pointwise)
    leaves = (x, *cell.parameters())
    expected = with_gradients((states[0, 1:].transpose(0, 1), final.unsqueeze(1)), leaves)
    assert_close(with_gradients(cell(x), leaves), expected)


@backends
@pytest.mark.parametrize("rank", [None, 2])
def test_mogrifier_is_an_lstm_behind_that_of_the_public_package(backend, rank):
    """Which has the same two matrices in all rounds."""
    mogrifier = pytest.importorskip("mogrifier", reason="mogrifier is not installed")
    torch.manual_seed(0)
    theirs = mogrifier.Mogrifier(3, iters=5, factorize_k=rank, dim_hidden=7).double()
    lstm = nn.LSTMCell(3, 7, dtype=F64)
    cell = build_cell(backend, 3, 7, kind="mogrifier", rounds=5, rank=rank).double()
    weights: dict[str, Tensor] = {f"{name}_l0": weight for name, weight in lstm.named_parameters()}
    for name, part in (("weight_q", theirs.Q), ("weight_r", theirs.R)):
        factors = [module for module in part.modules() if isinstance(module, nn.Linear)]
        for factor in factors:
            nn.init.zeros_(factor.bias)  # ours has none
        own = [key for key, _ in cell.named_parameters() if key.startswith(name)]
        weights |= {key: factors[0 if "right" in key else -1].weight for key in own}
    x, h, c = torch.randn(4, 6, 3, dtype=F64), *torch.randn(2, 4, 7, dtype=F64)
    found = functional_call(cell, weights, (x, (h[None], c[None])))
    outputs = []
    for x_t in x.unbind(1):
        x_t, h = theirs(x_t, h)
        h, c = lstm(x_t, (h, c))
        outputs.append(h)
    leaves = {id(weight): weight for weight in weights.values()}.values()
    expected = with_gradients((torch.stack(outputs, 1), (h[None], c[None])), leaves)
    assert_close(with_gradients(found, leaves), expected)


@backends
def test_peephole_is_that_of_torchrecurrent(backend):
    public = pytest.importorskip("torchrecurrent", reason="torchrecurrent is not installed")
    torch.manual_seed(0)
    theirs = public.PeepholeLSTM(3, 5, batch_first=True).double()
    weights: dict[str, Tensor] = {
        f"{name.split('.')[-1]}_l0": weight for name, weight in theirs.named_parameters()
    }
    own = zip(("i", "f", "o"), weights.pop("weight_ph_l0").chunk(3), strict=True)
    weights |= {f"weight_c{gate}_l0": weight for gate, weight in own}
    cell = build_cell(backend, 3, 5, kind="peephole").double()
    x, state = torch.randn(4, 6, 3, dtype=F64), torch.randn(2, 1, 4, 5, dtype=F64).unbind()
    found = functional_call(cell, weights, (x, state))
    expected = with_gradients(theirs(x, state), theirs.parameters())
    assert_close(with_gradients(found, theirs.parameters()), expected)


@pytest.mark.parametrize("kind", MIN)
@pytest.mark.parametrize("engine", ["scratch", "native", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_min_kinds_at_gates_of_200(kind, engine, dtype):
    """Every pair of gates at ±200 and 0 gives the limit, with finite gradients."""
    if engine == "native" and load_kernel() is None:
        pytest.skip("no C++ compiler for the native kernel")
    backend = {"scratch": {"backend": "scratch"}}.get(engine, {"backend": "fused", "engine": engine})
    cell: Any = build_cell(**backend, input_size=3, hidden_size=1, kind=kind, bias=False).to(dtype)
    weight = cell.all_weights[0][0]
    weight.data = torch.eye(3, dtype=dtype)[3 - len(weight) :]
    a = torch.tensor([-200.0, 0.0, 200.0], dtype=dtype)
    x = torch.cartesian_prod(a, a, a).unsqueeze(1).requires_grad_()  # (27, 1, 3), the gates then g
    h0 = torch.full((1, 27, 1), -3.0, dtype=dtype)
    output, _ = cell(x, (h0,))
    i, f, g = x.detach()[:, 0].double().unbind(-1)
    if kind == "mingru":
        new = torch.sigmoid(f)  # the second of three inputs
    else:
        new = torch.sigmoid(torch.nn.functional.logsigmoid(i) - torch.nn.functional.logsigmoid(f))
    expected = (1 - new) * -3 + new * torch.where(g >= 0, g + 0.5, torch.sigmoid(g))
    assert_close(output[:, 0, 0].double(), expected, rtol=1e-6, atol=1e-6)
    (d_x,) = torch.autograd.grad(output.sum(), x)
    assert d_x.isfinite().all()


@pytest.mark.parametrize("kind", MIN)
@pytest.mark.parametrize("T", [1, 2, 3, 31, 64])
def test_sequential_and_parallel_modes_agree(kind, T):
    step, scan = (
        build_cell("scratch", 5, 7, kind=kind).double(),
        build_cell("fused", 5, 7, kind=kind, engine="plain").double(),
    )
    scan.load_state_dict(step.state_dict())
    x, h = torch.randn(4, T, 5, dtype=F64), -9 * torch.rand(1, 4, 7, dtype=F64)
    assert_close(scan(x, h), step(x, h), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", MIN)
def test_what_needs_recurrent_weights_is_refused(kind):
    with pytest.raises(ValueError, match=rf"^weight_drop=0.1 .* which kind={kind} does not have.$"):
        build_cell("fused", 3, 4, kind=kind, weight_drop=0.1)
    names = [name for name, _ in build_cell("fused", 3, 4, kind=kind).named_parameters()]
    assert names == ["weight_ih_l0", "bias_ih_l0"]


SLSTMS = [{"backend": "scratch"}, {"backend": "fused"}, {"backend": "fused", "engine": "plain"}]


@pytest.mark.parametrize("how", SLSTMS, ids=["scratch", "native", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_slstm_begins_at_any_input_gate(how, dtype):
    """Its first step gives o ⊙ g whatever i and f are, and rows that start later do so beside others."""
    cell: Any = build_cell(**how, input_size=4, hidden_size=1, kind="slstm", heads=1, bias=False).to(dtype)
    cell.weight_ih_l0.data, cell.weight_hh_l0.data = torch.eye(4, dtype=dtype), torch.zeros(4, 1, dtype=dtype)
    a = torch.tensor([-200.0, 0.0, 200.0], dtype=dtype)
    gates = torch.cartesian_prod(a, a, torch.tensor([0.7], dtype=dtype), torch.tensor([0.3], dtype=dtype))
    x = gates.unsqueeze(1).expand(-1, 5, -1).contiguous().requires_grad_()  # (9, 5, 4)
    output, state = cell(x)
    o_g = torch.sigmoid(gates[:, 3]) * torch.tanh(gates[:, 2])
    assert_close(output, o_g[:, None, None].expand_as(output))  # a mean of equal numbers
    assert (state.n >= 1).all()
    d_x, d_W = torch.autograd.grad(output.sum() + state.c.sum(), [x, cell.weight_ih_l0])
    assert d_x.isfinite().all() and d_W.isfinite().all()

    begun = torch.tensor([0.0, 1.0, 0.0], dtype=dtype).view(1, 3, 1)  # the second of three rows has started
    given = (begun, 0.5 * begun, begun, 300 * (1 - begun))
    output, _ = cell(x[:3], given)
    assert_close(output[[0, 2]], cell(x[:3])[0][[0, 2]])
    assert not torch.equal(output[1, :1], cell(x[:3])[0][1, :1]) and output.isfinite().all()


@pytest.mark.parametrize("how", SLSTMS, ids=["scratch", "native", "plain"])
def test_what_stands_beside_n_of_zero_does_not_count(how):
    """As a row that is reset by its n, within a batch."""
    cell: Any = build_cell(**how, input_size=3, hidden_size=8, kind="slstm").double()
    x, zeros = torch.randn(2, 6, 3, dtype=F64), torch.zeros(1, 2, 8, dtype=F64)
    other = (zeros, torch.randn_like(zeros), zeros, 100 * torch.randn_like(zeros))
    assert_close(cell(x, other), cell(x), rtol=0, atol=0)


def test_heads_are_checked():
    with pytest.raises(ValueError, match=r"heads=4 must divide hidden_size=6\."):
        build_cell("fused", 3, 6, kind="slstm")
    with pytest.raises(ValueError, match=r"heads=2 is for kind=slstm, not lstm\."):
        build_cell("fused", 3, 6, heads=2)


@pytest.mark.parametrize("options", [{"rounds": 1}, {"rounds": 2}, {"rounds": 5, "rank": 2}, {"rank": 1}])
@pytest.mark.parametrize("lengths", [None, [3, 1, 5, 2]])
@pytest.mark.parametrize("T", [1, 5])
def test_rounds_and_ranks_of_the_mogrifier(options, lengths, T):
    """The native kernel against plain loops, with every gradient; one step without gradients too."""
    torch.manual_seed(0)
    lengths = lengths and [min(n, T) for n in lengths]
    cell = build_cell("fused", 3, 7, kind="mogrifier", init="torch", num_layers=2, **options).double()
    x, state = torch.randn(4, T, 3, dtype=F64), random_state("mogrifier", 2, 4, 7, dtype=F64)
    results = [
        with_gradients(run(x, state, lengths), cell.parameters()) for run in (cell, partial(reference, cell))
    ]
    assert_close(*results)
    with torch.no_grad():
        assert_close(cell(x, state, lengths)[0], results[0][0])


def test_a_mogrifier_begins_close_to_an_lstm_and_without_its_matrices_is_one():
    lstm, mogrifier = build_cell("fused", 3, 8), build_cell("fused", 3, 8, kind="mogrifier")
    found = mogrifier.load_state_dict(lstm.state_dict(), strict=False)
    assert found.missing_keys == [f"weight_{name}_l0" for name in ("q1", "r2", "q3", "r4")]
    with torch.no_grad():
        for name in found.missing_keys:
            getattr(mogrifier, name).zero_()
    x = torch.randn(2, 5, 3)
    assert_close(mogrifier(x), lstm(x))


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("mogrifier", {"rank": 3}, r"rank=3 must be less than the 3 inputs and 8 units\."),
        ("mogrifier", {"rounds": 0}, r"rounds=0 must be at least 1\."),
        ("lstm", {"rounds": 2}, r"rounds=2 is for kind=mogrifier, not lstm\."),
        ("slstm", {"rank": 2}, r"rank=2 is for kind=mogrifier, not slstm\."),
    ],
)
def test_options_of_the_mogrifier_are_checked(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build_cell("fused", 3, 8, kind=kind, **options)
