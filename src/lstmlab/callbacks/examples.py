"""The output of the model on a few validation examples, beside the truth."""

import gc
import os
from pathlib import Path
from typing import Any

import lightning as L

from lstmlab.loggers import show
from lstmlab.models.base import Unsupported
from lstmlab.tables import markdown


class Examples(L.Callback):
    """Write the task's `examples(batch)` and `draw_example(batch)` at each validation, if it has examples.

    The batch is the middle one, since data may be sorted by length. The table is appended to
    RUN_DIR/examples.md. RUN_DIR/examples.png is the latest picture; wandb and TensorBoard keep all.
    """

    def setup(self, trainer, pl_module, stage: str) -> None:
        self.table = Path(trainer.default_root_dir) / "examples.md"

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.table.stat().st_size if self.table.exists() else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # What was written after that checkpoint will be written again
        if self.table.exists():
            os.truncate(self.table, state_dict["bytes"])

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        if dataloader_idx == 0 and batch_idx == trainer.num_val_batches[0] // 2:
            self.batch = batch

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        try:
            columns, rows = pl_module.examples(self.batch)
        except Unsupported:
            return
        with self.table.open("a", encoding="utf-8") as file:
            file.write(f"## Step {trainer.global_step}\n\n{markdown(columns, rows)}\n\n")
        show(trainer, "examples", table=(columns, rows))

        figure = pl_module.draw_example(self.batch)
        if figure is not None:
            figure.savefig(self.table.with_suffix(".png"))
            show(trainer, "picture", picture=figure)
            # Figures hold reference cycles: without a collection, 50 MB of them would pile up
            del figure
            gc.collect()
