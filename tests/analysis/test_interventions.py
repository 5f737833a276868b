"""Changes act where the equation has the symbol: against hand-written loops with that line replaced."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lstmlab
from cell_reference import build_cell, reference
from lstmlab.analysis.interventions import (
    ablate,
    add,
    clamp,
    intervene,
    list_points,
    parse_settings,
    patch_from,
    scale,
)
from lstmlab.cells import BACKENDS, KINDS
from lstmlab.checkpoint import load_model
from lstmlab.config import PROJECT

F64 = torch.float64


def run_by_hand(cell: Any, x: Tensor, number: int, symbol: str, units: list[int], change: Any) -> Tensor:
    """The output for one row x (T, I), with one change."""

    def put(k: int, t: int) -> Any:
        def at(name: str, value: Tensor) -> Tensor:
            if (k, name) == (number, symbol):
                value = value.clone()
                value[units] = change(value[units], t)
            return value

        return at

    members = len(KINDS[cell.kind].state._fields)
    state = torch.zeros(members, len(cell._shapes), 1, cell.hidden_size, dtype=F64)
    return reference(cell, x[None], state, put=put)[0][0]


class Model(torch.nn.Module):
    def __init__(self, cell: torch.nn.Module):
        super().__init__()
        self.cell = cell


POINTS = [
    (kind, number, symbol)
    for kind in BACKENDS["scratch"]
    for number in (1, 2)  # backwards in the first layer, forwards in the second
    for symbol in dict.fromkeys((*KINDS[kind].gates, *KINDS[kind].state._fields))
]


@pytest.mark.parametrize(("kind", "number", "symbol"), POINTS)
def test_a_change_at_any_point_is_that_line_replaced(kind, number, symbol):
    torch.manual_seed(0)
    cell: Any = build_cell("scratch", 3, 5, kind=kind, num_layers=2, bidirectional=True).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model: Any = Model(cell)
    x = torch.randn(6, 3, dtype=F64)
    point = f"layer{number // 2}.{'reverse.' if number % 2 else ''}{symbol}"
    with torch.no_grad():
        plain, _ = cell(x[None])
        with intervene(model, {}, record=True) as cache:
            assert_close(cell(x[None])[0], plain, rtol=0, atol=1e-12)
        assert_close(plain[0], run_by_hand(cell, x, 0, "", [], None), rtol=0, atol=1e-12)
        for change, by_hand in (
            (clamp(0.7), lambda v, t: torch.full_like(v, 0.7)),
            (scale(0.5, steps=[1, 4]), lambda v, t: 0.5 * v if t in (1, 4) else v),
            (add(-0.2, steps=range(3)), lambda v, t: v - 0.2 if t < 3 else v),
            (ablate(), lambda v, t: 0 * v),
            (ablate(cache[point][:, :, [4, 1]]), lambda v, t: cache[point][0, :, [4, 1]].mean(0)),
            (patch_from(cache[point].flip(1)[:, :, [4, 1]]), lambda v, t: cache[point][0, 5 - t, [4, 1]]),
        ):
            with intervene(model, {f"{point}[4,1]": change}):
                changed, _ = cell(x[None])
            expected = run_by_hand(cell, x, number, symbol, [4, 1], by_hand)
            # Where i or n of an sLSTM is 0 from the start, its c / n is 0 / 0
            assert_close(changed[0], expected, rtol=0, atol=1e-12, equal_nan=kind == "slstm")
            assert not torch.equal(changed, plain)
        assert torch.equal(cell(x[None])[0], plain)  # nothing is left behind
        assert_close(cache[point], cell.trace(x[None])[2][symbol][number // 2, number % 2], rtol=0, atol=0)


def test_steps_are_counted_while_writing(trained):
    """One step per call, the prompt's steps first."""
    model = lstmlab.load(str(trained("charlm")))
    kept = model.sample("line", 12, temperature=0)
    changes: Any = {"layer0.h": clamp(3.0, steps=[9])}
    steered = model.sample("line", 12, temperature=0, changes=changes)
    assert model.sample("line", 12, temperature=0, changes={}) == kept
    assert steered[:6] == kept[:6]  # h after step 9 gives the 7th character: 4 of the prompt, 5 written
    inner: Any = model.changeable
    with intervene(inner, changes, record=True) as cache:
        "".join(inner.sample("line", 12, temperature=0))
    assert cache["layer0.h"].shape[1] == 15 and cache["layer0.h"][0, 9].eq(3).all()
    assert not cache["layer0.h"][0, 8].eq(3).any()


@pytest.mark.parametrize("name", ["charlm", "copytask", "sentiment", "seq2seq"])
def test_without_changes_it_is_the_model(trained, name):
    predictor = lstmlab.load(str(trained(name)))
    text = {"copytask": "01" * 5}.get(name, "line 1")
    output, cache = predictor.run_with_cache(text)
    rows = predictor.model.read_text(text)
    with torch.inference_mode():
        assert_close(output, predictor.model.run(rows), rtol=0, atol=1e-6)
    assert cache.keys() == list_points(predictor.changeable).keys()
    assert all(values.size(0) == 1 for values in cache.values())
    first = next(iter(cache))
    changed = predictor.run_with_hooks(text, {first: clamp(5.0)})
    assert changed.shape != output.shape or not torch.equal(changed, output) or name == "seq2seq"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer9.c[1]=2", "'layer9.c[1]' is no point of this model, which has layer0.i, layer0.f"),
        ("layer0.c[999]=2", "'layer0.c[999]' is out of range: the units are 0 to"),
        ("layer0.c[1]=two", "set=layer0.c[1]=two: give a point and a number"),
        ("layer0.c[1]=nan", "give a point and a number"),
        ("layer0.c[1]", "give a point and a number"),
        ("layer0.c[1:]=0", "needs units such as [174], [3,8] or [0:10]"),
        ("layer0.c[]=0", "is no point"),
    ],
)
def test_what_set_refuses(trained, command, text, said):
    ckpt = trained("charlm")
    for name, options in (("predict", ["text=line", "length=5"]), ("evaluate", [])):
        code, _, error = command(name, f"ckpt={ckpt}", f"set={text}", *options)
        assert code == 1 and said in error and error.count("\n") == 1
    code, _, error = command("evaluate", f"ckpt={ckpt}", "set=layer0.c[1]=2", "backend=torch")
    assert code == 1 and "set= works with backend=scratch, not torch" in error


def test_set_steers_and_says_what_it_costs(trained, command):
    ckpt = trained("charlm")
    how = [f"ckpt={ckpt}", "text=line", "length=20", "temperature=0"]
    _, plain, _ = command("predict", *how)
    code, changed, _ = command("predict", *how, "set=layer0.h[0:8]=1; layer0.c[3]=-2")
    assert code == 0 and changed != plain
    model: Any = load_model(str(ckpt), "scratch")
    with intervene(model, parse_settings("layer0.h[0:8]=1; layer0.c[3]=-2", model)):
        assert changed == "line" + "".join(model.sample("line", 20, temperature=0)) + "\n"
    _, whole, _ = command("evaluate", f"ckpt={ckpt}")
    code, costs, _ = command("evaluate", f"ckpt={ckpt}", "set=layer0.o=0")
    loss, cost = next(line for line in costs.splitlines() if line.startswith("val/loss")).split()[1:]
    before = next(line for line in whole.splitlines() if line.startswith("val/loss")).split()[1]
    assert float(loss) - float(before) == pytest.approx(float(cost), abs=2e-6) and float(cost) != 0


def test_the_examples_of_the_readme(trained):
    text = (PROJECT / "src/lstmlab/analysis/README.md").read_text(encoding="utf-8")
    example = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    known = {"a line of text": "line 1", "a word of text": "line 2", "a line ": "line "}
    for shown, own in known.items():  # the characters of that model
        example = example.replace(f'"{shown}"', f'"{own}"')
    values: dict[str, Any] = {}
    exec(example.replace("CHARLM_RUN", str(trained("charlm"))), values)
    assert values["logits"].shape[:2] == (1, 6) and len(values["text"]) == 50
    assert values["parts"].shape == (6,)
