"""The table of engines, row by row; each against scratch; what is refused; what a run says of it."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from cell_reference import build_cell, random_state
from lstmlab.cells import BACKENDS, KINDS, engines, fused
from lstmlab.cells.builtin import run_operator_scan
from lstmlab.cells.cpu import Cpu
from lstmlab.cells.engines import Call, choose_engine, operator_casts_to_bf16
from lstmlab.cells.library import load_kernel

F64 = torch.float64
AVX2 = Cpu("", "GenuineIntel", ("AVX2",))
AVX512 = Cpu("", "AuthenticAMD", ("AVX2", "AVX-512"))
ZEN5 = Cpu("", "AuthenticAMD", ("AVX2", "AVX-512", "AVX512-BF16"))
AMX = Cpu("", "GenuineIntel", ("AVX2", "AVX-512", "AVX512-BF16", "AMX-BF16"))
CPUS = (AVX2, AVX512, ZEN5, AMX)
SIZES = [(16, 50, 64, 128), (32, 100, 64, 128), (50, 50, 128, 256), (64, 128, 64, 256), (64, 128, 512, 512)]
PAIRS = [
    (engine, kind)
    for kind in BACKENDS["fused"]
    for engine in ("native", "torch", "plain")
    if not (engine == "torch" and kind not in BACKENDS["torch"])
    and not (engine == "plain" and kind in ("gru", "rnn"))
]
needs_kernel = pytest.mark.skipif(load_kernel() is None, reason="no C++ compiler for the native kernel")


@pytest.fixture
def no_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_kernel.cache_clear()
    with pytest.warns(UserWarning, match="does without its native kernel"):
        assert load_kernel() is None
    yield
    load_kernel.cache_clear()


def call(size=SIZES[-1], **changes: Any) -> Call:
    B, T, I, H = size
    return Call("cpu", "lstm", False, False, True, B, T, I, H)._replace(**changes)


def chosen(cpu: Cpu, **changes: Any) -> list[str]:
    """The engine for each of the five sizes."""
    return [choose_engine(call(size, **changes), cpu, compiled=True) for size in SIZES]


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("kind", BACKENDS["fused"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("T", [1, 100])
def test_float32_on_the_cpu_is_native(cpu, kind, ragged, gradients, T):
    for size in SIZES:
        described = call(size, kind=kind, ragged=ragged, gradients=gradients, T=T)
        assert choose_engine(described, cpu, compiled=True) == "native"


@pytest.mark.parametrize("kind", BACKENDS["fused"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "device, compiled", [("cpu", False), ("cuda", False), ("mps", False), ("cuda", True)]
)
def test_without_the_kernel_it_is_pytorch_where_pytorch_has_the_kind(kind, bf16, device, compiled):
    expected = "torch" if kind in BACKENDS["torch"] else "plain"
    assert choose_engine(call(kind=kind, device=device, bf16=bf16), ZEN5, compiled) == expected


def test_bf16_where_the_kernel_multiplies_it_fast():
    assert chosen(ZEN5, bf16=True) == ["native"] * 5
    assert chosen(ZEN5, bf16=True, ragged=True, gradients=False) == ["native"] * 5
    assert chosen(ZEN5, bf16=True, gradients=False) == ["native"] * 5
    assert chosen(ZEN5, bf16=True, T=1) == ["native"] * 5
    assert chosen(ZEN5, bf16=True, gradients=False, T=1) == ["native"] * 2 + ["torch"] * 3
    assert chosen(ZEN5, bf16=True, gradients=False, T=1, kind="rnn") == ["native"] * 4 + ["torch"]
    assert chosen(ZEN5, bf16=True, gradients=False, T=1, B=1) == ["native"] * 5


def test_bf16_with_amx():
    assert chosen(AMX, bf16=True) == ["native"] + ["torch"] * 4
    assert chosen(AMX, bf16=True, gradients=False) == ["native"] + ["torch"] * 4
    assert chosen(AMX, bf16=True, ragged=True) == ["native"] * 4 + ["torch"]
    assert chosen(AMX, bf16=True, gradients=False, T=1) == ["native"] * 5
    for kind in ("gru", "rnn", "peephole", "layernorm"):
        assert chosen(AMX, bf16=True, kind=kind) == ["native"] * 5


def test_bf16_without_such_instructions_is_float32():
    for cpu in (AVX2, AVX512):
        assert chosen(cpu, bf16=True, gradients=False) == chosen(cpu, bf16=True) == ["native"] * 5
        assert not operator_casts_to_bf16(cpu)
    assert operator_casts_to_bf16(ZEN5) and operator_casts_to_bf16(AMX)


def build(backend: str, kind: str, engine: str = "auto", **options: Any) -> Any:
    """A cell with no parameter at a value that could hide a mistake."""
    torch.manual_seed(1)
    cell = build_cell(
        backend, 3, 5, kind=kind, **({"engine": engine} if backend == "fused" else {}), **options
    )
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def results(cell: Any, x: torch.Tensor, state: Any, lengths: Any) -> dict[str, torch.Tensor]:
    """Output, final state and every gradient, with dropout masks from one seed."""
    torch.manual_seed(7)
    output, final = cell(x, state, lengths)
    found = {"output": output, **final._asdict()}
    inputs = {"x": x, **dict(cell.named_parameters())}
    inputs |= {f"{name}_0": s for name, s in zip(final._fields, state or (), strict=False)}
    loss = sum((v * torch.linspace(-1, 2, v.numel()).view(v.shape).cos()).sum() for v in found.values())
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return found | {f"d_{name}": d for name, d in zip(inputs, gradients, strict=True)}


@pytest.mark.parametrize("engine, kind", PAIRS)
@pytest.mark.parametrize("lengths", [None, [4, 1, 6, 3]], ids=["dense", "ragged"])
@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
        {"num_layers": 2, "dropout": 0.5, "variational": True, "weight_drop": 0.3},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "recompute": True},
        {"bias": False},
    ],
    ids=lambda options: " ".join(options) or "one layer",
)
def test_each_engine_computes_the_numbers_of_scratch(engine, kind, lengths, T, options):
    if engine == "native" and load_kernel() is None:
        pytest.skip("no C++ compiler for the native kernel")
    torch.manual_seed(0)
    lengths = lengths if T > 1 else lengths and [1] * 4
    if not KINDS[kind].reads_h:
        options = {name: value for name, value in options.items() if name != "weight_drop"}
    cell = build("fused", kind, engine, **options).double()
    scratch = build("scratch", kind, **{k: v for k, v in options.items() if k != "recompute"}).double()
    x = torch.randn(4, T, 3, dtype=F64, requires_grad=True)
    layers = cell.num_layers * (2 if cell.bidirectional else 1)
    for given in (False, True):
        state = tuple(s.requires_grad_() for s in random_state(kind, layers, 4, 5, dtype=F64))
        found, expected = (results(c, x, state if given else None, lengths) for c in (cell, scratch))
        assert_close(found, expected)


@pytest.mark.parametrize("kind", BACKENDS["torch"])
def test_what_lies_in_the_padding_does_not_reach_the_operator(kind):
    cell, lengths = build("fused", kind, "torch", bidirectional=True), torch.tensor([2, 4])
    x = torch.randn(2, 4, 3)
    expected, state = cell(x, None, lengths)
    filled = x.clone()
    filled[0, 2:] = torch.nan
    filled.requires_grad_()
    output, found = cell(filled, None, lengths)
    assert_close((output, *found), (expected, *state), rtol=0, atol=0)
    assert output[0, 2:].count_nonzero() == 0
    d_x, *gradients = torch.autograd.grad(output.sum(), [filled, *cell.parameters()])
    assert d_x[0, 2:].count_nonzero() == 0 and all(d.isfinite().all() for d in (d_x, *gradients))


@pytest.mark.parametrize("kind", BACKENDS["torch"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_without_a_step_keep_their_state_to_the_last_bit(kind, dtype, reverse):
    """As on a GPU, where lengths are not checked. An LSTM's gates are exactly 0 and 1."""
    cell = build("fused", kind, "torch").to(dtype)
    weights = [20 * weight for weight in cell.all_weights[0]]
    x, state = torch.randn(2, 50, 3, dtype=dtype), [5 * torch.randn(2, 5).to(dtype) for _ in "hc"]
    state = state[: len(KINDS[kind].state._fields)]
    y, final = run_operator_scan(kind, x, state, torch.zeros(2, dtype=torch.uint8), weights, reverse)
    assert_close(list(final), state, rtol=0, atol=0)
    assert y.count_nonzero() == 0


@pytest.mark.parametrize("kind", BACKENDS["torch"])
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("cast", [True, False])
def test_the_operator_under_autocast(monkeypatch, kind, T, cast):
    """In bf16 where the CPU multiplies it, else in float32: never less precisely than asked."""
    monkeypatch.setattr("lstmlab.cells.fused.find_cpu", lambda: ZEN5 if cast else AVX512)
    cell, x = build("fused", kind, "torch"), torch.randn(2, T, 3)
    expected, expected_state = cell(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = cell(x.bfloat16().float())
    assert torch.equal(output, cell(x.bfloat16().float())[0]) is not cast
    assert_close(output.float(), expected, rtol=0.1, atol=0.05)
    assert {s.dtype for s in state} == {torch.float32}
    assert_close(tuple(state), tuple(expected_state), rtol=0.1, atol=0.05)


ON_A_GPU = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from lstmlab.cells import KINDS, build_cell
from lstmlab.cells.builtin import run_operator_scan

_setup_privateuseone_for_python_backend("gpu")
cells = {kind: build_cell("fused", 3, 5, kind=kind) for kind in ("lstm", "rnn")}  # nn.GRU does not run there
with FakeTensorMode(allow_non_fake_inputs=True):
    for kind, cell in cells.items():
        shapes = [p.shape for p in cell.parameters()]
        for lengths in (None, torch.ones(2), torch.ones(2, device="gpu")):
            for reverse in (False, True):
                weights = [torch.empty(shape, device="gpu", requires_grad=True) for shape in shapes]
                state = [torch.empty(2, 5, device="gpu") for _ in KINDS[kind].state._fields]
                x = torch.empty(2, 6, 3, device="gpu", requires_grad=True)
                y, final = run_operator_scan(kind, x, state, lengths, weights, reverse)
                sum(t.sum() for t in (y, *final)).backward()
                assert {t.device.type for t in (y, *final, x.grad)} == {"gpu"}
                assert all(w.grad.shape == w.shape for w in weights)
"""


def test_the_operator_on_a_device_mixes_no_devices_and_waits_for_nothing():
    """On a fake one, in a process of its own; what waits for it, as .item(), raises."""
    run = subprocess.run([sys.executable, "-c", ON_A_GPU], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("kind", BACKENDS["torch"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
def test_without_the_kernel_a_compiler_breaks_its_graph(no_kernel, kind):
    torch._dynamo.reset()
    cell, breaks = build("fused", kind, num_layers=2, bidirectional=True), torch._dynamo.utils.counters
    breaks.clear()
    compiled = torch.compile(cell, backend="eager")
    for T, lengths in ((5, None), (5, torch.tensor([2, 5])), (1, None)):
        x = torch.randn(2, T, 3)
        assert_close(compiled(x, None, lengths), cell(x, None, lengths))
    assert breaks["graph_break"]
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", BACKENDS["fused"])
def test_without_the_kernel_other_tracers_see_the_equations(no_kernel, kind):
    cell, x = build("fused", kind, bidirectional=True), torch.randn(2, 5, 3)
    expected = cell(x)[0]
    graph = make_fx(lambda x: cell(x)[0])(x)
    assert not any("lstmlab" in str(node.target) for node in graph.graph.nodes)
    assert_close(graph(x), expected)
    assert_close(torch.export.export(cell, (x,)).module()(x)[0], expected)
    assert_close(torch.func.vmap(lambda x: cell(x)[0])(x.unsqueeze(0))[0], expected)


def test_operators_have_second_derivatives():
    cell, scratch = build("fused", "lstm", "torch").double(), build("scratch", "lstm").double()
    x, found = torch.randn(2, 3, 3, dtype=F64, requires_grad=True), []
    for c in (cell, scratch):
        d_x = torch.autograd.grad(c(x)[0].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(d_x[0].square().sum(), list(c.parameters())))
    assert_close(*found)


@pytest.mark.parametrize(
    "kind, engine, allowed",
    [
        ("peephole", "torch", "auto, native, amx, plain"),
        ("layernorm", "torch", "auto, native, amx, plain"),
        ("gru", "plain", "auto, native, amx, torch"),
        ("lstm", "cudnn", "auto, native, amx, torch, plain"),
    ],
)
def test_an_engine_that_a_kind_does_not_have_is_refused(kind, engine, allowed):
    with pytest.raises(ValueError, match=f"engine='{engine}' is not for kind={kind}: it takes {allowed}."):
        build_cell("fused", 3, 5, kind=kind, engine=engine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_forced_kernel_that_cannot_take_the_tensors_is_refused(dtype):
    cell = build_cell("fused", 3, 5, engine="native").to(dtype)
    with pytest.raises(ValueError, match=rf"engine=native .*{dtype} on cpu.*Use engine=auto"):
        cell(torch.randn(2, 3, 3, dtype=dtype))
    projected = build_cell("fused", 3, 5, engine="native", proj_size=2)
    with pytest.raises(ValueError, match=r"engine=native .*proj_size"):
        projected(torch.randn(2, 3, 3))


def test_tiles_are_refused_on_a_cpu_without_them(monkeypatch):
    monkeypatch.setattr(fused, "find_cpu", lambda: ZEN5)
    cell = build_cell("fused", 3, 5, engine="amx")
    with pytest.raises(ValueError, match=r"engine=amx needs a CPU with AMX, not .*\. Use engine=auto"):
        cell(torch.randn(2, 3, 3))


@needs_kernel
def test_what_a_run_says_of_its_engines(monkeypatch):
    def said(*kinds: str, cpu: Cpu = ZEN5, H: int = 512, engine: str = "auto", **how: Any) -> str:
        monkeypatch.setattr(engines, "find_cpu", lambda: cpu)
        cells = [build_cell("fused", 8, H, kind=kind, engine=engine) for kind in kinds]
        return engines.describe(nn.ModuleList(cells), **how)

    assert said("lstm") == "fused: native kernel, AVX-512"
    assert said("lstm", cpu=AVX2) == "fused: native kernel, AVX2"
    assert said("gru", bf16=True) == "fused: native kernel, AVX512-BF16, in bf16"
    assert said("lstm", bf16=True, cpu=AMX) == "fused: PyTorch's operator, in bf16"
    assert said("lstm", bf16=True, cpu=AVX512) == "fused: native kernel, AVX-512, in float32"
    assert said("lstm", device="cuda") == "fused: PyTorch's operator, cuDNN"
    assert said("lstm", device="mps") == "fused: PyTorch's operator, mps"
    assert said("peephole", device="cuda") == "fused: plain PyTorch, cuda"
    assert said("lstm", engine="torch") == "fused: PyTorch's operator, cell.engine=torch"
    tiles = said("lstm", engine="amx", bf16=True, cpu=AMX)
    assert tiles == "fused: native kernel, AMX-BF16, in bf16, cell.engine=amx"
    assert said("lstm", "peephole", device="cuda").count("\n") == 1
    assert engines.describe(nn.ModuleList([nn.Linear(2, 3), build_cell("torch", 3, 5)])) == ""
    monkeypatch.setattr(engines, "load_kernel", lambda: None)
    assert said("lstm") == "fused: PyTorch's operator, no C++ compiler"
    assert said("peephole") == "fused: plain PyTorch, no C++ compiler"
