"""The fast cell, with a compiler and without one, against scratch and against itself."""

import ctypes
import os
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cell_reference import build_cell, random_state
from lstmlab.cells import BACKENDS, KINDS, fused
from lstmlab.cells.admission import find_precision
from lstmlab.cells.cpu import Cpu
from lstmlab.cells.library import load_amx_kernel, load_kernel

F64 = torch.float64
every_kind = pytest.mark.parametrize("kind", BACKENDS["fused"])


@pytest.fixture(params=["native", "no compiler"])
def path(request, monkeypatch, tmp_path):
    """Both ways that the cell can take on a CPU."""
    load_kernel.cache_clear()
    if request.param == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.warns(UserWarning, match="does without its native kernel"):
            assert load_kernel() is None
    elif shutil.which(os.environ.get("CXX") or "c++") is None:
        pytest.skip("no C++ compiler for the native kernel")
    yield request.param
    load_kernel.cache_clear()


@pytest.fixture
def uninitialised_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def build(backend, input_size, hidden_size, seed=1, **options):
    """A cell with no parameter at a value that could hide a mistake."""
    torch.manual_seed(seed)
    cell = build_cell(backend, input_size, hidden_size, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def results(cell, x, state=None, lengths=None, part=None):
    """Output, final state and every gradient by name. part: the one result that the loss feels."""
    inputs = {"x": x, **dict(cell.named_parameters())}
    output, final = cell(x, state, lengths)
    inputs |= {f"{name}_0": s for name, s in zip(final._fields, state or (), strict=False)}
    found = {"output": output, **final._asdict()}
    loss = sum(
        (v * torch.linspace(-1, 2, v.numel()).view(v.shape).cos()).sum()
        for k, v in found.items()
        if part in (None, k)
    )
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return found | {f"d_{name}": d for name, d in zip(inputs, gradients, strict=True)}


SIZES = {  # B, T, D, H: around the tiles of 16, 32 and 64 columns and of 3 and 6 rows
    "one of each": (1, 1, 1, 1),
    "small": (5, 4, 3, 5),
    "one row": (1, 63, 3, 7),
    "below a tile": (7, 3, 31, 15),
    "above a tile": (13, 2, 65, 33),
    "many rows": (60, 2, 5, 17),
    "more than a block": (130, 2, 520, 130),  # of 512 columns of x and of gates, and of 256 rows and steps
}


@every_kind
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("size", SIZES)
def test_the_numbers_are_those_of_scratch(path, kind, size, ragged, uninitialised_memory_is_nan):
    B, T, D, H = SIZES[size]
    torch.manual_seed(0)
    options = {"kind": kind, "bidirectional": True}
    x = torch.randn(B, T, D, dtype=F64, requires_grad=True)
    state = tuple(s.requires_grad_() for s in random_state(kind, 2, B, H, dtype=F64))
    lengths = torch.randint(1, T + 1, (B,)) if ragged else None
    expected = results(build("scratch", D, H, **options).double(), x, state, lengths)
    assert_close(results(build("fused", D, H, **options).double(), x, state, lengths), expected)


@every_kind
def test_float32_is_as_exact_as_in_scratch(path, kind):
    B, T, D, H = 9, 20, 24, 40
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    errors = []
    exact = results(build("scratch", D, H, kind=kind).double(), x.double())
    for backend in ("scratch", "fused"):
        found = results(build(backend, D, H, kind=kind), x)
        errors.append(
            {k: ((v - exact[k]).abs().max() / exact[k].abs().max()).item() for k, v in found.items()}
        )
    for name, error in errors[1].items():
        assert error < 2 * errors[0][name] + 1e-6, name


def test_sigmoid_and_tanh_to_seven_digits(path):
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.logspace(-30, 0, 1000), torch.tensor([1e4, -1e4])])
    rnn = build_cell("fused", 1, 1, kind="rnn").requires_grad_(False)
    for weight, value in zip(rnn.parameters(), (1.0, 0.0, 0.0, 0.0), strict=True):
        weight.fill_(value)
    assert_close(rnn(x.view(-1, 1, 1))[0].view(-1), x.double().tanh().float(), rtol=4e-7, atol=0)
    lstm: Any = build_cell("fused", 1, 1).requires_grad_(False)
    lstm.weight_ih_l0.copy_(torch.tensor([[0.0], [1.0], [0.0], [0.0]]))  # c' = σ(x) c
    lstm.weight_hh_l0.zero_()
    lstm.bias_ih_l0.zero_()
    ones = torch.ones(1, x.numel(), 1)
    c = lstm(x.view(-1, 1, 1), (ones, ones))[1].c.view(-1)
    assert_close(c, x.double().sigmoid().float(), rtol=4e-7, atol=1e-37)


@every_kind
def test_nan_comes_through(path, kind):
    x = torch.randn(3, 5, 4)
    x[1, 2] = torch.nan
    output, state = build_cell("fused", 4, 20, kind=kind)(x)
    assert output[1, 2:].isnan().all() and all(s[0, 1].isnan().all() for s in state)
    assert output[[0, 2]].isfinite().all() and output[1, :2].isfinite().all()


@every_kind
@pytest.mark.parametrize("B, D, H", [(1, 5, 7), (3, 33, 18), (2, 300, 256)])
def test_one_step_without_gradients(path, kind, B, D, H, uninitialised_memory_is_nan):
    """The step path of decoding, once small and once for several threads."""
    torch.set_num_threads(2)
    cell = build("fused", D, H, kind=kind, num_layers=2)
    x = torch.randn(B, 1, D)
    state = tuple(random_state(kind, 2, B, H))
    expected = cell(x, state)
    with torch.no_grad():
        found = cell(x, state)
    torch.set_num_threads(1)
    assert not found[0].requires_grad
    assert_close(found, expected, rtol=1e-4, atol=1e-4)  # sums of hundreds, in another order


@every_kind
def test_inference_is_training_without_gradients(path, kind, uninitialised_memory_is_nan):
    cell = build("fused", 5, 9, kind=kind, num_layers=2, bidirectional=True, dropout=0.5).eval()
    x, lengths = torch.randn(6, 11, 5), torch.tensor([3, 11, 1, 7, 7, 10])
    expected = cell(x, None, lengths)
    with torch.no_grad():
        assert_close(cell(x, None, lengths), expected)


@every_kind
def test_recomputing_changes_no_number_and_stores_less(path, kind):
    stored: dict = {}

    def store(tensor):
        stored[cell.recompute][tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    found = []
    x, lengths = torch.randn(4, 30, 3, dtype=F64, requires_grad=True), torch.tensor([30, 2, 17, 8])
    for recompute in (False, True):
        cell = build("fused", 3, 16, kind=kind, num_layers=2, recompute=recompute).double()
        stored[recompute] = {}
        with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
            cell(x, None, lengths)
        found.append(results(cell, x, None, lengths))
    assert_close(found[0], found[1])
    assert sum(stored[True].values()) < 0.7 * sum(stored[False].values())


@every_kind
def test_backward_twice_gives_the_same(path, kind):
    cell = build("fused", 3, 5, kind=kind)
    loss = cell(torch.randn(2, 4, 3))[0].sin().sum()
    first = torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(cell.parameters()))
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind, part", [(k, part) for k in BACKENDS["fused"] for part in ("output", *KINDS[k].state._fields)]
)
@pytest.mark.parametrize("T", [1, 9])
def test_each_result_alone_has_the_gradients_of_scratch(path, kind, part, T, uninitialised_memory_is_nan):
    torch.manual_seed(0)
    x = torch.randn(4, T, 3, dtype=F64, requires_grad=True)
    lengths = torch.randint(1, T + 1, (4,))
    found = [
        results(build(backend, 3, 5, kind=kind, num_layers=2).double(), x, None, lengths, part)
        for backend in ("fused", "scratch")
    ]
    assert_close(*found)


@every_kind
def test_threads_share_the_rows(path, kind):
    x, lengths = torch.randn(7, 9, 3, dtype=F64, requires_grad=True), torch.tensor([9, 1, 4, 4, 2, 8, 9])
    cell = build("fused", 3, 70, kind=kind).double()
    found = []
    for threads in (1, 2, 16):
        torch.set_num_threads(threads)
        found.append(results(cell, x, None, lengths))
    torch.set_num_threads(1)
    assert_close(found[0], found[1])
    assert_close(found[0], found[2])


def test_fewer_threads_than_asked_for(path):
    """As OMP_THREAD_LIMIT, or a parallel region around, would have it."""
    openmp = ctypes.CDLL(None)  # torch's own
    x, lengths = torch.randn(7, 9, 3, dtype=F64, requires_grad=True), torch.tensor([9, 1, 4, 4, 2, 8, 9])
    cell = build("fused", 3, 70).double()
    expected = results(cell, x, None, lengths)
    levels = openmp.omp_get_max_active_levels()
    torch.set_num_threads(3)
    openmp.omp_set_max_active_levels(0)
    found = results(cell, x, None, lengths)
    openmp.omp_set_max_active_levels(levels)
    torch.set_num_threads(1)
    assert_close(found, expected)


@pytest.mark.parametrize("elsewhere", ["weights", "state"])
def test_tensors_on_two_devices_are_refused(path, elsewhere):
    cell = build("fused", 3, 5).to("meta" if elsewhere == "weights" else "cpu")
    state = torch.zeros(2, 1, 4, 5, device="meta" if elsewhere == "state" else "cpu")
    with pytest.raises(RuntimeError, match="meta"):
        cell(torch.randn(4, 6, 3), tuple(state))


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("dtype", [None, F64, torch.bfloat16])
def test_the_state_returns_as_it_came(path, T, dtype):
    """And in the dtype of the weights, if there was none: a carried c is not rounded at each window."""
    cell, state = build("fused", 3, 5), None
    if dtype is not None:
        state = (torch.zeros(1, 4, 5, dtype=dtype), torch.zeros(1, 4, 5, dtype=dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, found = cell(torch.randn(4, T, 3).bfloat16(), state)
    assert {s.dtype for s in found} == {dtype or torch.float32}


@pytest.mark.parametrize("layout", ["time first", "every other step", "last axis strided", "one row for all"])
def test_any_layout_of_x(path, layout):
    x = torch.randn(4, 6, 3, dtype=F64)
    x = {
        "time first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other step": x.repeat_interleave(2, 1)[:, ::2],
        "last axis strided": x.transpose(1, 2).contiguous().transpose(1, 2),
        "one row for all": x[:1].expand(4, -1, -1),
    }[layout].requires_grad_()
    cell = build("fused", 3, 5).double()
    expected = results(cell, x.detach().contiguous().requires_grad_())
    assert_close(results(cell, x), expected)


def test_a_gradient_of_any_layout(path):
    """Mean and sum hand back one number, expanded; a transposition hands back a strided tensor."""
    cell = build("fused", 3, 5).double()
    scratch = build("scratch", 3, 5).double()
    x = torch.randn(4, 6, 3, dtype=F64)
    weights = torch.randn(4, 5, 6, dtype=F64)
    for loss in (lambda y: y.mean(), lambda y: (y.transpose(1, 2).contiguous() * weights).sum()):
        gradients = [torch.autograd.grad(loss(c(x)[0]), list(c.parameters())) for c in (cell, scratch)]
        assert_close(*gradients)


def test_second_derivative_is_refused_with_the_way_out(path):
    cell = build_cell("fused", 3, 5, kind="peephole")  # PyTorch's operators have one
    loss = cell(torch.randn(2, 4, 3))[0].sum()
    with pytest.raises(RuntimeError, match="cell=scratch"):
        torch.autograd.grad(loss, list(cell.parameters()), create_graph=True)


def test_only_what_is_asked_for_gets_a_gradient(path):
    cell = build_cell("fused", 3, 5).requires_grad_(False)
    x = torch.randn(2, 4, 3, requires_grad=True)
    cell(x)[0].sum().backward()
    assert x.grad is not None and cell.weight_hh_l0.grad is None
    cell.bias_hh_l0.requires_grad_(True)
    cell(x.detach())[0].sum().backward()
    assert cell.bias_hh_l0.grad is not None
    with torch.no_grad():
        assert not cell(x)[0].requires_grad


@every_kind
@pytest.mark.parametrize("D, lengths", [(7, [6, 2, 3]), (1030, [3, 2] * 103)], ids=["small", "blocks"])
def test_bf16_autocast(path, kind, D, lengths):
    """Blocks: more than 1,024 columns of x, and than 512 rows and steps."""
    x = torch.randn(len(lengths), max(lengths), D, generator=torch.Generator().manual_seed(0))
    x *= (7 / D) ** 0.5  # more would saturate the gates, and their gradients be small differences
    cell, scratch = (build(backend, D, 33, kind=kind, init="torch") for backend in ("fused", "scratch"))
    gradients = []
    for c in (cell, scratch):
        with torch.autocast("cpu", torch.bfloat16, enabled=c is cell):
            output, state = c(x, None, torch.tensor(lengths))
        output.float().square().sum().backward()
        gradients.append((output.float(), *state, *(p.grad for p in c.parameters())))
        assert state[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        products_alone = find_precision(torch.float32) == "bf16"  # all else in float32
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() < (0.02 if products_alone else 0.05) * expected.norm()


@pytest.fixture
def amx(monkeypatch):
    """The tiles of AMX, emulated where the CPU has none."""
    if load_amx_kernel() is None:
        pytest.skip("no C++ compiler, or no AVX-512")
    monkeypatch.setattr(fused, "find_cpu", lambda: Cpu("any", "GenuineIntel", ("AVX-512", "AMX-BF16")))


@every_kind
@pytest.mark.parametrize(
    "B, T, D, H, lengths",
    [(3, 6, 7, 33, None), (33, 4, 66, 17, "ragged"), (70, 9, 40, 64, "ragged"), (2, 530, 5, 20, None)],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_tiles(amx, kind, B, T, D, H, lengths, bidirectional):
    """Blocks of one and of two tiles, whole and not; more than 512 steps; NaN in the padding."""
    options = {"kind": kind, "init": "torch", "bidirectional": bidirectional}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, T, D, generator=generator) * (7 / D) ** 0.5
    if lengths:
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
        x[torch.arange(T) >= lengths[:, None]] = torch.nan
    tiled = build_cell("fused", D, H, engine="amx", **options)
    scratch = build_cell("scratch", D, H, **options)
    scratch.load_state_dict(tiled.state_dict())
    found = []
    for cell in (tiled, scratch):
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cell is tiled):
            output, state = cell(x, None, lengths)
        gradients = torch.autograd.grad(output.square().sum() + state[0].sum(), [x, *cell.parameters()])
        found.append([output, *state, *gradients])
    share = 0.02 if KINDS[kind].reads_h else 0.05  # the slope of their G jumps at 0
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() < share * theirs.norm()


# A mogrifier's products are of numbers that it has made, which bf16 does not hold.
kinds_of_given_factors = pytest.mark.parametrize("kind", [k for k in BACKENDS["fused"] if k != "mogrifier"])


@kinds_of_given_factors
def test_sums_in_tiles_are_float32(amx, kind):
    """Two steps of which bf16 can hold all factors but the second h: no sum is rounded before it ends."""
    cell, exact = (
        build("fused", 77, 33, kind=kind, engine="amx"),
        build("scratch", 77, 33, kind=kind).double(),
    )
    for mine, theirs in zip(cell.parameters(), exact.parameters(), strict=True):
        mine.data = mine.data.bfloat16().float()
        theirs.data = mine.data.double()
    x, *state = (s.bfloat16().float() for s in (torch.randn(40, 77), *random_state(kind, 1, 40, 33)))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = cell(torch.stack([x, x], 1), state)
    expected, _ = exact(x.double()[:, None], tuple(s.double() for s in state))
    assert_close(output[:, :1], expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_backward_multiplies_what_forward_did(path):
    """Stored or computed again, once or twice, outside of autocast."""
    cell, x, found = build("fused", 7, 33), torch.randn(3, 6, 7), []
    for cell.recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = cell(x)
        loss = output.float().square().sum()
        found += [torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True) for _ in range(2)]
    for other in found[1:]:
        assert_close(other, found[0], rtol=0, atol=0)


@kinds_of_given_factors
def test_bf16_products_are_summed_in_float32(path, kind):
    """One step from what bf16 can hold: nothing is rounded before the sums."""
    with torch.autocast("cpu", torch.bfloat16):
        if find_precision(torch.float32) != "bf16":
            pytest.skip("no native products in bf16 here")
    cell = build("fused", 77, 33, kind=kind)
    exact = build("scratch", 77, 33, kind=kind).double()
    for mine, theirs in zip(cell.parameters(), exact.parameters(), strict=True):
        mine.data = mine.data.bfloat16().float()
        theirs.data = mine.data.double()
    x, *state = (s.bfloat16().float() for s in (torch.randn(5, 77), *random_state(kind, 1, 5, 33)))
    with torch.autocast("cpu", torch.bfloat16):
        found = cell(x[:, None], state)
    expected = exact(x.double()[:, None], tuple(s.double() for s in state))
    assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_numbers_are_rounded_to_bf16_as_pytorch_rounds_them(path):
    """To the nearest one; halfway between two, to the even one."""
    with torch.autocast("cpu", torch.bfloat16):
        if find_precision(torch.float32) != "bf16":
            pytest.skip("no native products in bf16 here")
    rnn = build_cell("fused", 1, 1, kind="rnn")
    for weight, value in zip(rnn.parameters(), (1.0, 0.0, 0.0, 0.0), strict=True):
        weight.data.fill_(value)
    steps = 1 + torch.arange(256) / 256  # bf16 has every second one
    last_nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    x = torch.cat([steps, -steps, torch.randn(1000), last_nan, torch.tensor([torch.inf, -torch.inf])])
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = rnn(x.view(-1, 1, 1))
    assert_close(output.view(-1), x.bfloat16().float().tanh(), equal_nan=True)


def test_a_bf16_model(path):
    cell = build_cell("fused", 8, 16).bfloat16()
    output, state = cell(torch.randn(3, 6, 8, dtype=torch.bfloat16))
    assert output.dtype == state.c.dtype == torch.bfloat16
    output.sum().backward()


def test_it_learns_what_nn_lstm_learns(path):
    """Twenty steps of SGD from the same weights end at the same weights."""
    theirs = nn.LSTM(6, 20, batch_first=True).double()
    ours = build_cell("fused", 6, 20).double()
    ours.load_state_dict(theirs.state_dict())
    x, y = torch.randn(8, 10, 6, dtype=F64), torch.randn(8, 10, 20, dtype=F64)
    for cell in (ours, theirs):
        optimizer = torch.optim.SGD(cell.parameters(), 0.5, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            (cell(x)[0] - y).square().mean().backward()
            optimizer.step()
    assert_close(ours.state_dict(), theirs.state_dict())
