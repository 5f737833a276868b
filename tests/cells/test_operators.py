"""PyTorch's tools around a fused cell: they see an operator, and compute what the equations do."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.export import Dim, export
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from cell_reference import build_cell, random_state
from lstmlab.cells import BACKENDS, native, operators
from lstmlab.cells.library import load_kernel

F64 = torch.float64
I, H = 5, 7
DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
LENGTHS = torch.tensor([6, 2, 4])
every_kind = pytest.mark.parametrize("kind", BACKENDS["fused"])
pytestmark = [
    pytest.mark.skipif(load_kernel() is None, reason="no C++ compiler for the native kernel"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


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


def inputs(B: int = 3, T: int = 6) -> Tensor:
    return torch.randn(B, T, I, dtype=F64, generator=torch.Generator().manual_seed(10 * B + T))


def numbers(cell: nn.Module, call: Callable, *arguments: Any) -> list[Tensor]:
    """Output, final state and the gradient of every parameter."""
    output, state = call(*arguments)
    loss = output.sin().sum() + sum(s.cos().sum() for s in state)
    return [output, *state, *torch.autograd.grad(loss, list(cell.parameters()))]


@every_kind
@pytest.mark.parametrize("options", [{}, DEEP], ids=["", "deep"])
def test_compile_in_one_graph_for_every_length(kind, options):
    fused, scratch = pair(kind, **options)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend=counter)
    compiled(inputs())
    graphs = [graph for graph in counter.graphs if "lstmlab.scan" in str(graph.graph)]
    assert len(graphs) == 1
    assert str(graphs[0].graph).count("torch.ops.lstmlab.scan") == fused.num_layers * fused._num_directions
    compilations = counter.frame_count
    for B, T in ((3, 6), (3, 2), (4, 9), (2, 30)):
        assert_close(numbers(fused, compiled, inputs(B, T)), numbers(scratch, scratch, inputs(B, T)))
    assert counter.frame_count == compilations

    assert_close(numbers(fused, compiled, inputs(3, 1)), numbers(scratch, scratch, inputs(3, 1)))
    ragged = (inputs(), None, LENGTHS)
    assert_close(numbers(fused, compiled, *ragged), numbers(scratch, scratch, *ragged))
    with torch.no_grad():
        assert_close(compiled(inputs())[0], scratch(inputs())[0])


def test_compile_recomputes():
    fused, scratch = pair("lstm")
    fused.recompute = True
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_close(numbers(fused, compiled, inputs()), numbers(scratch, scratch, inputs()))


def test_compile_in_bf16():
    fused, _ = pair("lstm")
    fused.float()
    x = inputs().float()
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(x), fused(x)
    assert_close(found, expected, rtol=1e-2, atol=1e-2, check_dtype=False)
    assert {s.dtype for s in found[1]} == {torch.float32}


@every_kind
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
def test_export_for_any_batch_and_length(kind, strict, lengths):
    fused, scratch = pair(kind, **DEEP)
    B, T = Dim("B"), Dim("T")
    ragged = lengths is not None
    shapes = ({0: B, 1: T}, None, {0: B}) if ragged else ({0: B, 1: T},)
    example = (inputs(), None, LENGTHS) if ragged else (inputs(),)
    program = export(fused, example, dynamic_shapes=shapes, strict=strict)
    assert sum("lstmlab.scan" in str(node.target) for node in program.graph.nodes) == 4
    others = (inputs(4, 9), None, torch.tensor([9, 1, 5, 2]))[: len(example)]
    assert_close(program.module()(*others)[0], scratch(*others)[0])
    if ragged:
        with pytest.raises(ValueError, match=r"lengths must be 1 to T=9, not \[9, 10, 5, 2\]"):
            program.module()(inputs(4, 9), None, torch.tensor([9, 10, 5, 2]))


@every_kind
@pytest.mark.parametrize("enabled", [True, False], ids=["gradients", "no gradients"])
def test_jit_trace_serves_other_shapes_has_gradients_and_is_saved(kind, enabled):
    fused, scratch = pair(kind)
    with torch.set_grad_enabled(enabled):
        traced = torch.jit.trace(fused, (inputs(),))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert_close(loaded(inputs(4, 9))[0], scratch(inputs(4, 9))[0])
    assert_close(numbers(fused, traced, inputs(4, 9)), numbers(scratch, scratch, inputs(4, 9)))


@every_kind
def test_make_fx_records_the_operator(kind):
    fused, scratch = pair(kind, **DEEP)
    for mode in ("real", "symbolic"):
        with torch.no_grad():
            graph = make_fx(lambda x: fused(x)[0], tracing_mode=mode, _allow_non_fake_inputs=True)(inputs())
        assert sum("lstmlab.scan" in str(node.target) for node in graph.graph.nodes) == 4
        assert_close(graph(2 * inputs()), scratch(2 * inputs())[0])


@every_kind
def test_fake_tensors_have_the_shapes_of_real_ones(kind):
    fused, _ = pair(kind, **DEEP)
    real = fused(inputs())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output, state = fused(mode.from_tensor(inputs()))
        output.sum().backward()
    assert [t.shape for t in (output, *state)] == [t.shape for t in (real[0], *real[1])]


@every_kind
def test_flops_are_those_of_the_products_of_scratch(kind):
    counts = []
    for cell in pair(kind, **DEEP):
        x = inputs().requires_grad_()
        with FlopCounterMode(display=False) as forward:
            cell(x)
        with FlopCounterMode(display=False) as both:
            cell(x)[0].sum().backward()
        counts.append((forward.get_total_flops(), both.get_total_flops()))
    assert counts[0][0] == counts[1][0]
    assert counts[0][1] == counts[1][1] or kind in (
        "gru",
        "slstm",
        "mogrifier",
    )  # in scratch no gradient for the first h
    assert counts[0][1] == 3 * counts[0][0]


@every_kind
@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3)))
def test_flops_are_those_of_the_gradients_that_are_wanted(kind, wanted):
    """Of x, W_ih and W_hh, a product each; that of h always, beside the two products of the forward pass."""
    fused, _ = pair(kind)
    x = inputs()
    recurrent = getattr(fused, "weight_hh_l0", torch.zeros(0, 0))
    for tensor, want in zip((x, fused.weight_ih_l0, recurrent), wanted, strict=True):
        tensor.requires_grad_(want)
    (B, T, _), (rows, _), K = x.shape, fused.weight_ih_l0.shape, recurrent.size(1)
    columns = I + K + K + sum(size * want for size, want in zip((I, I, K), wanted, strict=True))
    if kind == "mogrifier":  # three products for each of four matrices; the gradient of x in any case
        columns += (0 if wanted[0] else I) + 3 * 4 * I * H // rows
        assert 3 * 4 * I * H % rows == 0
    with FlopCounterMode(display=False) as counter:
        fused(x)[0].sum().backward()
    assert counter.get_total_flops() == 2 * B * T * rows * columns


@every_kind
def test_the_operators_are_sound_to_pytorch(kind):
    """torch.library.opcheck: schema, fake implementation, autograd and functionalisation."""
    fused, _ = pair(kind)
    weights = native.as_operands(kind, [p.detach() for p in fused.parameters()])
    h, *rest = random_state(kind, 3, H, dtype=F64)
    state = [h, torch.cat(rest, -1)] if rest else [h]
    operands = (*state, *[None] * (2 - len(state)), *weights, *[None] * (5 - len(weights)))
    for lengths in (None, LENGTHS):
        arguments = (kind, "f64", False, True, inputs(), lengths, *operands)
        leaves = [torch.is_tensor(a) and a.is_floating_point() for a in arguments]
        differentiable = tuple(
            a.clone().requires_grad_() if leaf else a for a, leaf in zip(arguments, leaves, strict=True)
        )
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(operators.scan, differentiable, test_utils=tests)
        y, _, _, *buffers = operators.scan(*arguments)
        given = (y, *buffers, torch.ones_like(y), None, None)
        backward = (*arguments[:3], [True, False, True], *arguments[4:], *given)
        torch.library.opcheck(operators.scan_backward, backward, test_utils=tests)


def loss(parameters: dict[str, Tensor], x: Tensor, cell: nn.Module) -> Tensor:
    return functional_call(cell, parameters, (x,))[0].sin().sum()


@every_kind
def test_gradients_of_torch_func(kind):
    found = []
    for cell in pair(kind, **DEEP):
        parameters = dict(cell.named_parameters())
        per_sample = vmap(grad(lambda p, x, cell=cell: loss(p, x[None], cell)), (None, 0))
        by_input = jacrev(lambda x, cell=cell: cell(x)[0])
        found.append(
            (grad(loss)(parameters, inputs(), cell), per_sample(parameters, inputs()), by_input(inputs(2, 3)))
        )
    assert_close(*found)


@every_kind
@pytest.mark.parametrize("enabled", [True, False])
def test_vmap_over_inputs_and_over_models(kind, enabled):
    found = []
    batches = torch.stack([inputs(), -inputs()])
    for cell in pair(kind, **DEEP):
        models = {name: torch.stack([p, 2 * p]) for name, p in cell.state_dict().items()}
        with torch.set_grad_enabled(enabled):
            found.append(
                (
                    vmap(lambda x, cell=cell: cell(x)[0])(batches),
                    vmap(lambda p, x, cell=cell: functional_call(cell, p, (x,))[0])(models, batches),
                )
            )
    assert_close(*found)


SECOND = {
    "grad of grad": lambda f, x: grad(lambda x: grad(f)(x).square().sum())(x),
    "hessian": lambda f, x: jacrev(jacrev(f))(x),
    "create_graph": lambda f, x: torch.autograd.grad(
        torch.autograd.grad(f(x), x, create_graph=True)[0].square().sum(), x
    ),
}
FORWARD = {
    "jvp": lambda f, x: jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
}


@every_kind
@pytest.mark.parametrize(
    "derivative, name",
    [*(("no second derivative", name) for name in SECOND), *(("no forward-mode", name) for name in FORWARD)],
)
def test_what_cannot_be_differentiated_is_refused_with_the_way_out(kind, derivative, name):
    function = (SECOND if derivative.startswith("no second") else FORWARD)[name]
    fused, scratch = pair(kind)
    x = inputs(2, 3).requires_grad_()
    function(lambda x: scratch(x)[0].sin().sum(), x)
    with pytest.raises(RuntimeError, match=rf"{derivative}.*cell=scratch"):
        function(lambda x: fused(x)[0].sin().sum(), x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(3, 6, I)}, r"x must be \(3, 6, 5\) torch\.float64, not .* torch\.float32"),
        ({"weight_hh": torch.zeros(4, 4, dtype=F64)}, r"weight_hh must be \(28, 7\).*not \(4, 4\)"),
        ({"c": None}, r"c must be \(3, 7\).*not None"),
        ({"lengths": torch.tensor([0, 1, 2])}, "lengths must be 1 to T=6"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths must be \(3,\)"),
        ({"x": torch.zeros(3, 0, I, dtype=F64)}, "rows and steps"),
        ({"dy": torch.zeros(3, 6, 1, dtype=F64)}, r"dy must be \(3, 6, 7\)"),
        ({"gates": torch.zeros(2, 28, dtype=F64)}, r"gates must be \(18, 28\)"),
    ],
)
def test_an_operator_trusts_nobody(change, message):
    fused, _ = pair("lstm")
    named = {name.removesuffix("_l0"): p.detach() for name, p in fused.named_parameters()}
    state = {name: torch.zeros(3, H, dtype=F64) for name in "hc"}
    arguments: dict[str, Any] = {"kind": "lstm", "precision": "f64", "reverse": False, "keep": True}
    arguments |= {"x": inputs(), "lengths": None, **state, **named, "extra": None}
    y, _, _, gates, cs, norms = operators.scan(**arguments)
    results = {"y": y, "gates": gates, "cs": cs, "norms": norms, "dy": y, "dh_n": None, "dc_n": None}
    del arguments["keep"]
    with pytest.raises(ValueError, match=message):
        operators.scan_backward(**arguments | {"needs": [True] * 3} | results | change)
    if not change.keys() & results.keys():
        with pytest.raises(ValueError, match=message):
            operators.scan(**arguments | {"keep": False} | change)
