"""The page: its data survive, it is small, and it works in a browser."""

import base64
import json
import re
import time
import zlib

import numpy as np
import pytest
import torch

from lstmlab.analysis.page import quantise, write_page

TOKENS = [*"def f():\n\treturn '</script><b>&'\n"] * 3


def made_up(N: int, L: int, D: int, H: int) -> dict[str, torch.Tensor]:
    """Gates and states from random walks: smooth and sometimes saturated, like those of a trained model."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(6, L, D, N, H, generator=generator)
    walk = 3 * walk + 3 * torch.randn(6, L, D, 1, H, generator=generator)
    i, f, o = walk[:3].sigmoid()
    g, h = walk[3:5].tanh()
    return {"c": walk[5] * 20, "f": f, "i": i, "o": o, "g": g, "h": h}


def block(page: str, key: str) -> np.ndarray:
    [packed] = re.findall(rf'<script type="text/plain" id="{key}">(.*?)</script>', page)
    return np.frombuffer(zlib.decompress(base64.b64decode(packed), -15), np.uint8)


def test_quantised_values_come_back(tmp_path):
    N, H = len(TOKENS), 5
    traces = made_up(N, 2, 2, H)
    traces |= {"k": 3 * traces["c"], "h": 2 * traces["h"]}  # of a kind without tanh, whose k has no label
    features = {"position": np.arange(N, dtype=np.float32), "still": np.full(N, 3.0, np.float32)}
    half_lives = torch.full((2, 2, H), torch.inf)
    half_lives[0, 1, 2] = 1.2345
    write_page(tmp_path / "page.html", "Title <i>", "sub", TOKENS, traces, features, half_lives)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    [meta] = [json.loads(m) for m in re.findall(r'id="meta">(.*?)</script>', page, re.DOTALL)]
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
    assert (meta["title"], meta["subtitle"]) == ("Title <i>", "sub")
    assert (meta["layers"], meta["directions"], meta["units"]) == (2, 2, H)
    assert [(v["name"], v["gate"]) for v in meta["values"]] == [(name, name in "ifo") for name in traces]
    assert {v["name"]: v["label"] for v in meta["values"]}["k"] == "k"
    assert meta["features"] == [
        {"name": "position", "low": 0, "high": N - 1},
        {"name": "still", "low": 3, "high": 3},
    ]
    steps = np.arange(N) * 255 / (N - 1)
    assert abs(block(page, "feature-0") - steps).max() <= 0.5 and not block(page, "feature-1").any()


def test_zero_stays_zero():
    quantised, scale = quantise("c", np.array([[0.0, 0.0], [-8.0, 0.0]], np.float32))
    assert quantised.tolist() == [[128, 1], [128, 128]] and scale[0] == 8


def test_the_page_is_small(tmp_path):
    """10,000 characters, 2 layers × 256: cell states and forget gates under 15 MB, all six under 40 MB.

    Noise, which no compression helps, in place of a model's values.
    """
    traces = made_up(10_000, 2, 1, 256)
    two = {name: traces[name] for name in "cf"}
    tokens = list("0123456789" * 1000)
    for name, values, limit in (("two", two, 15e6), ("six", traces, 40e6)):
        write_page(tmp_path / name, "", "", tokens, values, {}, None)
        assert (tmp_path / name).stat().st_size < limit


def test_the_page_in_a_browser(browser, tmp_path):
    N, H = len(TOKENS), 7
    traces = made_up(N, 2, 1, H)
    truth = np.array([token == "\n" for token in TOKENS], np.float32)
    traces["c"][0, 0, :, 4] = 1 - 3 * torch.from_numpy(truth)  # a unit that tracks it
    traces["f"][1, 0, 3, 2] = 0.25
    write_page(
        tmp_path / "page.html",
        "A page",
        "of a test",
        TOKENS,
        traces,
        {"line break": truth},
        torch.ones(2, 1, H),
    )

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
    assert browser.title == "A page"
    text = browser.execute_script("return spans.map(span => span.textContent).join('')")
    assert text.replace("\u200b", "") == "".join(TOKENS).replace("\n", "")
    assert "r = -1.00" in browser.execute_script("return $('about').textContent")
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
