"""Any cell, under anything that code around it may do, against plain loops.

More cases, other ones each time: pytest tests/cells/test_properties.py --hypothesis-profile thorough
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from cell_reference import build_cell, random_state, reference
from lstmlab.cells import BACKENDS

CELLS = [(backend, kind) for backend, kinds in BACKENDS.items() for kind in kinds]
size = st.integers(1, 5)

# The same numbers in another layout
LAYOUTS = {
    "contiguous": lambda t: t,
    "column-major": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "first axis last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "negative bit": lambda t: torch._neg_view(-t),
}


def constant(t: Tensor) -> Tensor:
    """All rows alike, in the memory of one."""
    return t[:1].expand_as(t)


def change_weight(cell: Any, name: str, change: str) -> None:
    weight = getattr(cell, name)
    if change in LAYOUTS:
        weight.data = LAYOUTS[change](weight.data)
    elif change == "constant":
        weight.data = constant(weight.data)
    elif change == "pruned":
        prune.l1_unstructured(cell, name, 0.5)
    elif change == "pruned for good":
        prune.l1_unstructured(cell, name, 0.5)
        prune.remove(cell, name)
    elif change == "weight norm" and weight.dim() > 1:
        parametrizations.weight_norm(cell, name)
    elif change == "set again":
        delattr(cell, name)
        setattr(cell, name, weight)
    elif change == "buffer":
        delattr(cell, name)
        cell.register_buffer(name, weight.detach())
    elif change == "frozen":
        weight.requires_grad_(False)


CHANGES = [*LAYOUTS, "constant", "pruned", "pruned for good", "weight norm", "set again", "buffer", "frozen"]


@st.composite
def cells(draw) -> Any:
    backend, kind = draw(st.sampled_from(CELLS))
    options: dict[str, Any] = {
        "kind": kind,
        "num_layers": draw(st.integers(1, 2)),
        "bidirectional": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "recompute": backend == "fused" and draw(st.booleans()),
    }
    I, H = draw(size), draw(size)
    if kind == "lstm" and H > 1 and draw(st.integers(0, 4)) == 0:
        options["proj_size"] = draw(st.integers(1, H - 1))
    cell: Any = build_cell(backend, I, H, **options)
    if backend == "fused" and draw(st.integers(0, 2)) == 0:
        cell.engine = {"gru": "torch", "rnn": "torch", "lstm": draw(st.sampled_from(["torch", "plain"]))}.get(
            kind, "plain"
        )
    if kind == "layernorm" or draw(st.booleans()):  # 1/σ of few units magnifies rounding
        cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    names = [name for name, _ in cell.named_parameters()]
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        change = draw(st.sampled_from(CHANGES))
        if not (kind == "layernorm" and change == "constant"):  # of rounding errors alone, 1/σ makes chaos
            change_weight(cell, name, change)
    return cell


def dtype_of(cell: nn.Module) -> torch.dtype:
    return next(t.dtype for t in (*cell.parameters(), *cell.buffers()))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@given(cell=cells(), data=st.data())
def test_any_cell_is_its_equations(cell, data):
    draw = data.draw
    B, T, dtype = draw(size), draw(size), dtype_of(cell)
    L, P = cell.num_layers * (2 if cell.bidirectional else 1), cell.proj_size or cell.hidden_size
    x = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](torch.randn(B, T, cell.input_size, dtype=dtype))
    if draw(st.integers(0, 5)) == 0:
        x = constant(x)
    elif draw(st.integers(0, 5)) == 0:  # overlapping windows
        x = torch.randn(B, T + cell.input_size - 1, dtype=dtype).unfold(1, cell.input_size, 1)
    x = x.detach().requires_grad_(draw(st.booleans()))

    layout = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))]
    state = [layout(s).detach() for s in random_state(cell.kind, L, B, cell.hidden_size, P=P, dtype=dtype)]
    for s in state:
        s.requires_grad_(draw(st.booleans()))
    form = draw(st.sampled_from(["none", "tuple", "list", *(["bare"] if len(state) == 1 else [])]))
    hx = {"none": None, "tuple": tuple(state), "list": state, "bare": state[0]}[form]
    if form == "none":
        state = [torch.zeros_like(s) for s in state]
    lengths = draw(st.none() | st.lists(st.integers(1, T), min_size=B, max_size=B))

    enabled = draw(st.booleans())
    with torch.set_grad_enabled(enabled):
        output, final = call(cell, x, hx, lengths, draw)
        expected, expected_final = reference(cell, x, state, lengths)
    final = [final] if isinstance(final, Tensor) else list(final)
    close: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}
    if dtype == torch.float32:
        close = {"rtol": 1e-4, "atol": 1e-5}
    assert_close(output, expected, **close)
    assert_close(final, expected_final, **close)

    leaves: dict[str, Tensor] = {name: p for name, p in cell.named_parameters() if p.requires_grad}
    leaves |= {f"input {k}": t for k, t in enumerate((x, *state)) if t.requires_grad}
    if enabled and leaves:
        first = draw(st.integers(0, len(final)))  # the loss feels some of the results alone
        found = gradients([*final, output][first:], list(leaves.values()))
        right = gradients([*expected_final, expected][first:], list(leaves.values()))
        assert_close(dict(zip(leaves, found, strict=True)), dict(zip(leaves, right, strict=True)), **close)


def gradients(results: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    numbers = torch.cat([result.flatten() for result in results])
    loss = (numbers * torch.linspace(-1, 2, numbers.numel(), dtype=numbers.dtype).cos()).sum()
    if not loss.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    # Retained: a mask of pruning is part of both graphs
    return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


def call(cell: Any, x: Tensor, hx: Any, lengths: list[int] | None, draw: Any) -> tuple[Tensor, Any]:
    """The cell in one of the forms that its input can take → output (B, T, ·), state with a batch axis."""
    B, T, _ = x.shape
    form = draw(st.sampled_from(["padded", "packed", "one sequence"]))
    if form == "one sequence" and B == 1:
        one = hx[:, 0] if isinstance(hx, Tensor) else hx and [s[:, 0] for s in hx]
        output, state = cell(x[0], one, lengths)
        return output[None], state[:, None] if isinstance(state, Tensor) else [s[:, None] for s in state]
    x = x if cell.batch_first else x.transpose(0, 1)
    if form == "packed":
        counts = torch.tensor(lengths or [T] * B)
        output, state = cell(pack_padded_sequence(x, counts, cell.batch_first, enforce_sorted=False), hx)
        output, _ = pad_packed_sequence(output, cell.batch_first, total_length=T)
    else:
        output, state = cell(x, hx, lengths)
    return (output if cell.batch_first else output.transpose(0, 1)), state
