"""Fixtures: configurations, trained models, data sets and commands, all in this process."""

import functools
import importlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck
from omegaconf import DictConfig, OmegaConf

from lstmlab.callbacks.throughput import Throughput
from lstmlab.config import PROJECT, to_plain
from lstmlab.data import build_data
from lstmlab.runs.train import train
from lstmlab.schema import EvaluateConfig, TrainConfig, check

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits

COMMON: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
hypothesis.settings.register_profile("suite", max_examples=300, derandomize=True, **COMMON)
hypothesis.settings.register_profile("thorough", max_examples=2000, print_blob=True, **COMMON)
hypothesis.settings.load_profile("suite")

SMALL = ["cell.hidden_size=8", "trainer.enable_progress_bar=false", "callbacks.curves=null"]
TINY = {  # overrides for each task on offline data; for charlm, data.path is added
    "charlm": ["data=textfile", "data.batch_size=4", "data.sequence_length=20", "data.max_val_chars=500"],
    "copytask": ["data.delay=5", "data.val_size=20", "data.test_size=20"],
    "sentiment": ["data=reviews", "data.train_size=64", "data.val_size=20", "data.test_size=20"],
    "seq2seq": ["data=dates", "data.train_size=64", "data.val_size=20", "data.test_size=20"],
}


def pytest_addoption(parser) -> None:
    parser.addoption("--fuzz", type=int, default=200, help="damaged checkpoints to try")
    parser.addoption("--soak", type=int, default=300, help="steps to train each task")
    parser.addoption("--kills", type=int, default=1, help="SIGKILLs of each task, at random moments")


@functools.cache
def compose_train(*overrides: str) -> TrainConfig:
    """The checked configuration that train.py would run."""
    with initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        return check("train", to_plain(compose("train", list(overrides))))


def ask(ckpt: str, backend: str | None = None, **data: Any) -> EvaluateConfig:
    """The configuration of evaluate.py; `data` are keys of its data group."""
    settings = {"path": None, "cache": "unused", "test_delay": None, "test_length": None} | data
    how = {"accelerator": "cpu", "beam_size": None}
    return check("evaluate", {"ckpt": ckpt, "backend": backend, "data": settings, **how})


@pytest.fixture
def real_data() -> Path:
    """The folder with the real data sets: $LSTMLAB_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("LSTMLAB_DATA", PROJECT.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set LSTMLAB_DATA")
    return folder


@pytest.fixture
def config(tmp_path) -> Callable[..., TrainConfig]:
    """config("model=charlm", …): the configuration of train.py, with its outputs in tmp_path."""

    numbers = itertools.count()

    return lambda *overrides: compose_train(f"run_dir={tmp_path}/run{next(numbers)}", *overrides)


@pytest.fixture
def train_until_killed(monkeypatch) -> Callable[..., None]:
    """train_until_killed(settings, n): train, and fail at the start of the batch after n optimizer steps."""

    def run(settings: TrainConfig, step: int) -> None:
        def kill(_, trainer, *__) -> None:
            if trainer.global_step == step:
                raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(Throughput, "on_train_batch_start", kill, raising=False)
            with pytest.raises(RuntimeError, match="killed"):
                train(settings)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Callable[..., Path]:
    """trained("sentiment", "cell.kind=gru", …): best.ckpt after one step, cached by arguments."""
    folder = tmp_path_factory.mktemp("trained")
    text = write_text(folder / "text.txt")
    numbers = itertools.count()

    @functools.cache
    def run(model: str, *overrides: str) -> Path:
        run_dir = folder / f"run{next(numbers)}"
        settings = compose_train(
            f"model={model}",
            *TINY[model],
            *SMALL,
            *([f"data.path={text}"] if model == "charlm" else []),
            *(["model.embedding_size=6"] if model != "copytask" else []),
            *([f"data.cache={folder}"] if model != "copytask" else []),
            "trainer.max_steps=1",
            "trainer.log_every_n_steps=1",
            f"run_dir={run_dir}",
            *overrides,
        )
        train(settings)
        return run_dir / "checkpoints/best.ckpt"

    return run


@pytest.fixture(scope="session")
def trackio(tmp_path_factory) -> Any:
    """trackio, with a folder of its own for what it records."""
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))
    return pytest.importorskip("trackio", reason="trackio is not installed (pip install -e '.[loggers]')")


class Times(torch.nn.Module):
    """Replaces a dropout and doubles its input, so that its place shows in the output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def write_text(path: Path) -> Path:
    """A text with some structure: 6,000 characters of counted lines."""
    path.write_text("".join(f"line {i}: é {i * i % 97}\n" for i in range(500))[:6000], encoding="utf-8")
    return path


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """command("train", "cell.dropout=2") → exit code, standard output, standard error; in process."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the entry point sets it; this restores it
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.chdir(tmp_path)
        code = 0
        capsys.readouterr()
        try:
            importlib.import_module(name).main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def text_file(tmp_path) -> Path:
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def small(text_file) -> list[str]:
    """Overrides for a small language model on a small text."""
    return [
        *SMALL,
        "scheduler=plateau",
        "data=textfile",
        f"data.path={text_file}",
        f"data.cache={text_file.parent}/cache",
        "data.batch_size=4",
        "data.sequence_length=20",
        "data.max_val_chars=500",
    ]


@pytest.fixture
def module(tmp_path) -> Callable:
    """module("reviews", train_size=100, …): the data module with these settings, ready to use."""

    def build(name: str, seed: int = 0, info: dict | None = None, **changes):
        written = OmegaConf.load(PROJECT / f"conf/data/{name}.yaml")
        cache = {"cache": str(tmp_path / "cache")} if "cache" in written else {}
        settings = OmegaConf.merge(written, cache, changes)
        assert isinstance(settings, DictConfig)
        groups = {key: getattr(compose_train("run_dir=x"), key).to_plain() for key in ("model", "cell")}
        checked = check("checkpoint", {"data": to_plain(settings), **groups, "seed": seed})
        built = build_data(checked.data, seed, info)
        built.prepare_data()
        built.setup("fit")
        return built

    return build


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator[Any]:
    """Headless Chromium, driven by Selenium; one for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-component-update", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.add_argument("--window-size=1200,800")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        yield browser


@pytest.fixture
def browser(chromium) -> Any:
    """The browser on an empty page, with an empty log."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    return chromium
