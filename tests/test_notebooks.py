"""Each notebook runs as a script; two of them are used as web pages."""

import csv
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cell_reference import build_cell, random_state
from conftest import SMALL
from lstmlab.cells import KINDS
from lstmlab.config import PROJECT
from lstmlab.runs.train import train

keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed")
ui = pytest.importorskip("selenium.webdriver.support.ui", reason="selenium is not installed")
pytest.importorskip("marimo", reason="marimo is not installed (pip install -e '.[notebooks]')")
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.py"))


def environment(folder) -> dict[str, str]:
    """Finds the package, and ignores marimo settings of the user."""
    own = {"PYTHONPATH": str(PROJECT / "src"), "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder)}
    return os.environ | own


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / f"notebooks/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_a_script(path, tmp_path):
    script = [sys.executable, str(path)]
    done = subprocess.run(script, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def page(browser, tmp_path) -> Iterator[Callable[..., Any]]:
    """page("cell_explorer", …): `marimo run` with these arguments, open in the browser."""
    servers = []

    def start(name: str, *arguments: str) -> Any:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve = ["run", str(PROJECT / f"notebooks/{name}.py"), "--headless", "--port", str(port)]
        quiet = subprocess.DEVNULL
        command = [sys.executable, "-m", "marimo", *serve, "--", *arguments]
        servers.append(subprocess.Popen(command, env=environment(tmp_path), stdout=quiet, stderr=quiet))

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        until(listens)
        browser.get(f"http://127.0.0.1:{port}")
        return browser

    yield start
    browser.get("about:blank")
    for server in servers:
        server.terminate()
        server.wait()


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until the condition is true. Returns its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.05)
    return found


def text(browser: Any, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def words(browser: Any) -> str:
    """The text of the whole page, including its controls."""
    return browser.execute_script(
        "const read = node => [...node.childNodes].map(child => child.nodeType === 3 ? child.data"
        " : child.tagName === 'STYLE' ? '' : read(child.shadowRoot ?? child)).join('');"
        "return read(document.body)"
    )


def controls(browser: Any, plugin: str, inner: str) -> list:
    """The elements inside the controls of one kind, in the order of the page."""
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(e => e.shadowRoot.querySelector(arguments[1])).filter(e => e)"
    )
    return browser.execute_script(script, f"marimo-{plugin}", inner)


def errors(browser: Any) -> list:
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("kind", KINDS)
def test_cell_explorer_shows_the_gates_and_states_of_a_trace(kind):
    torch.manual_seed(0)
    cell = build_cell("scratch", 1, 2, kind=kind, init="torch")
    x, state = torch.randn(5, 1), random_state(kind, 2)
    lines = load("cell_explorer").run_lines(cell, x, state)
    _, _, trace = cell.trace(x[None], [member[None, None] for member in state])
    found = {symbol: torch.stack(values) for symbol, _, values in lines if values}
    for symbol, expected in trace.items():
        torch.testing.assert_close(found[symbol], expected[0, 0, 0], rtol=0, atol=0)
    assert lines[-1][1].startswith("h = ")


def test_cell_explorer_in_a_browser(page):
    browser = page("cell_explorer")

    until(lambda: "h = o * tanh(c)" in text(browser, ".lines"))
    [first] = controls(browser, "matrix", "[data-testid=matrix-cell-0-0]")[:1]
    assert "x1.0000.000" in text(browser, ".lines")
    first.send_keys(keys.Keys.ARROW_RIGHT)
    until(lambda: "x1.1000.000" in text(browser, ".lines"))
    ui.Select(controls(browser, "dropdown", "select")[0]).select_by_visible_text("slstm")
    until(lambda: "n = f * n + i" in text(browser, ".lines"))
    until(lambda: len(controls(browser, "matrix", "table")) == 6)
    assert "Beck et al. 2024" in words(browser)
    assert errors(browser) == []


def test_training_dashboard_in_a_browser(page, config, text_file):
    often = ["trainer.max_steps=6", "trainer.log_every_n_steps=1", "trainer.val_check_interval=2"]
    small = ["data=textfile", f"data.path={text_file}", "data.sequence_length=16", "cell.num_layers=1"]
    settings = config(*SMALL, *often, *small)
    train(settings)
    folder = Path(settings.run_dir)
    (folder / "gates").mkdir(exist_ok=True)
    gates: dict[str, Any] = {name: np.full((1, 1, 2, 3), 0.5, np.float32) for name in "ifgoch"}
    np.savez(folder / "gates/step_6.npz", tokens=["a", "\n"], units=[0, 3, 7], **gates)
    file = folder / "metrics.csv"
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    losses = [f"{float(row['train/loss']):.4g}" for row in rows if row["train/loss"]]
    assert losses[0] != losses[-1]

    browser = page("training_dashboard", "--run", settings.run_dir)

    def shown(loss: str, *parts: str) -> bool:
        page = "".join(words(browser).split())
        return all(part in page for part in (f"loss{loss}val/lossstateful", *parts))

    until(lambda: shown(losses[-1], "Samplesatstep6", "Gatesatstep6", "finished,step6of6"))
    how_far = until(lambda: controls(browser, "slider", "[role=slider]"))[0]
    how_far.send_keys(keys.Keys.HOME)
    until(lambda: shown(losses[0], "step1of6", "Noneuptothisstep"))
    how_far.send_keys(keys.Keys.END)
    until(lambda: shown(losses[-1]))
    controls(browser, "refresh", "select")[0].send_keys("1s")
    with file.open("a", newline="") as lines:  # the run continues, and the page updates itself
        row = dict.fromkeys(rows[0], "") | {"epoch": "0", "step": "5", "train/loss": "1.618033"}
        csv.DictWriter(lines, list(rows[0])).writerow(row)
    until(lambda: shown("1.618", "step6of6"))
    assert errors(browser) == []


def test_dashboard_reads_the_lines_that_are_new(tmp_path):
    """Once they are complete, and all of them if another file has taken its place."""
    file = tmp_path / "metrics.csv"
    metrics = load("training_dashboard").Metrics(tmp_path)
    assert (metrics.update(), metrics.points) == (0, {})
    file.write_text("epoch,train/loss,step\n0,2.5,0\n0,2.")
    assert metrics.update() == 1
    with file.open("a") as more:
        more.write("25,1\n")
    assert metrics.update() == 2
    assert metrics.points == {"train/loss": [(0, 2.5), (1, 2.25)]}
    (tmp_path / "new").write_text("epoch,train/loss,val/loss,step\n0,2.5,,0\n0,,3,0\n")
    (tmp_path / "new").replace(file)
    assert metrics.update() == 4
    assert metrics.points == {"train/loss": [(0, 2.5)], "val/loss": [(0, 3.0)]}


def test_dashboard_puts_scores_of_another_range_on_other_axes():
    names = ("train/loss", "val/loss", "val/exact_match", "val/f1", "val/sacrebleu", "val/bits_per_character")
    last = dict(zip(names, (2.0, 30.0, 0.5, 1.0, 32.0, 2.1), strict=True))
    metrics = {name: (np.arange(2), np.array([0.0, value])) for name, value in last.items()}
    assert load("training_dashboard").arrange_panels(metrics) == {
        "loss": ["train/loss", "val/loss"],
        "scores up to 1": ["val/exact_match", "val/f1"],
        "scores up to 100": ["val/sacrebleu"],
        "scores up to 10": ["val/bits_per_character"],
    }


def test_dashboard_escapes_samples():
    shown = load("training_dashboard").build_table([["prompt"], ["<script>alert(1)</script> $x_1$ | *"]])
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_1$ | *" in shown.text


def test_effective_memory():
    memory = load("memory_test")
    assert memory.effective_memory([0, 10, 20, 30], [1.0, 0.995, 0.98, 1.0]) == 10
    assert memory.effective_memory([0, 10], [0.9, 1.0]) is None
    norms = 0.5 ** torch.arange(20).flip(0)  # falls below 1 % between 6 and 7 steps back
    assert memory.count_steps_reached(norms, 0.01) == 6
