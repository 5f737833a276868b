"""The rows of metrics.csv, the ids of wandb runs, and what `show` sends to each logger."""

import copy
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lstmlab.loggers import MetricsCSV, add_wandb_ids, build_loggers, show


def write_rows(folder, rows: list[dict]) -> None:
    """With a new logger, as at each start of a run."""
    logger = MetricsCSV(str(folder))
    for step, row in enumerate(rows):
        logger.log_metrics(row, step)
    logger.save()


def test_a_metrics_file_is_continued(tmp_path):
    file = tmp_path / "metrics.csv"
    write_rows(tmp_path, [{"a": 1.0}, {"a": 2.0}])
    write_rows(tmp_path, [{"a": 3.0}])
    assert file.read_text().split() == ["a,step", "1.0,0", "2.0,1", "3.0,0"]
    write_rows(tmp_path, [{"b": 4.0}])
    assert file.read_text().split() == ["a,b,step", "1.0,,0", "2.0,,1", "3.0,,0", ",4.0,0"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_are_deleted_and_counted(tmp_path):
    logger: Any = MetricsCSV(str(tmp_path))
    logger.keep_rows(2)  # of a file that does not exist
    write_rows(tmp_path, [{"a": float(k)} for k in range(5)])
    assert logger.experiment.rows == 5
    logger.keep_rows(2)
    assert logger.experiment.rows == 2
    logger.log_metrics({"a": 9.0}, 7)
    logger.save()
    assert logger.experiment.rows == 3
    assert (tmp_path / "metrics.csv").read_text().split() == ["a,step", "0.0,0", "1.0,1", "9.0,7"]


def test_wandb_runs_get_ids(config):
    """An id where there is none; the argument is not changed."""
    given = config("logger=[tensorboard,wandb]").to_plain()["logger"]
    before = copy.deepcopy(given)
    first, second = add_wandb_ids(given), add_wandb_ids(given)
    assert given == before
    assert list(first) == list(given) and first["tensorboard"] == given["tensorboard"]
    assert first["wandb"] == given["wandb"] | {"id": first["wandb"]["id"]}
    assert len(first["wandb"]["id"]) == 8 and first["wandb"]["id"] != second["wandb"]["id"]
    assert add_wandb_ids(first) == first


def test_a_run_builds_its_loggers(config):
    """metrics.csv first, whatever the `logger` group names."""
    assert [type(each) for each in build_loggers(config("logger=csv"), None)] == [MetricsCSV]
    loggers = build_loggers(config("logger=tensorboard"), 3)
    assert [type(each) for each in loggers] == [MetricsCSV, TensorBoardLogger]


def test_a_logger_that_cannot_start_ends_the_run_in_one_sentence(command, small, monkeypatch, tmp_path):
    """And leaves no folder behind."""
    before = set(tmp_path.iterdir())
    wandb.teardown()  # it remembers that it was offline
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "trackio", None)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    messages = {
        "tensorboard": "needs pip install -e '.[loggers]'",
        "trackio": "needs pip install -e '.[loggers]'",
        "wandb": "cannot start: No API key configured. Use `wandb login` to log in; "
        "logger.wandb.offline=true needs neither an account nor a network",
    }
    for name, message in messages.items():
        code, _, error = command("train", *small, f"logger={name}")
        assert (code, error) == (1, f"error: logger={name} {message}\n")
    wandb.teardown()  # it remembers that it was online
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"cache"}
    code, _, error = command(
        "train", *small, "logger=wandb", "logger.wandb.log_model=all", "logger.wandb.offline=true"
    )
    assert code == 1 and error.startswith("error: logger.wandb: Providing log_model=all and offline=True is")


@pytest.fixture
def trainer(tmp_path) -> Any:
    loggers: list[Any] = [
        MetricsCSV(str(tmp_path)),
        TensorBoardLogger(str(tmp_path), name="tensorboard", version=""),
        WandbLogger(save_dir=str(tmp_path), offline=True),
    ]
    yield SimpleNamespace(global_step=3, loggers=loggers)
    loggers[2].experiment.finish()


def test_show_sends_to_every_logger(trainer, tmp_path):
    """A text, a table and both kinds of pictures."""
    image = Image.fromarray(np.full((4, 6, 3), 200, np.uint8))
    show(trainer, "report", text="It *works*.")
    show(trainer, "table", table=(["x", "y"], [["a", "1"], ["b", "2"]]))
    show(trainer, "figure", picture=Figure((1, 1)))
    show(trainer, "image", text="a caption", picture=image)
    trainer.loggers[1].finalize("success")

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    texts = {
        name: events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("report", "table", "image")
    }
    assert texts == {
        "report": "It *works*.",
        "table": "| x | y |\n| --- | --- |\n| a | 1 |\n| b | 2 |",
        "image": "a caption",
    }
    assert [events.Images(name)[0].step for name in ("figure", "image")] == [3, 3]
    assert (events.Images("image")[0].width, events.Images("image")[0].height) == (6, 4)

    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in (media / "table").iterdir()}
    assert {name: (table["columns"], table["data"]) for name, table in tables.items()} == {
        "report": (["step", "text"], [[3, "It *works*."]]),
        "table": (["x", "y"], [["a", "1"], ["b", "2"]]),
    }
    pictures = sorted(path.name.split("_")[0] for path in (media / "images").iterdir())
    assert pictures == ["figure", "image"]
