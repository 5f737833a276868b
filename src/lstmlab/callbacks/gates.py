"""The gates of some units on one text, at each validation: how they come to open and to close."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from lstmlab.analysis.gates import SIGMOIDS
from lstmlab.analysis.traces import trace
from lstmlab.data.rows import Rows
from lstmlab.models.base import Unsupported

PIXEL = 9  # the side of one value in the picture, and the height of a character
WORD = 12  # characters of a token that the picture shows


class Gates(L.Callback):
    """Trace the stack on the first `steps` steps of one validation row, the same at each validation.

    RUN_DIR/gates/step_N.npz holds the `tokens` (T,), the numbers of the `units` (U,), spread evenly over the
    layer, and i, f, g, o, c, h (GRU: r, z, n, h; RNN: h), each (L, D, T, U). The picture shows the last layer
    forwards: RUN_DIR/gates.png is the latest one, wandb and TensorBoard keep all.
    """

    def __init__(self, units: int, steps: int):
        self.units, self.steps = units, steps
        self.rows: Rows | None = None

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        # the middle one, since data may come sorted by length
        if self.rows is None and dataloader_idx == 0 and batch_idx == trainer.num_val_batches[0] // 2:
            try:
                rows = pl_module.rows_of_batch(batch)
                pl_module.token_texts(rows)
                pl_module.traced_cell()
            except Unsupported:
                return
            self.rows = Rows(rows.ids[:1], rows.lengths[:1]).head(self.steps)
            cell = pl_module.config["cell"] | {"backend": "scratch", "recompute": False}
            with torch.random.fork_rng():  # the run's own numbers go on as they would
                self.twin = type(pl_module)(pl_module.config | {"cell": cell}, pl_module.info).eval()

    def on_validation_end(self, trainer, pl_module) -> None:
        if self.rows is None or not trainer.is_global_zero:
            return
        self.twin.load_state_dict(pl_module.state_dict())
        traces = trace(self.twin, self.rows)
        size = next(iter(traces.values())).size(-1)
        units = np.linspace(0, size - 1, min(self.units, size)).astype(int)
        values = {name: value[..., units].numpy() for name, value in traces.items()}
        read = self.twin.token_texts(self.rows)
        arrays: dict[str, Any] = {"tokens": read, "units": units, **values}
        step, folder = trainer.global_step, Path(trainer.default_root_dir)
        (folder / "gates").mkdir(exist_ok=True)
        np.savez(folder / f"gates/step_{step}.npz", **arrays)
        image = picture({name: value[-1, 0].T for name, value in values.items()}, read)
        image.save(folder / "gates.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("gates", [image], caption=["".join(read)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("gates", np.asarray(image), step, dataformats="HWC")


def picture(values: dict[str, np.ndarray], read: list[str]) -> Image.Image:
    """Values (U, T) by name, a block each, under the tokens.

    What lies between 0 and 1 runs from dark to light; what has a sign is blue below 0 and red above, c up to
    the value that 1 % exceed.
    """
    marks = {" ": "␣", "\n": "⏎", "\t": "→"}
    labels = [marks.get(token, token.strip())[:WORD] for token in read]
    words = max(map(len, labels)) > 1
    font = ImageFont.truetype(findfont("DejaVu Sans Mono"), PIXEL)
    width, top = len(read) * PIXEL, PIXEL * (WORD * 2 // 3 if words else 2)
    strip = Image.new("RGB", (top, width) if words else (width, top), "white")
    for t, label in enumerate(labels):
        ImageDraw.Draw(strip).text((0, t * PIXEL) if words else (t * PIXEL, 0), label, "black", font)
    if words:
        strip = strip.rotate(90, expand=True)  # they read upwards

    units = len(next(iter(values.values())))
    image = Image.new("RGB", (width + 2 * PIXEL, top + len(values) * (units + 1) * PIXEL), "white")
    image.paste(strip, (2 * PIXEL, 0))
    for k, (name, value) in enumerate(values.items()):
        y = top + k * (units + 1) * PIXEL
        limit = max(1.0, float(np.quantile(np.abs(value), 0.99))) if name == "c" else 1.0
        sigmoid = name in SIGMOIDS
        colours = colormaps["viridis"](value) if sigmoid else colormaps["RdBu_r"](value / limit / 2 + 0.5)
        block = Image.fromarray((colours[..., :3] * 255).astype(np.uint8))
        image.paste(block.resize((width, units * PIXEL), Image.Resampling.NEAREST), (2 * PIXEL, y))
        ImageDraw.Draw(image).text((0, y), name, "black", font)
    return image
