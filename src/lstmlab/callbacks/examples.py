"""What a model makes of a few validation examples, beside the truth."""

import gc
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lstmlab.models.base import Unsupported
from lstmlab.tables import markdown


class Examples(L.Callback):
    """Write the task's `examples(batch)` and `draw_example(batch)` at each validation.

    The batch is the middle one, since data may come sorted by length. The table is appended to
    RUN_DIR/examples.md, the picture is RUN_DIR/examples.png, the latest one; wandb and TensorBoard keep all.
    """

    def setup(self, trainer, pl_module, stage: str) -> None:
        self.table = Path(trainer.default_root_dir) / "examples.md"

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.table.stat().st_size if self.table.exists() else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.table.exists():  # what was written after that checkpoint comes once more
            os.truncate(self.table, state_dict["bytes"])

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        if dataloader_idx == 0 and batch_idx == trainer.num_val_batches[0] // 2:
            self.batch = batch

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        try:
            columns, rows = pl_module.examples(self.batch)
        except Unsupported:
            return
        table = markdown(columns, rows)
        with self.table.open("a", encoding="utf-8") as file:
            file.write(f"## Step {step}\n\n{table}\n\n")
        figure = pl_module.draw_example(self.batch)
        if figure is not None:
            figure.savefig(self.table.with_suffix(".png"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("examples", columns, rows)
                if figure is not None:
                    logger.log_image("picture", [figure])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("examples", table, step)
                if figure is not None:
                    logger.experiment.add_figure("picture", figure, step, close=False)
        if figure is not None:
            del figure
            gc.collect()  # its parts refer to each other: Python would let 50 MB of them pile up
