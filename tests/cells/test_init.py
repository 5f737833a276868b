import math

import pytest
import torch
from torch.testing import assert_close

from cell_reference import build_cell
from lstmlab.cells import BACKENDS, KINDS

CELLS = [(backend, kind) for backend, kinds in BACKENDS.items() for kind in kinds]
every_cell = pytest.mark.parametrize("backend, kind", CELLS)
IN, H = 6, 10


def build(backend, kind, seed=0, **options):
    torch.manual_seed(seed)
    return build_cell(backend, IN, H, kind=kind, num_layers=2, bidirectional=True, **options)


@every_cell
def test_xavier_and_orthogonal_per_gate_and_a_forget_bias_of_one_in_total(backend, kind):
    parameters = dict(build(backend, kind).named_parameters())
    for name, value in parameters.items():
        gates = dict(zip(KINDS[kind].gates, value.chunk(len(KINDS[kind].gates)), strict=False))
        if name.startswith("weight_ih"):
            bound = math.sqrt(6 / (value.size(1) + H))
            for gate in gates.values():
                assert 0.9 * bound < gate.abs().max() <= bound
        elif name.startswith("weight_hh"):
            for gate in gates.values():
                for block in gate.split(value.size(1)):  # of each head of an sLSTM
                    assert_close(block @ block.T, torch.eye(len(block)))
        elif name.startswith(("weight_q", "weight_r")):  # of a mogrifier's rounds
            bound = math.sqrt(6 / sum(value.shape))
            assert 0.9 * bound < value.abs().max() <= bound
        elif name.startswith("weight_c"):
            assert not value.any()
        elif name.startswith("gain"):
            assert (value == 1).all()
        elif name.startswith("bias_ih"):
            recurrent = parameters.get(name.replace("_ih_", "_hh_"), torch.zeros_like(value))
            total = value + recurrent
            total = dict(zip(KINDS[kind].gates, total.chunk(len(KINDS[kind].gates)), strict=True))
            for gate, bias in total.items():
                assert (bias == (1 if gate == "f" else 0)).all()
            assert not recurrent.any()


def test_gates_and_layers_differ():
    values = [w for n, p in build("torch", "lstm").named_parameters() if "weight_hh" in n
              for w in p.chunk(4)]  # fmt: skip
    assert len({tuple(v.flatten().tolist()) for v in values}) == len(values) == 16


def test_forget_bias():
    bias_ih = build("fused", "lstm", forget_bias=2.5).bias_ih_l1_reverse
    assert bias_ih.tolist() == [0.0] * H + [2.5] * H + [0.0] * 2 * H


@pytest.mark.parametrize("backend, kind", [cell for cell in CELLS if "f" in KINDS[cell[1]].gates])
def test_chrono(backend, kind):
    parameters = dict(build(backend, kind, init="chrono", chrono_steps=50).named_parameters())
    times = []
    for name, value in parameters.items():
        if name.startswith("bias_ih"):
            i, f, *others = value.chunk(len(KINDS[kind].gates))
            assert_close(i, -f)
            assert not torch.stack(others).any()
            times.append(f.exp())
        elif name.startswith("bias_hh"):
            assert not value.any()
    u = torch.cat(times)
    assert 1 <= u.min() < 5 and 45 < u.max() <= 49 + 1e-3
    xavier = dict(build(backend, kind).named_parameters())
    assert_close(parameters["weight_ih_l0"], xavier["weight_ih_l0"])


@every_cell
def test_torch_default(backend, kind):
    for name, value in build(backend, kind, init="torch").named_parameters():
        if not name.startswith("gain"):
            assert 0.7 / math.sqrt(H) < value.abs().max() <= 1 / math.sqrt(H)


@pytest.mark.parametrize(
    "kind, init",
    [("lstm", "chrono"), *((k, i) for k in BACKENDS["fused"] for i in ("xavier", "torch"))],
)
def test_a_seed_gives_every_backend_the_same_weights(kind, init):
    cells = [
        build(backend, kind, init=init, chrono_steps=20)
        for backend, kinds in BACKENDS.items()
        if kind in kinds
    ]
    for cell in cells[1:]:
        assert_close(cell.state_dict(), cells[0].state_dict(), rtol=0, atol=0)
    other = build("fused", kind, seed=1, init=init, chrono_steps=20)
    assert not torch.equal(other.weight_ih_l0, cells[0].weight_ih_l0)


def test_what_is_built_after_a_cell_does_not_depend_on_it():
    states = []
    for backend, kind in CELLS:
        for init in ("xavier", "torch"):
            build(backend, kind, init=init)
            states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_reset_parameters_draws_anew():
    cell = build("torch", "lstm")
    before = cell.weight_hh_l0.clone()
    cell.reset_parameters()
    assert not torch.equal(cell.weight_hh_l0, before)
