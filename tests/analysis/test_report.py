"""analyze.py for a checkpoint of each task, and each part of its report."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from conftest import SMALL
from lstmlab.analysis import plots, sections
from lstmlab.analysis.causes import ANSWERS, Cause, Effect, report_causes
from lstmlab.analysis.gates import Saturation
from lstmlab.analysis.gradient_flow import measure_gradient_flow, measure_initial_flows
from lstmlab.analysis.interventions import intervene, parse_settings
from lstmlab.analysis.probes import Unit, find_units
from lstmlab.analysis.traces import load_validation_rows, trace
from lstmlab.checkpoint import load_model
from lstmlab.data.features import english
from lstmlab.data.rows import Rows
from lstmlab.runs.train import train

SETS = ["data.train_size=64", "data.val_size=40", "data.test_size=10"]
TASKS = {
    "charlm": ["data=textfile", "data.batch_size=4", "data.sequence_length=20"],
    "charlm with gru": ["data=textfile", "data.batch_size=4", "data.sequence_length=20", "cell.kind=gru"],
    "copytask with rnn": ["data.val_size=40", "cell.kind=rnn"],
    "sentiment": ["data=reviews", *SETS],
    "seq2seq": ["data=dates", *SETS],
}
EVERYWHERE = {"report.md", "page.html", "gates.png", "gradient_flow.png"}
MORE = {
    "charlm": {"half_life.png", "saturation.png", "probes.png", "causes.png", "writing.png"},
    "charlm with gru": {"half_life.png", "saturation.png", "probes.png", "causes.png", "writing.png"},
    "copytask with rnn": {"probes.png"},
    "sentiment": {"half_life.png", "saturation.png", "probes.png", "causes.png"},
    "seq2seq": {"half_life.png", "saturation.png", "probes.png", "causes.png", "attention.png"},
}


@pytest.fixture
def trained(config, text_file, tmp_path):
    """trained("sentiment") → the folder of a run of one batch."""

    def run(task: str) -> str:
        name = task.split()[0]
        overrides = [f"model={name}", *TASKS[task], *SMALL, "debug=one_batch"]
        if name == "charlm":
            overrides += [f"data.path={text_file}", f"data.cache={tmp_path}/cache"]
        settings = config(*overrides)
        train(settings)
        return settings.run_dir

    return run


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A language model writes short texts."""
    monkeypatch.setattr(sections, "LENGTH", 60)


def cells(table: str) -> list[list[str]]:
    """The rows of the first table in a text, without its header."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_memory_is_tabulated():
    steps = torch.stack([torch.arange(11.0), torch.arange(110.0, -1, -11)])[:, None]  # (2, 1, 11)
    assert cells(sections.report_memory(steps, "f")) == [
        ["layer 0", "1", "5", "9", "10 (unit 10), 9 (unit 9), 8 (unit 8)"],
        ["layer 1", "11", "55", "99", "110 (unit 0), 99 (unit 1), 88 (unit 2)"],
    ]
    assert "ln 2 / |mean(ln z)|" in sections.report_memory(steps, "z")


def test_saturation_is_tabulated():
    low, high = torch.tensor([[[0.25, 0.75]], [[0.0, 0.5]]]), torch.tensor([[[0.125, 0.125]], [[0.0, 1.0]]])
    found = {"i": Saturation(low, high), "f": Saturation(high, low)}
    assert cells(sections.report_saturation(found)) == [
        ["layer 0", "f", "12.5%", "50.0%"],
        ["layer 0", "i", "50.0%", "12.5%"],
        ["layer 1", "f", "50.0%", "25.0%"],
        ["layer 1", "i", "25.0%", "50.0%"],
    ]


def test_forgetting_is_reported():
    """The ten steps with the lowest mean gate, and the tokens ranked by it."""
    text = [*"abc \n" * 4]
    kept = torch.tensor([0.25, 0.5, 0.75, 0.9, 0.1] * 4)[:, None].expand(20, 2).clone()
    kept[12] = torch.tensor([0.0, 0.125])
    f = torch.stack([kept, 1 - kept])[:, None]  # (2, 1, 20, 2)
    first, second = sections.report_forgetting(f, text).split("Layer 1 ")
    assert first.splitlines()[2] == (
        "Layer 0 keeps least at '\\n' 0.10, 'a' 0.25, 'b' 0.50, 'c' 0.58, ' ' 0.90; "
        "most at ' ' 0.90, 'c' 0.58, 'b' 0.50, 'a' 0.25, '\\n' 0.10 (mean over the units)."
    )
    assert second.startswith("keeps least at ' ' 0.10, 'c' 0.42, ")
    table = cells(first)
    assert table[0] == ["0.062", "`'abc \\nabc \\nab'`", "`'c'`", "`' \\nabc \\n'`"]
    assert [row[0] for row in table[1:]] == ["0.100"] * 4 + ["0.250"] * 4 + ["0.500"]


def test_gradient_flow_is_reported(trained, tmp_path):
    """Untrained cells, and the cell of the model on rows cut from the text."""
    model: Any = load_model(f"{trained('charlm')}/checkpoints/last.ckpt", "scratch")
    rows = model.read_text("line 1: é 5\n" * 40)
    text = sections.report_gradient_flow(model, rows, tmp_path)
    flows = measure_initial_flows(100)
    flows["trained"] = measure_gradient_flow(
        model.cell, model.embedding(rows.ids.view(4, 120)[:, :100]).detach()
    )
    expected = []
    for name, flow in flows.items():
        for member, norms in flow.items():
            back = norms.tolist()[::-1]
            until = 0
            while until < 99 and back[1 + until] >= 0.01:
                until += 1
            expected.append([name, member, *(f"{back[k]:.1e}" for k in (10, 30, 99)), str(until)])
    assert cells(text) == expected
    assert len({row[-1] for row in expected}) > 4


def test_units_and_probes_are_reported(trained, tmp_path):
    model: Any = load_model(f"{trained('charlm')}/checkpoints/last.ckpt", "scratch")
    rows, _ = load_validation_rows(model, {}, 400)
    text = sections.report_units(model, rows, " A note.", "english", tmp_path)
    results = find_units(trace(model, rows, "ch"), english("".join(model.token_texts(rows))))
    assert text.startswith(
        f"## What the units know\n\n{rows.lengths.sum()} steps of validation data. A note. r is "
    )
    assert "Left out because they are constant: inside quotes." in text
    found = {row[0]: row[1:] for row in cells(text.partition("## What the units do")[0])}
    assert list(found) == [result.feature for result in results] == ["position in line", "position in word"]
    for f in results:
        (unit, r), *others = f.best
        assert found[f.feature] == [
            str(unit),
            f"{r:+.3f}",
            f"{f.halves[0]:+.2f}, {f.halves[1]:+.2f}",
            f"{f.control_r:.3f}",
            f"{f.probe:.3f}",
            f"{f.control_probe:.3f}",
            "; ".join(f"{other} {s:+.2f}" for other, s in others),
        ]


def test_what_the_units_do_is_reported():
    """A feature is named if the interval of its best unit or best five lies above all random choices."""
    unit, nowhere = Unit("c", 0, 1, 3), Effect(np.nan, np.nan, np.nan)
    above, below = Effect(0.25, 0.125, 0.5), Effect(0.25, 0.0625, 0.5)
    controls = [0.1, -0.1] * 5
    causes = [
        Cause(feature, [unit] * count, effect, nowhere if feature == "b" else above, controls)
        for feature, effects in {"a": (above, below), "b": (above, above), "c": (below, below)}.items()
        for count, effect in zip((1, 5), effects, strict=True)
    ]
    text = report_causes(causes, Rows.dense(torch.zeros(4, 5)))
    assert "The model reads 20 steps in 4 rows" in text and "has no elsewhere" in text
    assert "above all random choices for a (best unit), b (best unit and best 5). For c it does not: " in text
    large, small = "+0.2500 (+0.1250 to +0.5000)", "+0.2500 (+0.0625 to +0.5000)"
    random = ["+0.0000, +0.1000", "2.5"]
    assert cells(text)[:3] == [
        ["a", str(unit), large, large, *random],
        ["a", "the best 5", small, large, *random],
        ["b", str(unit), large, "–", *random],
    ]
    text = report_causes(causes[4:], Rows.dense(torch.zeros(4, 5)))
    assert (
        "above all random choices for no feature. For c it does not" in text
        and "has no elsewhere" not in text
    )


@pytest.mark.parametrize("task", TASKS)
def test_analyze_each_task(task, trained, command, tmp_path, monkeypatch):
    run = trained(task)
    orders, original = [], plots.draw_gates

    def draw_gates(traces, order, text):
        orders.append(order.tolist())
        return original(traces, order, text)

    monkeypatch.setattr(plots, "draw_gates", draw_gates)
    arguments = ["page_steps=200", "probe_steps=400", f"ckpt={run}/checkpoints/last.ckpt", "traces=true"]
    if task.startswith("charlm"):
        arguments.append(f"data.cache={tmp_path}/cache")
    code, out, error = command("analyze", *arguments)
    assert code == 0, error
    folder = tmp_path / run / "analysis/validation"
    assert {path.name for path in folder.iterdir()} == EVERYWHERE | MORE[task] | {"traces.npz"}
    assert "## Gradient flow" in out and ("## What the units know" in out)
    with np.load(folder / "traces.npz") as arrays:
        steps = len(arrays["tokens"])
        assert 0 < steps <= 200
        assert arrays["h"].shape[2:] == (steps, 8)
        if "half_life.png" in MORE[task]:  # the units, by how long the last layer remembers
            kept = arrays["z" if "gru" in task else "f"][-1, 0].astype(float)
            assert orders == [np.argsort(-1 / np.log(kept).mean(0)).tolist()]
        if task == "charlm":
            assert set(arrays) == set("ifgoch") | {"tokens"}
            assert "position in word" in out


def test_a_typed_text_needs_no_data(trained, command, tmp_path, text_file):
    run = trained("charlm")
    text_file.unlink()
    arguments = [
        f"ckpt={run}/checkpoints/last.ckpt",
        "probe_steps=0",
        "page_values=[c,f]",
        f"folder={tmp_path}/x",
    ]
    code, out, error = command("analyze", *arguments, 'text=line 1: "é", isn\'t it?\n')
    assert code == 0, error
    assert "## What the units know" not in out and "## What it writes\n\nLeft out: " in out
    page = (tmp_path / "x/page.html").read_text(encoding="utf-8")
    assert 'id="f-0-0"' in page and 'id="h-0-0"' not in page


def test_each_text_has_its_own_folder_without_anything_stale(trained, command, tmp_path):
    run = trained("charlm")
    arguments = [f"ckpt={run}/checkpoints/last.ckpt", f"data.cache={tmp_path}/cache", "page_steps=50"]
    folders = []
    for text in ("line 1: a\n", "line 1: b\n", "é" * 9):
        code, out, error = command("analyze", *arguments, "probe_steps=400", "traces=true", f"text={text}")
        assert code == 0, error
        folders.append(tmp_path / out.splitlines()[-2].partition(": ")[0])
    assert len(set(folders)) == 3 and all(folder.parent == tmp_path / run / "analysis" for folder in folders)
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["line-1-a", "line-1-b", ""]

    (folders[0] / "notes.md").write_text("mine")
    assert command("analyze", *arguments, "probe_steps=0", "text=line 1: a\n")[0] == 0
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert {"probes.png", "traces.npz", "writing.png"} <= names[1]
    assert not {"probes.png", "traces.npz", "writing.png"} & names[0] and "notes.md" in names[0]


def test_set_steers_what_is_written_and_says_what_it_costs(trained, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "FLOW_STEPS", 20)
    run, setting = trained("charlm"), "layer0.o[0:4]=0"
    arguments = [f"ckpt={run}/checkpoints/last.ckpt", f"data.cache={tmp_path}/cache", f"set={setting}"]
    code, out, error = command("analyze", *arguments, "page_steps=200", "probe_steps=400", "traces=true")
    assert code == 0, error
    folder = tmp_path / run / "analysis"
    [folder] = folder.glob("validation-layer0-o-0-4-0-??????")
    with np.load(folder / "traces.npz") as arrays:
        o, h = (arrays[name][0, 0] for name in "oh")  # (T, H) of the first layer
        assert not o[:, :4].any() and not h[:, :4].any() and o[:, 4:].all() and h[:, 4:].all()
    assert setting in (folder / "page.html").read_text(encoding="utf-8")

    model: Any = load_model(f"{run}/checkpoints/last.ckpt", "scratch")
    held_out, _ = load_validation_rows(model, {}, 12_000)
    prompt = "".join(model.token_texts(held_out.head(100)))
    changes = parse_settings(setting, model)
    texts = ["".join(model.sample(prompt, 200, 0.8))]
    with intervene(model, changes):
        texts.append("".join(model.sample(prompt, 200, 0.8)))
    shown = [text.strip("\n").replace("\n", "\n    ") for text in texts]
    assert shown[0] != shown[1]
    assert f"the model wrote:\n\n    {shown[0]}\n\nIt writes:\n\n    {shown[1]}\n" in out

    count, before, after, change = re.search(  # type: ignore[union-attr]
        r"on ([\d,]+) predictions .* was ([\d.]+) nats, and is ([\d.]+): a change of ([+-][\d.]+) ", out
    ).groups()
    rows = held_out.head(10_000).side_by_side(50)
    with torch.no_grad():
        plain = model.compute_losses(rows)
        with intervene(model, changes):
            changed = model.compute_losses(rows)
    assert int(count.replace(",", "")) == plain.numel()
    assert float(before) == pytest.approx(plain.mean().item(), abs=1e-4)
    assert float(after) == pytest.approx(changed.mean().item(), abs=1e-4) != float(before)
    assert float(change) == pytest.approx((changed - plain).mean().item(), abs=1e-4)


def test_set_steers_the_answer_to_a_text(trained, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "FLOW_STEPS", 20)
    ckpt = f"{trained('seq2seq')}/checkpoints/last.ckpt"
    setting = "attention=0; decoder.layer0.h=1"
    options = [f"set={setting}", "text=2 May 2012", "probe_steps=0", f"folder={tmp_path}/x"]
    code, out, error = command("analyze", f"ckpt={ckpt}", *options)
    assert code == 0 and "nats, and is" not in out, error
    model: Any = load_model(ckpt, "scratch")
    answers = [answer["translation"] for answer in model.answer(["2 May 2012"], ANSWERS)]
    with intervene(model, parse_settings(setting, model)):
        answers += [answer["translation"] for answer in model.answer(["2 May 2012"], ANSWERS)]
    assert f"wrote:\n\n    {answers[0]}\n\nIt writes:\n\n    {answers[1]}\n" in out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("text=", "text= is empty"),
        ("page_values=[z]", "page_values holds z"),
        ("page_steps=0", "page_steps"),
        ("language=latin", "language"),
    ],
)
def test_mistakes_end_in_one_sentence(trained, command, argument, message):
    ckpt = f"ckpt={trained('charlm')}/checkpoints/last.ckpt"
    code, _, error = command("analyze", ckpt, "probe_steps=0", "text=line", argument)
    assert code == 1 and error.count("\n") == 1 and message in error
