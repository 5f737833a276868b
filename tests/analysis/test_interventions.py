"""Changes act where the equation has the symbol: against hand-written loops with that line replaced."""

import itertools
import re
from collections.abc import Callable
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
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.config import PROJECT

F64 = torch.float64


class Model(torch.nn.Module):
    """A bidirectional cell of two layers, with weights large enough that each step matters."""

    def __init__(self, kind: str):
        super().__init__()
        torch.manual_seed(0)
        self.cell = build_cell("scratch", 3, 6, kind=kind, num_layers=2, bidirectional=True).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))


def run_by_hand(cell: Any, x: Tensor, number: int, symbol: str, by_hand: Callable) -> tuple:
    """Output and final state of plain loops, with `by_hand(values, t)` for units 4 and 1 of one symbol."""

    def put(k: int, t: int) -> Callable[[str, Tensor], Tensor]:
        def at(name: str, value: Tensor) -> Tensor:
            if (k, name) == (number, symbol):
                value = value.clone()
                value[[4, 1]] = by_hand(value[[4, 1]], t)
            return value

        return at

    zeros = torch.zeros(len(KINDS[cell.kind].state._fields), 4, 1, 6, dtype=F64)
    output, state = reference(cell, x, list(zeros), put=put)
    return output, *state


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_clamp_at_any_point_is_that_line_replaced(kind):
    model: Any = Model(kind)
    x = torch.randn(1, 4, 3, dtype=F64)
    plain, state = model.cell(x)
    assert_close((plain, *state), run_by_hand(model.cell, x, 0, "", lambda v, t: v), rtol=0, atol=1e-12)
    with intervene(model, {}, record=True) as cache:
        assert_close(model.cell(x)[0], plain, rtol=0, atol=1e-12)
    traced = model.cell.trace(x)[2]
    for point, (_, number, symbol) in list_points(model).items():
        assert_close(cache[point], traced[symbol][number // 2, number % 2], rtol=0, atol=0)
        with intervene(model, {f"{point}[4,1]": clamp(0.7, steps=range(1, 4))}):
            changed, after = model.cell(x)
        expected = run_by_hand(model.cell, x, number, symbol, lambda v, t: 0 * v + 0.7 if t else v)
        assert_close((changed, *after), expected, rtol=0, atol=1e-12)
        # Whatever m is, c and n are scaled alike
        assert ((changed - plain).abs().max() > 1e-3) == (symbol != "m"), point
    assert len(cache) == 4 * len({*KINDS[kind].gates, *KINDS[kind].state._fields})
    assert torch.equal(model.cell(x)[0], plain)  # nothing is left behind


@pytest.mark.parametrize(("number", "point"), [(1, "layer0.reverse.c"), (2, "layer1.f")])
@torch.no_grad()
def test_each_change_is_what_it_says(number, point):
    model: Any = Model("peephole")
    x = torch.randn(1, 5, 3, dtype=F64)
    with intervene(model, {}, record=True) as cache:
        model.cell(x)
    seen = cache[point][0][:, [4, 1]]  # (T, 2)
    for change, by_hand in (
        (clamp(0.7), lambda v, t: torch.full_like(v, 0.7)),
        (scale(0.5, steps=[1, 4]), lambda v, t: 0.5 * v if t in (1, 4) else v),
        (add(-0.2, steps=range(3)), lambda v, t: v - 0.2 if t < 3 else v),
        (ablate(), lambda v, t: 0 * v),
        (ablate(seen[None]), lambda v, t: seen.mean(0)),
        (patch_from(seen.flip(0)[None]), lambda v, t: seen[4 - t]),
    ):
        with intervene(model, {f"{point}[4,1]": change}):
            changed, _ = model.cell(x)
        assert_close(changed, run_by_hand(model.cell, x, number, point[-1], by_hand)[0], rtol=0, atol=1e-12)
        assert not torch.equal(changed, model.cell(x)[0])


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


@pytest.fixture
def translator(trained) -> Callable[[str], Any]:
    """translator("true"): a small model with input feeding, and with weights that tell its sources apart."""

    def load(feeding: str) -> Any:
        model: Any = load_model(str(trained("seq2seq", f"model.input_feeding={feeding}")), "scratch").double()
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        return model

    return load


@pytest.mark.parametrize("feeding", ["true", "false"])
@torch.no_grad()
def test_attention_is_a_point(translator, feeding, monkeypatch):
    """In one call, in greedy search and in beam search, for two sources of different lengths."""
    model = translator(feeding)
    rows = model.read_text("1 May 2012\n29/11/1999 at the latest")
    given = torch.arange(3, 15).view(2, 6)
    run: dict[str, Callable] = {
        "forward": lambda: model(rows.ids, rows.lengths, given)[0],
        "greedy": lambda: model.search(rows.ids, rows.lengths),
        "beam": lambda: model.search(rows.ids, rows.lengths, 3),
    }
    plain = {name: call() for name, call in run.items()}
    with intervene(model, {}, record=True) as cache:
        assert torch.equal(run["greedy"](), plain["greedy"])
    α = cache["attention"]  # (2, T, S)
    assert α.shape[::2] == rows.ids.shape
    assert_close(α.sum(2), torch.ones(α.shape[:2], dtype=F64))
    with intervene(model, {"attention": clamp(1.0)}, record=True) as ones:
        run["greedy"]()
    assert torch.equal(ones["attention"], rows.mask[:, None].expand_as(ones["attention"]).double())
    known = range(α.size(1))
    mean, other = α[:, :, [1, 2]].mean((0, 1)), α.roll(1, 2)

    def put(units: list[int], value: Any) -> Callable:
        return lambda v, t: v.index_copy(-1, torch.tensor(units), value(v[..., units], t))

    everything = [*range(rows.ids.size(1))]
    for point, change, by_hand in (
        ("attention", clamp(0.0), put(everything, lambda v, t: 0 * v)),
        ("attention[1]", clamp(0.7, steps=[1, 2]), put([1], lambda v, t: 0 * v + 0.7 if t in (1, 2) else v)),
        ("attention[1:3]", ablate(α[:, :, 1:3]), put([1, 2], lambda v, t: mean.expand_as(v))),
        (
            "attention",
            patch_from(other, steps=known),
            put(everything, lambda v, t: other[:, t, None].expand_as(v) if t in known else v),
        ),
    ):
        with intervene(model, {point: change}):
            changed = {name: call() for name, call in run.items()}
        for name, call in run.items():
            at_once, t = name == "forward" and feeding == "false", itertools.count()

            def attend(
                query: Tensor, memory: Any, by_hand: Any = by_hand, at_once: Any = at_once, t: Any = t
            ) -> Any:
                scores = model.attention.score(query, memory.keys).masked_fill(
                    ~memory.mask[:, None], -torch.inf
                )
                weights = scores.softmax(-1)  # (B, T or K, S)
                parts = weights.split(1, 1) if at_once else [weights]
                weights = torch.cat([by_hand(part, next(t)) for part in parts], 1) * memory.mask[:, None]
                return weights @ memory.values, weights

            with monkeypatch.context() as patch:
                patch.setattr(model.attention, "forward", attend)
                assert_close(changed[name], call(), rtol=0, atol=1e-10)
        assert any(not torch.equal(changed[name], plain[name]) for name in ("greedy", "beam"))
        assert not torch.equal(changed["forward"], plain["forward"])
    said = r"'attention\[99\]' is out of range: the longest source has the tokens 0 to "
    with pytest.raises(ValueError, match=said), intervene(model, {"attention[99]": clamp(1.0)}):
        run["greedy"]()


def test_one_change_within_another_adds_to_it(trained):
    model: Any = load_model(str(trained("charlm")), "scratch")
    rows = model.read_text("line 12")
    both = {"layer0.f": clamp(0.5), "layer0.h[0:4]": add(1.0)}
    with torch.no_grad(), intervene(model, both):
        expected = model.run(rows)
    with torch.no_grad(), intervene(model, {"layer0.f": clamp(0.5)}):
        alone = model.run(rows)
        with intervene(model, {"layer0.h[0:4]": add(1.0)}, record=True) as cache:
            assert torch.equal(model.run(rows), expected)
        assert cache["layer0.f"].eq(0.5).all() and not torch.equal(alone, expected)
        assert torch.equal(model.run(rows), alone)


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
    for name, options in (("predict", ["text=line", "length=5"]), ("evaluate", []), ("analyze", [])):
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
    for task in ("charlm", "seq2seq"):
        example = example.replace(f"{task.upper()}_RUN", str(trained(task)))
    exec(example, values)
    assert values["logits"].shape[:2] == (1, 6) and len(values["text"]) == 50
    assert values["parts"].shape == (6,)
