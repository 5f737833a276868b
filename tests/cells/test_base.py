"""The contract: every cell against plain loops from the equations, and against each other."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cell_reference import build_cell, random_state, reference
from lstmlab.cells import BACKENDS, KINDS

CELLS = [(backend, kind) for backend, kinds in BACKENDS.items() for kind in kinds]
every_cell = pytest.mark.parametrize("backend, kind", CELLS)
IN, H = 3, 5


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def build(backend, kind, **options):
    """A cell with no parameter at a value that could hide a mistake."""
    torch.manual_seed(1)
    cell = build_cell(backend, IN, H, kind=kind, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def draw_state(cell, B):
    state = random_state(cell.kind, cell.num_layers * (2 if cell.bidirectional else 1), B, H)
    return tuple(s.requires_grad_() for s in state)


def loss_of(output, state):
    """Feels every number of output and state, each with a weight of its own."""
    parts = [output.reshape(-1), *(s.reshape(-1) for s in state)]
    numbers = torch.cat(parts)
    return (numbers * torch.linspace(-1, 1, numbers.numel()).cos()).sum()


SHAPES: dict[str, dict[str, Any]] = {
    "one step, one row": {"B": 1, "T": 1},
    "one row": {"B": 1, "T": 7},
    "one step, ragged": {"B": 3, "T": 1, "lengths": [1, 1, 1]},
    "two directions": {"B": 3, "T": 4, "bidirectional": True},
    "three layers": {"B": 2, "T": 5, "num_layers": 3},
    "ragged": {"B": 4, "T": 6, "lengths": [2, 6, 1, 4]},
    "ragged, none full": {"B": 3, "T": 6, "lengths": [3, 1, 4]},
    "all, ragged": {
        "B": 4, "T": 5, "num_layers": 3, "bidirectional": True, "lengths": [1, 5, 3, 2],
    },
    "all, time first": {
        "B": 3, "T": 4, "num_layers": 2, "bidirectional": True, "lengths": [4, 2, 3],
        "batch_first": False,
    },
}  # fmt: skip


@every_cell
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
def test_output_state_and_every_gradient_are_those_of_the_equations(backend, kind, shape, given):
    options = dict(SHAPES[shape])
    B, T = options.pop("B"), options.pop("T")
    lengths = torch.tensor(options.pop("lengths")) if "lengths" in options else None
    cell = build(backend, kind, **options)
    x = torch.randn(B, T, IN, requires_grad=True)
    start = draw_state(cell, B)
    inputs = {"x": x, **dict(cell.named_parameters())}
    if given:
        inputs |= {f"{name}0": s for name, s in zip(KINDS[kind].state._fields, start, strict=True)}

    x_in = x if cell.batch_first else x.transpose(0, 1)
    output, state = cell(x_in, start if given else None, lengths)
    assert isinstance(state, KINDS[kind].state)
    if not cell.batch_first:
        output = output.transpose(0, 1)
    gradients = torch.autograd.grad(loss_of(output, state), list(inputs.values()))

    zeros = tuple(torch.zeros_like(s) for s in start)
    expected, expected_state = reference(cell, x, start if given else zeros, lengths)
    wanted = torch.autograd.grad(loss_of(expected, expected_state), list(inputs.values()))

    assert_close(output, expected)
    assert_close(list(state), expected_state)
    for name, got, want in zip(inputs, gradients, wanted, strict=True):
        assert_close(got, want, msg=f"the gradient of {name} differs")


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_backends_agree_pairwise(kind, shape):
    options = dict(SHAPES[shape])
    B, T = options.pop("B"), options.pop("T")
    lengths = torch.tensor(options.pop("lengths")) if "lengths" in options else None
    x = torch.randn((B, T, IN) if options.get("batch_first", True) else (T, B, IN))
    results = {}
    for backend in [b for b, kinds in BACKENDS.items() if kind in kinds]:
        cell = build(backend, kind, **options)
        leaf = x.clone().requires_grad_()
        output, state = cell(leaf, None, lengths)
        loss_of(output, state).backward()
        gradients = {name: p.grad for name, p in cell.named_parameters()}
        results[backend] = {"output": output, "x": leaf.grad} | state._asdict() | gradients
    for a, b in itertools.combinations(results, 2):
        assert list(results[a]) == list(results[b])
        for name in results[a]:
            assert_close(results[a][name], results[b][name], msg=f"{a} and {b} differ in {name}")


@every_cell
def test_a_ragged_row_is_the_row_alone(backend, kind):
    cell = build(backend, kind, num_layers=2, bidirectional=True)
    x, start, lengths = torch.randn(4, 6, IN), draw_state(cell, 4), torch.tensor([2, 6, 1, 4])
    output, state = cell(x, start, lengths)
    for b, n in enumerate(lengths):
        alone, alone_state = cell(x[b : b + 1, :n], tuple(s[:, b : b + 1] for s in start))
        assert_close(output[b : b + 1, :n], alone)
        assert_close([s[:, b : b + 1] for s in state], list(alone_state))
        assert not output[b, n:].any()


@every_cell
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e300])
def test_what_stands_in_the_padding_does_not_matter(backend, kind, poison):
    cell = build(backend, kind, num_layers=2, bidirectional=True)
    lengths = torch.tensor([2, 5, 3])
    padding = torch.arange(5) >= lengths[:, None]
    clean = torch.randn(3, 5, IN)
    results = []
    for x in (clean, clean.masked_fill(padding[:, :, None], poison)):
        cell.zero_grad()
        leaf = x.requires_grad_()
        output, state = cell(leaf, None, lengths)
        loss_of(output, state).backward()
        results.append([output, *state, leaf.grad, *(p.grad for p in cell.parameters())])
    assert_close(*results, rtol=0, atol=0)
    assert not results[1][-1 - len(list(cell.parameters()))][padding].any()


@every_cell
def test_two_halves_with_carried_state_are_the_whole(backend, kind):
    cell = build(backend, kind, num_layers=2)
    x = torch.randn(2, 7, IN)
    output, state = cell(x)
    first, between = cell(x[:, :3])
    second, last = cell(x[:, 3:], between)
    assert_close(torch.cat([first, second], 1), output)
    assert_close(last, state)


@pytest.mark.parametrize("backend, kind", [cell for cell in CELLS if KINDS[cell[1]].reads_h])
def test_weight_drop(backend, kind):
    torch.manual_seed(2)
    cell = build_cell(
        backend, IN, 40, kind=kind, num_layers=2, bidirectional=True, weight_drop=0.3, init="torch"
    )
    before = {name: value.clone() for name, value in cell.state_dict().items()}
    x = torch.randn(2, 6, IN)

    torch.manual_seed(3)
    output, state = cell(x)
    loss_of(output, state).backward()
    torch.manual_seed(3)
    dropped = {
        name: F.dropout(value, 0.3) if "weight_hh" in name else value for name, value in before.items()
    }
    plain = build_cell(backend, IN, 40, kind=kind, num_layers=2, bidirectional=True)
    plain.load_state_dict(dropped)
    assert_close(output, plain(x)[0])
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None
        zeros = torch.eq(parameter.grad, 0).double().mean()
        assert zeros == pytest.approx(0.3 if "weight_hh" in name else 0.0, abs=0.05), name

    assert not torch.equal(output, cell(x)[0])  # a fresh mask each call
    assert_close(cell.state_dict(), before)
    plain.load_state_dict(before)
    assert_close(cell.eval()(x), plain.eval()(x))


def constant_first_layer(backend, kind, **options):
    """Without dropout its output is the same number at all steps, as layer 0 has no memory and
    layer 1 sees one unit of layer 0 in one unit of its own."""
    cell = build_cell(backend, 1, 200, kind=kind, num_layers=2, **options)
    gates = KINDS[kind].gates
    candidate = {"rnn": "h", "gru": "n"}.get(kind, "g")
    keeps = {"f": -1000, "z": 1000 if kind == "mingru" else -1000}
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.startswith("gain"):
                continue
            parameter.zero_()
            blocks = dict(zip(gates, parameter.chunk(len(gates)), strict=False))
            if name.startswith("bias_ih") and kind != "rnn":
                gate = "f" if "f" in gates else "z"
                blocks[gate].fill_(keeps[gate])
            if name == "bias_ih_l0":
                blocks[candidate].fill_(1)
            if name == "weight_ih_l1":
                blocks[candidate].fill_diagonal_(1)
    return cell


@every_cell
def test_dropout_between_layers_locked_and_not(backend, kind):
    x = torch.zeros(8, 5, 1)
    free = constant_first_layer(backend, kind, dropout=0.4)
    locked = constant_first_layer(backend, kind, dropout=0.4, variational=True)
    rest = constant_first_layer(backend, kind)(x)[0]
    for cell in (free, locked):
        output, _ = cell(x)
        if kind != "layernorm":  # which moves every unit when one is dropped
            zero = 0.5 if not KINDS[kind].reads_h else 0.0  # G(0) of minGRU and minLSTM
            assert torch.eq(output, zero).double().mean() == pytest.approx(0.4, abs=0.06)
            assert (output[output != zero] > rest.max()).all()  # scaled by 1 / (1 − p)
        assert (output == output[:, :1]).all() == cell.variational
        assert not torch.equal(output, cell(x)[0])
        assert_close(cell.eval()(x)[0], rest)

    rows = locked.train()(x)[0][:, 0]
    assert not torch.equal(rows[0], rows[1])  # each row has its own mask


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_locked_and_weight_dropout_draw_the_same_masks_in_every_backend(kind, batch_first):
    x = torch.randn(4, 4, IN)
    results = []
    for backend in [b for b, kinds in BACKENDS.items() if kind in kinds]:
        cell = build(
            backend, kind, num_layers=3, bidirectional=True, dropout=0.5, variational=True,
            weight_drop=0.2, batch_first=batch_first,
        )  # fmt: skip
        torch.manual_seed(4)
        output, state = cell(x, None, torch.tensor([4, 2, 1, 3]))
        loss_of(output, state).backward()
        results.append([output, *state, *(p.grad for p in cell.parameters())])
    for other in results[1:]:
        assert_close(results[0], other)


@every_cell
@pytest.mark.parametrize("lengths", [None, [2, 6, 4]])
def test_bf16_autocast(backend, kind, lengths):
    torch.set_default_dtype(torch.float32)
    cell = build(backend, kind, num_layers=2, bidirectional=True)
    x = torch.randn(3, 6, IN)
    lengths = None if lengths is None else torch.tensor(lengths)
    results = []
    for enabled in (False, True):
        cell.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, state = cell(x, None, lengths)
        assert all(s.dtype == torch.float32 for s in state)
        loss_of(output.float(), state).backward()
        assert all(p.grad.dtype == torch.float32 for p in cell.parameters())
        results.append([output.float(), *state, *(p.grad for p in cell.parameters())])
    for plain, cast in zip(*results, strict=True):
        assert (plain - cast).norm() < 0.1 * plain.norm()


@every_cell
def test_bad_input_is_refused(backend, kind):
    cell = build(backend, kind, num_layers=2)
    x = torch.randn(2, 4, IN)
    good = draw_state(cell, 2)
    with pytest.raises(ValueError, match=r"input must be \(B, T, I\).* I=3, not \(2, 4, 4\)"):
        cell(torch.randn(2, 4, IN + 1))
    with pytest.raises(ValueError, match=r"input must be .* not \(2, 2, 4, 3\)"):
        cell(x[None].expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match=r"input must be .* T at least 1"):
        cell(x[:, :0])
    with pytest.raises(ValueError, match=r"hx must be \(h \(2, 2, 5\).*, not \[\(1, 2, 5\)"):
        cell(x, tuple(s[:1] for s in good))
    with pytest.raises(ValueError, match="hx must be"):
        cell(x, (*good, good[0]))
    with pytest.raises(ValueError, match="hx must be"):
        cell(x, good[0][:1])
    with pytest.raises(ValueError, match=r"hx of one sequence .* has members \(L·D, H\), not \(2, 2, 5\)"):
        cell(x[0], good)
    with pytest.raises(ValueError, match=r"the dtype of input, torch\.float64, not torch\.float32"):
        cell(x, tuple(s.float() for s in good))
    for bad in ([0, 4], [4, 5]):
        with pytest.raises(ValueError, match=rf"lengths must be 1 to T=4, not \[{bad[0]}, {bad[1]}"):
            cell(x, None, torch.tensor(bad))
    with pytest.raises(ValueError, match=r"lengths must be \(2,\) integers"):
        cell(x, None, torch.tensor([1, 2, 3]))
    for wrong in ([1.0, 2.0], [True, True]):
        with pytest.raises(ValueError, match="integers"):
            cell(x, None, wrong)


def test_time_first_is_named_in_the_refusal():
    cell = build("scratch", "rnn", batch_first=False)
    with pytest.raises(ValueError, match=r"\(T, B, I\)"):
        cell(torch.randn(2, 2, 2))
