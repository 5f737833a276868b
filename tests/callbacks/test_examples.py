import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import SMALL
from lstmlab.data import build_data
from lstmlab.models import charlm
from lstmlab.models.base import Unsupported
from lstmlab.runs.train import train
from lstmlab.tables import markdown


def test_a_table_and_a_picture_at_each_validation_in_every_logger(config, tmp_path):
    settings = config(
        *SMALL,
        "model=seq2seq",
        "data=dates",
        "data.train_size=60",
        "data.val_size=20",
        "data.test_size=10",
        "data.batch_size=4",
        f"data.cache={tmp_path}/cache",
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
        "trainer.log_every_n_steps=1",
        "logger=[tensorboard,wandb]",
        "logger.wandb.offline=true",
    )
    train(settings)
    folder = Path(settings.run_dir)
    text = (folder / "examples.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Step 1", "## Step 2"]
    module = build_data(settings.data)
    module.setup()
    batches = list(module.val_dataloader())
    middle = [module.tokenizer.decode(row.tolist()).strip() for row in batches[len(batches) // 2].source]
    assert text.count("| source |") == 2 and text.count(f"| {middle[0]} |") == 2
    assert (folder / "examples.png").read_bytes().startswith(b"\x89PNG")

    (tables,) = folder.glob("wandb/offline-run-*/files/media/table")
    logged = [json.loads(path.read_text()) for path in sorted(tables.iterdir())]
    assert [table["columns"] for table in logged] == [["source", "prediction", "truth"]] * 2
    assert middle[0] in {row[0] for row in logged[0]["data"]}
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/picture*.png"))) == 2
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Tensors("examples/text_summary")] == [1, 2]
    assert [event.step for event in events.Images("picture")] == [1, 2]


def test_a_cell_cannot_break_the_table():
    assert markdown(["a|b", "c"], [["x\ny", 1]]).splitlines() == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| x⏎y | 1 |",
    ]


@pytest.mark.parametrize("lacking", ["rows_of_batch", "token_texts", "traced_cell"])
def test_a_task_without_examples_trains(config, text_file, monkeypatch, capsys, lacking):
    """Its examples and gates are left out silently."""

    def refuse(self, *_):
        raise Unsupported("this task has none")

    class Silent(charlm.CharLM):
        examples = refuse

        def finish(self) -> None:
            return None

    setattr(Silent, lacking, refuse)
    monkeypatch.setattr(charlm, "CharLM", Silent)
    settings = config(
        *SMALL,
        "data=textfile",
        f"data.path={text_file}",
        f"data.cache={text_file.parent}/cache",
        "data.batch_size=4",
        "data.sequence_length=20",
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
        "trainer.log_every_n_steps=1",
    )
    metrics = train(settings)
    assert "val/loss_stateful" in metrics
    assert "| --- |" not in capsys.readouterr().out
    assert not any((Path(settings.run_dir) / name).exists() for name in ("examples.md", "gates"))
