"""Whatever the code around a cell does to its tensors: right numbers or a clear refusal, never a crash."""

import ctypes
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from cell_reference import build_cell, random_state
from lstmlab.cells import BACKENDS, KINDS, native
from lstmlab.cells.library import load_kernel

F64 = torch.float64
I, H = 6, 6
TORCH: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
every_kind = pytest.mark.parametrize("kind", BACKENDS["fused"])
needs_kernel = pytest.mark.skipif(load_kernel() is None, reason="no C++ compiler for the native kernel")
every_cell_of_torch = pytest.mark.parametrize("backend, kind", list(itertools.product(BACKENDS, TORCH)))


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """A fused and a scratch cell with the same weights, none at a value that could hide a mistake."""
    torch.manual_seed(1)
    fused = build_cell("fused", I, H, kind=kind, **options).double()
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    scratch = build_cell("scratch", I, H, kind=kind, **options).double()
    scratch.load_state_dict(fused.state_dict())
    return fused, scratch


def results(cell: nn.Module, x: Tensor, *others: Any) -> dict[str, Tensor]:
    """Output, state, and the gradients of x's leaf and of every parameter."""
    output, state = cell(x, *others)
    found = {"output": output, **state._asdict()}
    loss = sum(
        (v * torch.linspace(-1, 2, v.numel(), dtype=F64).view(v.shape).cos()).sum() for v in found.values()
    )
    inputs: dict[str, Tensor] = {name: p for name, p in cell.named_parameters() if p.requires_grad}
    if x.requires_grad:
        inputs["x"] = x
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return found | {f"d_{name}": d for name, d in zip(inputs, gradients, strict=True) if d is not None}


def assert_same(cells: tuple[Any, Any], x: Tensor, *others: Any) -> None:
    assert_close(results(cells[0], x, *others), results(cells[1], x, *others))


def column_major(weight: Tensor) -> Tensor:
    return weight.t().contiguous().t()


def orthogonal(weight: Tensor) -> Tensor:
    return torch.linalg.qr(weight).Q.clone()  # LAPACK's order: column-major


def one_for_all_rows(weight: Tensor) -> Tensor:
    return weight[:1].expand_as(weight)


def every_other_column(weight: Tensor) -> Tensor:
    return weight.repeat_interleave(2, 1)[:, ::2]


def negative_bit(weight: Tensor) -> Tensor:
    return torch._neg_view(-weight)


LAYOUTS = [column_major, orthogonal, one_for_all_rows, every_other_column, negative_bit]


@every_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_any_layout(kind, layout):
    cells = pair(kind)
    for cell in cells:
        for name in [name for name, weight in cell.named_parameters() if weight.dim() == 2]:
            parameter = getattr(cell, name)
            parameter.data = layout(parameter.data)
    assert_same(cells, torch.randn(2, 4, I, dtype=F64, requires_grad=True))


@every_kind
@pytest.mark.parametrize("B, T", [(3, 4), (9, 2), (2, 1), (9, 1)])
def test_overlapping_windows(kind, B, T):
    """`unfold` gives strides (1, 1, 1), of which empty_like makes another order."""
    cells = pair(kind)
    series = torch.randn(B + T + I - 2, dtype=F64, requires_grad=True)
    weights, gradients = torch.randn(B, T, H, dtype=F64), []
    for cell in cells:
        x = series.unfold(0, I, 1).unfold(0, T, 1).transpose(1, 2)  # (B, T, I)
        assert x.stride() == (1, 1, 1)
        gradients.append(torch.autograd.grad((cell(x)[0] * weights).sum(), series))
    assert_close(*gradients)


@every_kind
@pytest.mark.parametrize("variational", [False, True])
def test_dropout_acts_in_a_single_step_without_gradients(kind, variational):
    """As Monte-Carlo dropout needs it."""
    cell = build_cell("fused", I, 64, kind=kind, num_layers=2, dropout=0.5, variational=variational)
    x = torch.randn(4, 1, I)
    with torch.no_grad():
        assert not torch.equal(cell(x)[0], cell(x)[0])
        cell.eval()
        assert torch.equal(cell(x)[0], cell(x)[0])


def pruned(cell: nn.Module) -> None:
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        prune.l1_unstructured(cell, name, 0.5)


def pruned_for_good(cell: nn.Module) -> None:
    for name in ("weight_ih_l0", "bias_ih_l0"):
        prune.l1_unstructured(cell, name, 0.5)
        prune.remove(cell, name)


def parametrised(cell: nn.Module) -> None:
    torch.manual_seed(2)
    parametrizations.orthogonal(cell, "weight_hh_l0")
    parametrizations.weight_norm(cell, "weight_ih_l0")
    parametrizations.spectral_norm(cell, "weight_ih_l1")
    cell.eval()


def parametrised_and_back(cell: nn.Module) -> None:
    for name in ("weight_ih_l0", "bias_ih_l0"):
        parametrizations.weight_norm(cell, name)
        nn.utils.parametrize.remove_parametrizations(cell, name)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def weight_norm_of_old(cell: nn.Module) -> None:
    nn.utils.weight_norm(cell, "weight_hh_l0")


def set_again(cell: Any) -> None:
    for name in ("bias_ih_l0", "weight_ih_l0"):
        weight = getattr(cell, name)
        delattr(cell, name)
        setattr(cell, name, weight)


def frozen_as_buffers(cell: Any) -> None:
    for name in ("weight_hh_l0", "bias_hh_l1"):
        weight = getattr(cell, name).detach()
        delattr(cell, name)
        cell.register_buffer(name, weight)


CHANGES: list[Callable] = [
    *(pruned, pruned_for_good, parametrised, parametrised_and_back, weight_norm_of_old),
    *(set_again, frozen_as_buffers),
]


@every_cell_of_torch
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_are_found_by_name_as_in_torch(backend, kind, change):
    theirs = TORCH[kind](I, H, 2, batch_first=True).double()
    ours = build_cell(backend, I, H, kind=kind, num_layers=2).double()
    ours.load_state_dict(theirs.state_dict())
    change(ours)
    change(theirs)
    x = torch.randn(3, 4, I, dtype=F64)
    outputs = [cell(x)[0] for cell in (ours, theirs)]
    assert_close(*outputs)
    gradients = []
    for cell, output in zip((ours, theirs), outputs, strict=True):
        wanted = {name: p for name, p in cell.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(output.sin().sum(), list(wanted.values()))
        gradients.append(dict(zip(wanted, found, strict=True)))
    assert_close(*gradients)


@pytest.mark.parametrize("kind", ["peephole", "layernorm", "mogrifier", "slstm"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_are_found_by_name_in_our_own_kinds(kind, change):
    cells = pair(kind, num_layers=2)
    for cell in cells:
        change(cell)
    assert_same(cells, torch.randn(3, 4, I, dtype=F64))


@pytest.mark.parametrize(
    "backend, kind", [(b, k) for b, kinds in BACKENDS.items() for k in kinds if KINDS[k].reads_h]
)
def test_a_weight_of_another_shape_or_dtype_is_refused_by_name(backend, kind):
    cell: Any = build_cell(backend, I, H, kind=kind)
    x = torch.randn(2, 3, I)
    with pytest.raises(ValueError, match=r"weight_hh_l0 must be \(.*, [36]\), not \(4, 4\)"):
        functional_call(cell, {"weight_hh_l0": torch.randn(4, 4)}, (x,))
    with pytest.raises(ValueError, match=r"weight_hh_l0 must be torch\.float32 as the other weights"):
        functional_call(cell, {"weight_hh_l0": cell.weight_hh_l0.double()}, (x,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_of_another_dtype_than_the_weights_is_refused(backend):
    with pytest.raises((RuntimeError, ValueError), match=r"dtype|type"):
        build_cell(backend, I, H)(torch.randn(2, 3, I, dtype=F64))


@every_kind
@pytest.mark.parametrize("T", [1, 4])
def test_negative_bits(kind, T):
    """`z.conj().imag` holds the numbers without their sign."""
    cells = pair(kind)
    x, h = torch.randn(2, 2, T, I, dtype=F64).unbind()
    state = random_state(kind, 1, 2, H, dtype=F64)
    views = torch._neg_view(-x), [torch._neg_view(-s) for s in state]
    assert_close(results(cells[0], *views), results(cells[1], x, state))
    with torch.no_grad():
        assert_close(cells[0](*views), cells[1](x, state))
    gradients = []
    for cell in cells:  # and the gradient that comes back
        y = cell(h)[0]
        gradients.append(torch.autograd.grad(y, list(cell.parameters()), torch._neg_view(y.detach())))
    assert_close(*gradients)


@every_kind
def test_other_kinds_of_tensors(kind):
    """Subclasses, functional tensors and zeros without memory, in place of each tensor."""

    class Marked(Tensor):
        pass

    fused, scratch = pair(kind)
    x = torch.randn(2, 3, I, dtype=F64)
    expected = scratch(x)[0]
    output = fused(x.as_subclass(Marked))[0]
    assert isinstance(output, Marked)
    assert_close(output.as_subclass(Tensor), expected)
    zero = torch.zeros_like(x)
    assert_close(fused(torch._efficientzerotensor(zero.shape, dtype=F64))[0], scratch(zero)[0])
    functional = fused(torch._to_functional_tensor(x))[0]
    assert_close(torch._from_functional_tensor(functional), expected)
    assert_close(torch.func.functionalize(lambda x: fused(x)[0])(x), expected)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("place", ["x", "state", "weight"])
def test_a_tensor_without_numbers_is_refused(T, place):
    """On the meta device, sparse, or of another layout: as nn.LSTM, an error and no crash."""
    cell: Any = build_cell("fused", I, H)
    x, state = torch.randn(2, T, I), (torch.zeros(1, 2, H), torch.zeros(1, 2, H))
    for make in (lambda t: t.to("meta"), lambda t: t.detach().to_sparse()):
        weights = {}
        if place == "weight":
            weights = {"weight_hh_l0": make(cell.weight_hh_l0)}
        arguments = (
            make(x) if place == "x" else x,
            (state[0], make(state[1])) if place == "state" else state,
        )
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled), pytest.raises((RuntimeError, NotImplementedError)):
                functional_call(cell, weights, arguments)


@pytest.mark.parametrize("T", [1, 3])
def test_another_default_device(T):
    cell, x = build_cell("fused", I, H), torch.randn(2, T, I)
    with torch.no_grad():
        expected = cell(x)
        with torch.device("meta"):
            assert_close(cell(x), expected)


@needs_kernel  # without it the equations run, which have it
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_refused_with_the_way_out(frozen):
    cell = build_cell("fused", I, H).requires_grad_(not frozen)
    x = torch.randn(2, 3, I)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward-mode.*cell=scratch"):
        cell(forward_ad.make_dual(x, x))


def test_batched_gradients_are_refused_with_the_way_out():
    cell, x = (
        build_cell("fused", I, H, kind="peephole"),
        torch.randn(2, 3, I),
    )  # PyTorch's operators have them
    output = cell(x)[0]
    with pytest.raises(RuntimeError, match=r"is_grads_batched.*cell=scratch"):
        torch.autograd.grad(output, list(cell.parameters()), torch.randn(4, 2, 3, H), is_grads_batched=True)


SOURCES = Path(native.__file__).parent


def test_the_struct_of_both_languages_has_the_same_fields():
    """By name and order, from the declarations in scan.h."""
    text = re.sub(r"//.*", "", (SOURCES / "scan.h").read_text(encoding="utf-8"))
    [body] = re.findall(r"struct Scan \{(.*?)\n\n", text, re.DOTALL)
    declarations = [re.sub(r"^\s*(const )?\w+ ", "", d) for d in body.split(";") if d.strip()]
    fields = [name.strip(" *") for names in declarations for name in names.split(",")]
    assert fields == [field[0] for field in native.Scan._fields_]


@needs_kernel
def test_the_struct_of_both_languages_has_the_same_size():
    kernel = load_kernel()
    assert kernel is not None
    kernel.size_of_scan.restype = ctypes.c_int64
    assert kernel.size_of_scan() == ctypes.sizeof(native.Scan)


def test_kinds_have_the_same_numbers_in_both_languages():
    [names] = re.findall(r"enum Kind : int64_t \{(.*?)\}", (SOURCES / "cell.h").read_text(encoding="utf-8"))
    numbers = {name.strip().lower(): number for number, name in enumerate(names.split(","))}
    assert numbers == native.NUMBERS
    assert set(numbers) == set(BACKENDS["fused"])


@needs_kernel
@every_kind
def test_hooks_on_saved_tensors(kind):
    """Those that give back the same numbers may move them; others are refused."""
    fused, scratch = pair(kind)
    x = torch.randn(2, 3, I, dtype=F64)
    with torch.autograd.graph.save_on_cpu():
        found = results(fused, x)
    assert_close(found, results(scratch, x))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t
    ):
        assert_close(results(fused, x), found)
    for change in (Tensor.float, lambda t: t[:1]):
        with (
            torch.autograd.graph.saved_tensors_hooks(change, lambda t: t),
            pytest.raises(RuntimeError, match="a hook on saved tensors changed shape, dtype or device"),
        ):
            results(fused, x)


@every_kind
def test_nan_stays_nan_in_bf16(kind):
    """Also those that rounding would make a zero of: with all bits of the mantissa set."""
    cell = build_cell("fused", I, H, kind=kind)
    for bits in (0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000):
        x = torch.randn(2, 3, I)
        x.view(torch.int32)[0, 0, 0] = bits
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = cell(x)
        assert output[0].isnan().any(-1).all() and output[1].isfinite().all()
