"""build_cell and its tables: what there is, what is refused, what goes from one to another."""

import ast
import copy
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lstmlab.cells import BACKENDS, build_cell

TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def test_tables_need_no_torch():
    code = "import sys; from lstmlab.cells import BACKENDS, INITS, KINDS; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_imports_run_one_way():
    """No two modules import each other, not even within functions, and none imports the package."""
    folder = Path(build_cell.__code__.co_filename).parent
    modules = {path.stem for path in folder.glob("*.py")}
    imports: dict[str, set[str]] = {module: set() for module in modules}
    for module in modules:
        for node in ast.walk(ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                imports[module] |= {node.module} if node.module else {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom | ast.Import):
                assert "lstmlab" not in ast.unparse(node), module
    assert modules.issuperset(set().union(*imports.values()))
    order = list(TopologicalSorter(imports).static_order())  # raises CycleError
    assert order[-1] == "__init__"


@pytest.mark.parametrize("backend, kind", [("fused", "banana"), ("torch", "peephole"), ("cudnn", "lstm")])
def test_an_unknown_pair_is_refused_with_those_that_exist(backend, kind):
    with pytest.raises(ValueError, match=f"{kind}.*{backend}.*torch: lstm, rnn, gru"):
        build_cell(backend, 3, 5, kind=kind)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be"),
        ({"weight_drop": -0.1}, "weight_drop=-0.1 must be"),
        ({"init": "he"}, "init='he' is unknown; there are xavier, chrono, torch"),
        ({"init": "chrono"}, "needs chrono_steps of at least 3, not None"),
        ({"init": "chrono", "chrono_steps": 2}, "at least 3, not 2"),
    ],
)
def test_values_out_of_range_are_refused(backend, options, message):
    with pytest.raises(ValueError, match=message):
        build_cell(backend, 3, 5, **options)


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_chrono_needs_input_and_forget_gates(kind):
    with pytest.raises(ValueError, match=f"kind={kind}"):
        build_cell("torch", 3, 5, kind=kind, init="chrono", chrono_steps=100)


def test_an_lstm_has_four_times_the_parameters_of_an_rnn():
    rnn, lstm = (
        sum(p.numel() for p in build_cell("scratch", 64, 128, kind=kind).parameters())
        for kind in ("rnn", "lstm")
    )
    assert rnn == 128 * (64 + 128) + 2 * 128
    assert lstm == 4 * rnn


PAIRS = [(b, kind) for b, kinds in BACKENDS.items() for kind in kinds if kind in TORCH]


@pytest.mark.parametrize("backend, kind", PAIRS)
def test_checkpoints_are_those_of_torch(backend, kind):
    theirs = TORCH[kind](3, 5, num_layers=2, bidirectional=True, batch_first=True)
    ours = build_cell(backend, 3, 5, kind=kind, num_layers=2, bidirectional=True)
    shapes = [[(k, v.shape) for k, v in m.state_dict().items()] for m in (theirs, ours)]
    assert shapes[0] == shapes[1]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 4, 3)
    output, state = theirs(x)
    assert_close(ours(x)[0], output)
    assert_close(list(ours(x)[1]), [state] if kind != "lstm" else list(state))


@pytest.mark.parametrize("before, after", [("torch", "fused"), ("fused", "scratch")])
def test_training_continues_with_another_backend(before, after):
    """Weights and Adam's moments move, so the fifth step is the same as without the change."""
    x = torch.randn(2, 4, 3, dtype=torch.float64)

    def train(cell, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            cell(x)[0].square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    first = build_cell(before, 3, 5, num_layers=2).double()
    adam = torch.optim.Adam(first.parameters(), 0.01)
    train(first, adam, 3)
    second = build_cell(after, 3, 5, num_layers=2).double()
    second.load_state_dict(first.state_dict())
    moved = torch.optim.Adam(second.parameters())
    moved.load_state_dict(copy.deepcopy(adam.state_dict()))
    train(first, adam, 2)
    train(second, moved, 2)
    assert_close(first.state_dict(), second.state_dict())
