"""What nn.LSTM, nn.GRU and nn.RNN take, every cell takes, with the same result."""

import copy
import doctest
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.testing import assert_close

from cell_reference import build_cell
from lstmlab import cells
from lstmlab.cells import BACKENDS, KINDS

F64 = torch.float64
I, H = 3, 5
TORCH: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
every_cell = pytest.mark.parametrize(
    "backend, kind", [(backend, kind) for backend, kinds in BACKENDS.items() for kind in kinds]
)
every_cell_of_torch = pytest.mark.parametrize(
    "backend, kind", [(backend, kind) for backend in BACKENDS for kind in TORCH]
)


def pair(backend: str, kind: str, **options: Any) -> tuple[Any, Any]:
    """One of our cells, and PyTorch's with its weights."""
    theirs = TORCH[kind](I, H, **{"batch_first": True, "num_layers": 2, **options}).double()
    ours = build_cell(backend, I, H, kind=kind, **{"num_layers": 2, **options}).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def members(state: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


def given_state(kind: str, *shape: int) -> Any:
    """As nn.LSTM takes it: a pair, and of GRU and RNN a tensor."""
    torch.manual_seed(0)
    h, c = torch.randn(2, *shape, dtype=F64)
    return (h, c) if kind == "lstm" else h


@every_cell_of_torch
@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_state_in_the_forms_of_torch(backend, kind, keyword, bidirectional):
    ours, theirs = pair(backend, kind, bidirectional=bidirectional)
    x, hx = torch.randn(2, 4, I, dtype=F64), given_state(kind, 4 if bidirectional else 2, 2, H)
    output, state = ours(input=x, hx=hx) if keyword else ours(x, hx)
    expected, expected_state = theirs(x, hx)
    assert_close(output, expected)
    assert isinstance(state, Tensor) == isinstance(hx, Tensor) == isinstance(expected_state, Tensor)
    assert_close(members(state), members(expected_state))


@every_cell
@pytest.mark.parametrize("sequence", [tuple, list])
def test_state_as_a_tuple_or_a_list(backend, kind, sequence):
    cell = build_cell(backend, I, H, kind=kind, num_layers=2).double()
    x = torch.randn(2, 4, I, dtype=F64)
    _, between = cell(x[:, :2])
    output, state = cell(x[:, 2:], sequence(between))
    assert type(state) is type(between)
    assert_close(output, cell(x)[0][:, 2:])


@every_cell_of_torch
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_one_sequence_without_a_batch_axis(backend, kind, batch_first, given):
    ours, theirs = pair(backend, kind, batch_first=batch_first, bidirectional=True)
    x, hx = torch.randn(4, I, dtype=F64), given_state(kind, 4, H) if given else None
    output, state = ours(x, hx)
    expected, expected_state = theirs(x, hx)
    assert_close(output, expected)
    assert_close(members(state), members(expected_state))


@every_cell
def test_one_sequence_is_the_batch_of_one(backend, kind):
    cell = build_cell(backend, I, H, kind=kind).double()
    x = torch.randn(6, I, dtype=F64)
    output, state = cell(x, None, [4])
    expected, expected_state = cell(x[None], None, [4])
    assert_close(output, expected[0])
    assert_close(list(state), [s[:, 0] for s in expected_state])


@every_cell_of_torch
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_packed_in_and_out(backend, kind, batch_first, enforce_sorted, given):
    ours, theirs = pair(backend, kind, batch_first=batch_first, bidirectional=True)
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    packed = pack_sequence([torch.randn(n, I, dtype=F64) for n in lengths], enforce_sorted)
    hx = given_state(kind, 4, 4, H) if given else None
    output, state = ours(packed, hx)
    expected, expected_state = theirs(packed, hx)
    assert isinstance(output, PackedSequence)
    assert_close(output.data, expected.data)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert_close(getattr(output, name), getattr(expected, name))
    assert_close(members(state), members(expected_state))


@every_cell
def test_packed_is_ragged(backend, kind):
    cell = build_cell(backend, I, H, kind=kind, num_layers=2, bidirectional=True).double()
    packed = pack_sequence([torch.randn(n, I, dtype=F64) for n in (2, 5, 3)], enforce_sorted=False)
    x, lengths = pad_packed_sequence(packed, batch_first=True)
    output, state = cell(packed)
    expected, expected_state = cell(x, None, lengths)
    assert_close(pad_packed_sequence(output, batch_first=True)[0], expected)
    assert_close(list(state), list(expected_state))
    with pytest.raises(ValueError, match="PackedSequence holds its own"):
        cell(packed, None, lengths)


@every_cell
@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"bidirectional": True, "num_layers": 2}])
def test_an_empty_batch(backend, kind, options):
    cell = build_cell(backend, I, H, kind=kind, **options).double()
    x = torch.randn(0, 4, I, dtype=F64, requires_grad=True)
    x_in = x if cell.batch_first else x.transpose(0, 1)
    for lengths in (None, torch.zeros(0, dtype=torch.long)):
        output, state = cell(x_in, None, lengths)
        D = 2 if cell.bidirectional else 1
        assert output.shape == ((0, 4, D * H) if cell.batch_first else (4, 0, D * H))
        assert all(s.shape == (cell.num_layers * D, 0, H) for s in state)
        cell.zero_grad()
        output.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in cell.parameters())
    assert cell(x_in, state)[0].shape == output.shape


@every_cell
@pytest.mark.parametrize("form", [list, tuple, torch.tensor, lambda n: torch.tensor(n, dtype=torch.int32)])
def test_lengths_in_every_form(backend, kind, form):
    cell = build_cell(backend, I, H, kind=kind).double()
    x = torch.randn(3, 5, I, dtype=F64)
    expected = cell(x, None, torch.tensor([2, 5, 1]))
    assert_close(cell(x, None, form([2, 5, 1])), expected)
    assert_close(cell(x, lengths=form([2, 5, 1])), expected)


@every_cell_of_torch
def test_without_biases(backend, kind):
    ours, theirs = pair(backend, kind, bias=False, bidirectional=True)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    x = torch.randn(2, 4, I, dtype=F64)
    assert_close(ours(x)[0], theirs(x)[0])
    gradients = [torch.autograd.grad(m(x)[0].sin().sum(), list(m.parameters())) for m in (ours, theirs)]
    assert_close(*gradients)


@every_cell
def test_without_biases_is_with_biases_of_zero(backend, kind):
    without = build_cell(backend, I, H, kind=kind, bias=False).double()
    zero: Any = build_cell(backend, I, H, kind=kind).double()
    missing = zero.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing == [name for name, _ in zero.named_parameters() if name.startswith("bias")]
    nn.init.zeros_(zero.bias_ih_l0)
    x = torch.randn(2, 4, I, dtype=F64)
    assert_close(without(x), zero(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bidirectional": True}, {"batch_first": False}])
@pytest.mark.parametrize("lengths", [None, [4, 2, 3]])
def test_projection(backend, options, lengths):
    """Sak et al. 2014, against nn.LSTM, gradients included."""
    ours, theirs = pair(backend, "lstm", proj_size=2, **options)
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }
    x = torch.randn(3, 4, I, dtype=F64)
    D = 2 if ours.bidirectional else 1
    hx = torch.randn(2 * D, 3, 2, dtype=F64), torch.randn(2 * D, 3, H, dtype=F64)
    x_in = x if ours.batch_first else x.transpose(0, 1)
    found = ours(x_in, hx, lengths)
    if lengths is None:
        expected = theirs(x_in, hx)
    else:
        packed = nn.utils.rnn.pack_padded_sequence(x_in, torch.tensor(lengths), ours.batch_first, False)
        output, state = theirs(packed, hx)
        expected = pad_packed_sequence(output, ours.batch_first)[0], state
    assert_close(found[0], expected[0])
    assert_close(list(found[1]), list(expected[1]))
    loss = [sum(t.sin().sum() for t in (y, *state)) for y, state in (found, expected)]
    gradients = [
        torch.autograd.grad(one, list(m.parameters())) for one, m in zip(loss, (ours, theirs), strict=True)
    ]
    assert_close(*gradients)


def test_projection_out_of_range():
    with pytest.raises(ValueError, match="proj_size=5 must be less than hidden_size=5"):
        build_cell("scratch", I, H, proj_size=5)
    with pytest.raises(ValueError, match="proj_size=2 is for kind=lstm, not gru"):
        build_cell("torch", I, H, kind="gru", proj_size=2)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_cell_begins_alive():
    for backend in BACKENDS:
        assert build_cell(backend, I, H, proj_size=2)(torch.randn(2, 4, I))[0].abs().mean() > 0.01


@every_cell_of_torch
def test_methods_of_torch(backend, kind):
    ours, theirs = pair(backend, kind, bidirectional=True)
    ours.flatten_parameters()
    assert_close(ours.all_weights, theirs.all_weights)
    x = torch.randn(2, 4, I, dtype=F64)
    assert_close(copy.deepcopy(ours)(x), ours(x))


README = (Path(cells.build_cell.__code__.co_filename).parent / "README.md").read_text(encoding="utf-8")


def read_shapes(text: str, **sizes: int) -> dict[str, tuple[int, ...]]:
    """Of "`weight_ih` (4H, I)" and the like: the shapes by name."""
    found = re.findall(r"((?:`\w+`, )*`\w+`) (\([^)]+\))", text)
    shapes = {names: eval(re.sub(r"(\d)H", r"\1 * H", shape), sizes) for names, shape in found}
    return {name: shape for names, shape in shapes.items() for name in re.findall(r"\w+", names)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_are_those_of_the_readme(kind):
    """Names, shapes and gates, in each layer and direction; then those with the row's option."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+ \| .*) \|$", README, re.MULTILINE))
    gates, _, text = rows[kind].partition(" | ")
    assert gates == ", ".join(KINDS[kind].gates)
    if text.startswith("those of `lstm`"):
        text = rows["lstm"].partition("with `")[0] + text
    always, _, sometimes = text.partition("with `")
    sizes = {"H": 8, "P": 5, "k": 2, "heads": 4}
    options: dict[str, Any] = {"kind": kind, "num_layers": 2, "bidirectional": True}
    if kind == "mogrifier":
        options["rounds"] = 3
    cell = cells.build_cell("fused", 3, 8, **options)
    expected = {
        f"{name}_{layer}": shape
        for layer, I in (("l0", 3), ("l0_reverse", 3), ("l1", 16), ("l1_reverse", 16))
        for name, shape in read_shapes(always, I=I, **sizes).items()
    }
    assert {name: tuple(p.shape) for name, p in cell.named_parameters()} == expected
    if sometimes:
        option, letter = sometimes.partition("`")[0].split("=")
        found = cells.build_cell("fused", 3, 8, **options, **{option: sizes[letter]}).state_dict()
        shapes = read_shapes(sometimes, I=3, **sizes)
        assert shapes == {name: tuple(found[f"{name}_l0"].shape) for name in shapes} != {}


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_readme(number):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    exec(examples[number], {})


def test_the_example_of_build_cell():
    names = {"build_cell": cells.build_cell, "torch": torch}
    (example,) = doctest.DocTestFinder(recurse=False).find(cells.build_cell, "build_cell", globs=names)
    assert len(example.examples) >= 8
    assert doctest.DocTestRunner().run(example).failed == 0
