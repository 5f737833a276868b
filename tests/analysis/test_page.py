"""The page: its data survive, it is small, and it works in a browser."""

import base64
import json
import re
import time
import zlib
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from lstmlab.analysis.attribution import attribute_memory, memory_of
from lstmlab.analysis.interventions import intervene
from lstmlab.analysis.page import build_page, quantise, quantise_memory
from lstmlab.analysis.traces import trace
from lstmlab.checkpoint import load_model
from lstmlab.data.rows import Rows

TOKENS = [*"def f():\n\treturn '</script><b>&'\n"] * 3


def made_up(N: int, L: int, D: int, H: int) -> dict[str, torch.Tensor]:
    """Gates from random walks, smooth and sometimes saturated, as in a trained model, and the states."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(4, L, D, N, H, generator=generator)
    walk = 3 * walk + 3 * torch.randn(4, L, D, 1, H, generator=generator)
    i, f, o = walk[:3].sigmoid()
    g, c = walk[3].tanh(), torch.zeros(L, D, N, H)
    for t in range(N):
        c[:, :, t] = f[:, :, t] * c[:, :, t - 1] + i[:, :, t] * g[:, :, t]
    return {"c": c, "h": o * c.tanh(), "f": f, "i": i, "g": g, "o": o}


def build(traces: Mapping[str, torch.Tensor], tokens=TOKENS, kind: str = "lstm", **options) -> str:
    options = {"lengths": [len(tokens)], "features": {}, "half_lives": None} | options
    return build_page("A <i>page", "of a test", tokens, kind=kind, traces=traces, **options)


def read_meta(page: str) -> dict:
    [meta] = [json.loads(found) for found in re.findall(r'id="meta">(.*?)</script>', page, re.DOTALL)]
    return meta


def block(page: str, key: str) -> np.ndarray:
    [packed] = re.findall(rf'<script type="text/plain" id="{key}">(.*?)</script>', page)
    return np.frombuffer(zlib.decompress(base64.b64decode(packed), -15), np.uint8)


def test_quantised_values_come_back():
    N, H = len(TOKENS), 5
    traces = made_up(N, 2, 2, H)
    traces |= {"k": 60 * traces["c"], "h": 2 * traces["h"]}  # of a kind without tanh, whose k has no label
    features = {"position": np.arange(N, dtype=np.float32), "still": np.full(N, 3.0, np.float32)}
    half_lives = torch.full((2, 2, H), torch.inf)
    half_lives[0, 1, 2] = 1.2345
    page = build(traces, kind="slstm", features=features, half_lives=half_lives)
    meta = read_meta(page)
    assert meta["tokens"] == TOKENS and meta["halfLives"][1][1] == [None] * H
    for name, values in traces.items():
        for layer, direction in np.ndindex(2, 2):
            key = f"{name}-{layer}-{direction}"
            stored = block(page, key).reshape(H, N).astype(np.float64)
            scale = np.array(meta["scales"][key])[:, None]
            back = stored / 255 if name in "ifo" else (stored - 128) / 127 * scale
            error = np.abs(back - values[layer, direction].numpy().T)
            assert (error <= scale / (65 if name in "ifo" else 34)).all(), name
    assert meta["halfLives"][0][1] == [None, None, 1.23, None, None]
    assert (meta["title"], meta["subtitle"]) == ("A <i>page", "of a test")
    assert (meta["layers"], meta["directions"], meta["units"]) == (2, 2, H)
    assert [(v["name"], v["gate"]) for v in meta["values"]] == [(name, name in "ifo") for name in traces]
    assert {v["name"]: v["label"] for v in meta["values"]}["k"] == "k"
    assert (
        meta["features"] == ["position", "still"] and "no gate keeps the memory" in meta["memory"]["reason"]
    )
    steps = np.arange(N) * 255 / (N - 1)
    assert abs(block(page, "feature-0") - steps).max() <= 0.5 and not block(page, "feature-1").any()


def test_errors_of_a_memory_do_not_add_up():
    """Of one that loses a thousandth each step, and of one that grows by as little: after 2,000 steps."""
    N = 2000
    r = np.stack([np.full(N, 0.999), np.ones(N)], 1)
    m = np.stack([r[:, 0].cumprod(), 0.001 * np.arange(1, N + 1) + 0.999], 1)  # both begin with a write of 1
    gates, writes, largest = quantise_memory(r.astype(np.float32), m.astype(np.float32), np.arange(N) == 0)
    kept = np.exp(gates[0] / -40.0)
    assert np.abs(np.log(kept[1:].cumprod() / r[1:, 0].cumprod())).max() < 1 / 40
    codes = (writes[1] - 128.0) / 50
    grown = (largest[1] * np.sign(codes) * codes**2).cumsum()
    assert np.abs(grown - m[:, 1]).max() < 0.02


def test_zero_stays_zero():
    quantised, scale = quantise("c", np.array([[0.0, 0.0], [-8.0, 0.0]], np.float32))
    assert quantised.tolist() == [[128, 1], [128, 128]] and scale[0] == 8


def test_the_page_is_small():
    """10,000 characters, 2 layers × 32: cell states and forget gates under 1.9 MB, all six under 5 MB.

    Noise, which no compression helps, in place of a model's values.
    """
    traces = made_up(10_000, 2, 1, 32)
    two = {name: traces[name] for name in "cf"}
    for values, limit in ((two, 1.9e6), (traces, 5e6)):
        assert len(build(values, tokens=list("0123456789" * 1000))) < limit


def test_the_page_in_a_browser(browser, tmp_path):
    N, H = len(TOKENS), 7
    traces = made_up(N, 2, 1, H)
    truth = np.array([token == "\n" for token in TOKENS], np.float32)
    traces["c"][0, 0, :, 4] = 1 - 3 * torch.from_numpy(truth)  # a unit that tracks it
    traces["f"][0, 0, :, 4] = 0
    traces["f"][1, 0, 3, 2] = 0.25
    page = build(traces, features={"line break": truth}, half_lives=torch.ones(2, 1, H))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")

    def act(script: str, shown: str) -> None:
        """Do something, and wait until the page shows value-layer-direction, unit and order."""
        browser.execute_script(script)
        for _ in range(500):
            if browser.execute_script("return document.body.dataset.shown") == shown:
                return
            time.sleep(0.01)
        pytest.fail(
            f"{script}: not {shown}, but {browser.execute_script('return document.body.dataset.shown')}"
        )

    def colours() -> list[str]:
        return browser.execute_script("return spans.map(span => span.style.backgroundColor)")

    def tip(step: int) -> str:
        hover = "spans[arguments[0]].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"
        browser.execute_script(hover, step)
        for _ in range(500):  # values of other gates are unpacked on demand
            text = browser.execute_script("return $('tip').innerText")
            if "…" not in text:
                return text
            time.sleep(0.01)
        pytest.fail(text)

    browser.get(f"file://{tmp_path}/page.html")
    act("", "c-0-0 4 feature-0")  # the page opens with the best unit of the first feature
    assert browser.title == "A <i>page"
    text = browser.execute_script("return spans.map(span => span.textContent).join('')")
    assert text.replace("\u200b", "") == "".join(TOKENS).replace("\n", "")
    assert "r = −1.00" in browser.execute_script("return $('about').textContent")
    by_truth = {kind: {c for c, t in zip(colours(), truth, strict=True) if t == kind} for kind in (0, 1)}
    assert len(by_truth[0]) == len(by_truth[1]) == 1 and by_truth[0] != by_truth[1]
    listed = "return [...document.querySelectorAll('#list button')].map(b => b.unit)"
    assert sorted(browser.execute_script(listed)) == list(range(H))

    before = colours()
    second = browser.execute_script(listed)[1]
    act("document.querySelector('#list button:nth-child(2)').click()", f"c-0-0 {second} feature-0")
    assert colours() != before
    act("$('unit').value = 2; $('unit').dispatchEvent(new Event('input'))", "c-0-0 2 feature-0")
    act("document.querySelector('#layer input[value=\"1\"]').click()", "c-1-0 2 feature-0")
    act("document.querySelector('#value input[value=f]').click()", "f-1-0 2 feature-0")
    shown = tip(3)
    assert "step 3" in shown and re.search(r"forget gate f\s+0\.2[45]", shown)
    expected = traces["h"][1, 0, 3, 2].item()
    [h] = re.findall(r"hidden state h\s+(\S+)", shown)
    assert float(h.replace("−", "-")) == pytest.approx(expected, abs=0.03)

    act("$('order').value = 'number'; $('order').dispatchEvent(new Event('change'))", "f-1-0 0 number")
    assert browser.execute_script(listed) == list(range(H))
    assert browser.get_log("browser") == []


def wait(browser, condition: str) -> None:
    for _ in range(500):
        if browser.execute_script(f"return {condition}"):
            return
        time.sleep(0.01)
    pytest.fail(f"{condition}: {browser.execute_script('return document.body.innerText')}")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("charlm", ["cell.kind=lstm", "cell.num_layers=2"]),
        ("charlm", ["cell.kind=gru"]),
        ("charlm", ["cell.kind=mingru"]),
        ("sentiment", ["cell.kind=layernorm", "cell.bidirectional=true"]),
    ],
)
def test_what_each_token_wrote(browser, trained, tmp_path, task, options):
    """The parts of a memory in the page are those of `attribute_memory`, as far as bytes can hold them."""
    model = load_model(str(trained(task, *options)), "scratch")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    texts = {"charlm": ["line 12: é 3"], "sentiment": ["Not bad at all, but boring.", "A fine film."]}[task]
    each = [model.read_text(text) for text in texts]  # sequences, each from zeros on
    ids = torch.nn.utils.rnn.pad_sequence([rows.ids[0] for rows in each], batch_first=True)
    rows = Rows(ids, torch.cat([rows.lengths for rows in each]))
    kind, traces = model.config.cell.kind, trace(model, rows)
    page = build(traces, model.token_texts(rows), kind, lengths=rows.lengths.tolist())
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.get(f"file://{tmp_path}/page.html")
    wait(browser, "document.body.dataset.shown")
    name, meta = memory_of(kind), read_meta(page)

    def ask(script: str, *arguments):
        return browser.execute_script(f"return {script}", *arguments)

    def read_value(symbol: str, unit: int, t: int) -> float:
        key = f"{symbol}-{layer}-{direction}"
        return ask("block(arguments[0]).then(() => number(...arguments))", key, unit, t)

    start = 0
    for text in texts:
        with torch.no_grad(), intervene(model, {}, record=True) as cache:
            model.run(model.read_text(text))
        for layer, direction in np.ndindex(meta["layers"], meta["directions"]):
            prefix = f"layer{layer}.{'reverse.' * direction}"
            values = {symbol: cache[prefix + symbol][0] for symbol in (name, meta["memory"]["gate"])}
            T = len(values[name])
            for unit, step in ((1, 0), (6, T // 2), (3, T - 1)):
                asked = "attribute(...arguments).then(f => [f.parts, f.left, f.written].map(v => [...v]))"
                parts, left, written = np.array(ask(asked, layer, direction, unit, start + step))
                exact = np.zeros(len(parts))
                point = f"{prefix}{name}[{unit}]"
                exact[start : start + T] = attribute_memory(model, cache, point, step)[:, 0]
                largest = np.abs(written).max()
                assert np.abs(parts - exact).max() < 0.06 * largest < 0.6 * np.abs(exact).max()
                assert np.allclose(parts, left * written)
                memory, gate = (read_value(symbol, unit, start + step) for symbol in values)
                scale = ask(f"meta.scales['{name}-{layer}-{direction}'][{unit}]")
                assert parts.sum() == pytest.approx(memory, abs=scale / 250)
                assert memory == pytest.approx(values[name][step, unit].item(), abs=0.04 * scale)
                assert gate == pytest.approx(values[meta["memory"]["gate"]][step, unit].item(), abs=0.03)
        start += T
    if name == "c":  # h is not in the page, which computes it
        layer, direction = meta["layers"] - 1, 0
        assert meta["derived"] == "h" and f'id="h-{layer}-0"' not in page
        h = traces["h"][layer, 0, 7, 5].item()
        assert read_value("h", 5, 7) == pytest.approx(h, abs=0.05)


def test_similar_states(browser, tmp_path):
    """Against a count in NumPy over the values that the page shows; and quickly."""
    N, H = 600, 8
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 2, N // 20, H, generator=generator).repeat_interleave(20, 2).tanh()
    h = 0.8 * h + 0.2 * torch.randn(2, 2, N, H, generator=generator).tanh()
    lengths, start, end = [250, 350], 307, 309
    h[:, :, 249:252] = h[:, :, start : end + 1]  # the same across two sequences, which does not count
    page = build({"h": h}, [*"abcde\n" * 100], "rnn", lengths=lengths)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.get(f"file://{tmp_path}/page.html")
    wait(browser, "document.body.dataset.shown")
    found = browser.execute_script("return findSimilar(...arguments)", start, end, 0.3)

    meta = read_meta(page)
    keys = [f"h-{layer}-{direction}" for layer, direction in np.ndindex(2, 2)]
    values = np.concatenate([(block(page, key).reshape(H, N) - 128.0) / 127 for key in keys])
    assert all(meta["scales"][key] == [1] * H for key in keys)
    sign = np.sign(values[:, start])
    on = (sign[:, None] * values[:, start : end + 1] >= 0.3).all(1)
    units = [(layer, direction, u) for layer, direction, u in np.ndindex(2, 2, H)]
    expected = [unit for unit, is_on in zip(units, on, strict=True) if is_on]
    assert sorted((u["layer"], u["direction"], u["unit"]) for u in found["on"]) == expected
    assert len(expected) > 5
    there = sign[on, None] * values[on] >= 0.3
    counts = np.array([there[:, t - 2 : t + 1].all(1).sum() if t % 250 > 1 else -1 for t in range(N)])
    for t, count in found["same"]:
        assert count == counts[t] and abs(t - end) >= 5
    far = np.abs(np.arange(N) - end) >= 5
    assert found["same"][0][1] == counts[far].max()
    cosines = values.T @ values[:, end] / np.linalg.norm(values, axis=0) / np.linalg.norm(values[:, end])
    for t, cosine in found["near"]:
        assert cosine == pytest.approx(cosines[t], abs=1e-6)
    assert found["near"][0][1] == pytest.approx(cosines[far].max(), abs=1e-6)
    ends = sorted(t for t, _ in found["near"])
    assert len(ends) == 12 and min(np.diff(ends)) >= 5

    from selenium.webdriver import ActionChains, Keys  # there, since there is a browser

    # with the mouse: a stretch, then one character
    text = "return spans[arguments[0]]"
    first, last = (browser.execute_script(text, k) for k in (1, 3))
    ActionChains(browser).drag_and_drop(first, last).perform()
    wait(browser, "document.body.dataset.found?.startsWith('similar 1 ')")
    shown = browser.execute_script("return $('panel').innerText")
    assert "Where the same units are on" in shown and "/" in shown
    browser.execute_script("document.querySelector('.match').click()")
    assert browser.execute_script("return here") >= 0
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    wait(browser, "$('panel').hidden")
    ActionChains(browser).click(browser.execute_script(text, 8)).perform()
    wait(browser, "document.body.dataset.found?.startsWith('memory 8 8 ')")
    assert "In kind=rnn no gate keeps the memory" in browser.execute_script("return $('panel').innerText")
    assert browser.get_log("browser") == []
