"""The gates of some units on one text at each validation, to see how they learn to open and close."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from lstmlab.analysis.gates import SIGMOIDS, VISIBLE
from lstmlab.analysis.traces import trace
from lstmlab.data.rows import Rows
from lstmlab.loggers import show
from lstmlab.models.base import Unsupported

PIXEL = 9  # the side of one value in the picture, and the height of a character
LEFT, RIGHT = 5 * PIXEL, 6 * PIXEL  # of the blocks: numbers of units, colour scales
WORD = 12  # how many characters of a token the picture shows


class Gates(L.Callback):
    """Trace the recurrent stack on the first `steps` steps of one validation row, always the same one.

    RUN_DIR/gates/step_N.npz holds the `tokens` (T,), the numbers of the `units` (U,), spread evenly over the
    layer, and i, f, g, o, c, h (GRU: r, z, n, h; RNN: h), each (L, D, T, U). RUN_DIR/gates.png shows the last
    layer, forward direction, at the latest validation; wandb and TensorBoard keep all pictures. Does nothing
    for a task that cannot be traced.
    """

    def __init__(self, units: int, steps: int):
        self.units, self.steps = units, steps
        self.rows: Rows | None = None

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        # The middle batch, since data may be sorted by length
        if self.rows is None and dataloader_idx == 0 and batch_idx == trainer.num_val_batches[0] // 2:
            with suppress(Unsupported):
                rows = pl_module.rows_of_batch(batch)
                self.rows = Rows(rows.ids[:1], rows.lengths[:1]).head(self.steps)
                cell = pl_module.config.cell.with_backend("scratch")
                config = pl_module.config.model_copy(update={"cell": cell})
                # Building a model draws weights, but must not change the random state of the run
                with torch.random.fork_rng():
                    self.twin = type(pl_module)(config, pl_module.info).eval()

    def on_validation_end(self, trainer, pl_module) -> None:
        if self.rows is None or not trainer.is_global_zero:
            return
        self.twin.load_state_dict(pl_module.state_dict())
        try:
            traces, tokens = trace(self.twin, self.rows), self.twin.token_texts(self.rows)
        except Unsupported:
            return

        size = next(iter(traces.values())).size(-1)
        units = np.linspace(0, size - 1, min(self.units, size)).astype(int)
        values = {name: value[..., units].numpy() for name, value in traces.items()}
        arrays: dict[str, Any] = {"tokens": tokens, "units": units, **values}
        folder = Path(trainer.default_root_dir)
        (folder / "gates").mkdir(exist_ok=True)
        np.savez(folder / f"gates/step_{trainer.global_step}.npz", **arrays)

        shown = {name: value[-1, 0].T for name, value in values.items()}
        layers, directions = next(iter(values.values())).shape[:2]
        title = f"step {trainer.global_step:,}: layer {layers - 1}, the last of {layers}"
        title += ", forwards" if directions == 2 else ""
        picture = paint_gates(shown, tokens, units.tolist(), f"{title}; {len(units)} of {size} units")
        picture.save(folder / "gates.png")
        show(trainer, "gates", text="".join(tokens), picture=picture)


def paint_gates(
    values: dict[str, np.ndarray], tokens: list[str], numbers: Sequence[int], title: str
) -> Image.Image:
    """Paint values (U, T) by name, one block each, under the title and the tokens.

    The `numbers` of the units stand left of each block, and its colour scale right. Values between 0 and
    1 run from dark to light. Signed values are blue below 0 and red above; the colours end at the larger of 1
    and the absolute value that 1 % exceed. It takes 30 ms; matplotlib would take two seconds.
    """
    labels = [VISIBLE.get(token, token.strip())[:WORD] for token in tokens]
    words = max(map(len, labels)) > 1
    font = ImageFont.truetype(findfont("DejaVu Sans Mono"), PIXEL)
    width, tall = len(tokens) * PIXEL, PIXEL * (WORD * 2 // 3 if words else 2)
    strip = Image.new("RGB", (tall, width) if words else (width, tall), "white")
    for t, label in enumerate(labels):
        ImageDraw.Draw(strip).text((0, t * PIXEL) if words else (t * PIXEL, 0), label, "black", font)
    if words:
        # Words read upwards
        strip = strip.rotate(90, expand=True)

    units, top = len(numbers), 2 * PIXEL + tall
    whole = max(LEFT + width + RIGHT, PIXEL + round(font.getlength(title)))
    image = Image.new("RGB", (whole, top + len(values) * (units + 1) * PIXEL), "white")
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), title, "black", font)
    image.paste(strip, (LEFT, 2 * PIXEL))
    for k, (name, value) in enumerate(values.items()):
        y = top + k * (units + 1) * PIXEL
        limit = max(1.0, float(np.quantile(np.abs(value), 0.99)))
        low, high, colours = (0.0, 1.0, "viridis") if name in SIGMOIDS else (-limit, limit, "RdBu_r")
        scale = np.linspace(high, low, units * PIXEL)[:, None]
        for x, block, size in (
            (LEFT, value, (width, units * PIXEL)),
            (LEFT + width + PIXEL, scale, (PIXEL, units * PIXEL)),
        ):
            painted = colormaps[colours]((block - low) / (high - low))[..., :3]
            picture = Image.fromarray((painted * 255).astype(np.uint8))
            image.paste(picture.resize(size, Image.Resampling.NEAREST), (x, y))
        draw.text((0, y), name, "black", font)
        for unit, number in enumerate(numbers):
            draw.text((LEFT - 3, y + unit * PIXEL), str(number), "grey", font, anchor="ra")
        for place, end in ((y, high), (y + (units - 1) * PIXEL, low)):
            draw.text((LEFT + width + 2 * PIXEL + 3, place), f"{end:.3g}", "grey", font)
    return image
