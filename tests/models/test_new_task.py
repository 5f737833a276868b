"""A new task without text, with or without a cell: what it lacks is skipped or refused by name."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from conftest import SMALL
from lstmlab.analysis.traces import trace
from lstmlab.checkpoint import CheckpointIO
from lstmlab.data.rows import Rows
from lstmlab.export import build_onnx_files, build_safetensors_files
from lstmlab.loggers import MetricsCSV
from lstmlab.models.base import Task, Unsupported
from lstmlab.runs.train import build_callbacks
from lstmlab.schema import PredictConfig, TrainConfig

# The schema does not know this task
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


class Regression(Task):
    """y = w·x + b: no cell, no ids, no text."""

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        self.linear = nn.Linear(info["inputs"], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, -1]).squeeze(1)

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch  # (B, T, I), (B,)
        return F.mse_loss(self(x), y)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.loss(batch)
        self.log_step({"train/loss": loss})
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch[1]))

    def test_step(self, batch: list[Tensor], index: int) -> None:
        self.log("test/loss", self.loss(batch), batch_size=len(batch[1]))

    def count_tokens(self, batch: list[Tensor]) -> int:
        return batch[1].numel()


class RecurrentRegression(Regression):
    """With a cell that can be traced, on numbers: there are no tokens to show."""

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        self.cell = self.build_cell(info["inputs"])
        self.linear = nn.Linear(config.cell.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.cell(x)
        return self.linear(output[:, -1]).squeeze(1)

    def traced_cell(self) -> Any:
        return self.cell

    def embed_ids(self, ids: Tensor) -> Tensor:
        return ids

    def rows_of_batch(self, batch: list[Tensor]) -> Rows:
        return Rows.dense(batch[0].cpu())


class Numbers(L.LightningDataModule):
    info = {"inputs": 3}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 5, 3, generator=generator)
        self.rows = TensorDataset(x, x[:, -1].sum(1))

    def train_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(self.rows, batch_size=8, generator=torch.Generator().manual_seed(1))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=16)

    test_dataloader = val_dataloader


@pytest.fixture
def settings(config) -> TrainConfig:
    """The settings of another task, since no schema knows this one."""
    composed = config(*SMALL, "model=copytask", "cell=scratch", "callbacks.early_stopping=null")
    model = composed.model.model_copy(update={"name": "regression", "monitor": "val/loss"})
    return composed.model_copy(update={"model": model})


def train(
    task: type[Task], settings: TrainConfig, run_dir: Path, steps: int, ckpt: Path | None = None
) -> Any:
    """As in runs/train.py, with every callback that is on by default."""
    trainer_settings = settings.trainer.replace({"max_steps": steps})
    settings = settings.model_copy(update={"trainer": trainer_settings, "run_dir": str(run_dir)})
    torch.manual_seed(0)
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=MetricsCSV(str(run_dir)),
        callbacks=build_callbacks(settings),
        plugins=[CheckpointIO()],
        default_root_dir=run_dir,
    )
    module = Numbers()
    model = task(settings, module.info)
    run_dir.mkdir(exist_ok=True)
    trainer.fit(model, module, ckpt_path=ckpt, weights_only=True)
    return model


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # as runs/train.py has it
@pytest.mark.parametrize("task", [Regression, RecurrentRegression])
def test_it_trains_resumes_and_is_evaluated_with_all_default_callbacks(task, settings, tmp_path):
    whole = train(task, settings, tmp_path / "whole", 12)
    assert whole.trainer.global_step == 12 and whole.finish() is None
    assert not list((tmp_path / "whole").glob("*.png")) and not (tmp_path / "whole/gates").exists()
    assert not (tmp_path / "whole/examples.md").exists()

    part = tmp_path / "part"
    train(task, settings, part, 6)
    resumed = train(task, settings, part, 12, part / "checkpoints/last.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name

    saved = torch.load(tmp_path / "whole/checkpoints/best.ckpt", weights_only=True)
    fresh = task(settings, Numbers.info)
    fresh.load_state_dict(saved["state_dict"])
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    [validated] = trainer.validate(fresh, Numbers(), verbose=False)
    [tested] = trainer.test(fresh, Numbers(), verbose=False)
    x, y = Numbers().rows.tensors
    with torch.no_grad():
        expected = (fresh(x) - y).square().mean().item()
    assert validated["val/loss"] == pytest.approx(expected, abs=1e-6)
    assert tested["test/loss"] == pytest.approx(saved["metrics"]["val/loss"], abs=1e-6)


def test_what_it_lacks_is_refused_by_name(settings):
    model, rows = Regression(settings, Numbers.info), Rows.dense(torch.zeros(1, 4))
    assert model.text_features(rows, None) == {} and not model.writes_text
    assert model.draw_example(None) is None and model.draw_rows(rows) is None and model.targets(None) is None
    with pytest.raises(Unsupported, match=r"^model=regression has no cell to analyse$"):
        trace(model, rows)
    with pytest.raises(ValueError, match=r"^model=regression has no graph to export .*format=safetensors$"):
        build_onnx_files(model, {})
    refusals = {
        "has no answer to a text": lambda: model.respond("text", PredictConfig.model_construct()),
        "has no examples to show": lambda: model.examples(None),
        "has no ids to embed": lambda: model.embed_ids(rows.ids),
        "does not read text": lambda: model.read_text("text"),
        "has no rows of ids in its batches": lambda: model.rows_of_batch(None),
        "has no validation data to analyse": lambda: model.validation_rows(Numbers(), 1),
        "has no tokens to show": lambda: model.token_texts(rows),
    }
    for message, call in refusals.items():
        with pytest.raises(Unsupported, match=f"^model=regression {re.escape(message)}$"):
            call()
    assert list(build_safetensors_files(model, {})) == ["model.safetensors"]


def test_what_it_has_is_analysed(settings):
    model = RecurrentRegression(settings, Numbers.info).eval()
    batch = next(iter(Numbers().val_dataloader()))
    rows = model.rows_of_batch(batch)
    output, _ = model.cell(batch[0])
    torch.testing.assert_close(trace(model, rows)["h"][0, 0], output.flatten(0, 1))
