"""Every gate and state of a trained model at every step.

A checkpoint of any backend opens with the scratch cell, the only one that can be traced:

    model = load_model(ckpt, "scratch")
    values = trace(model, model.read_text("any text"))
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lstmlab.data import build_data, change_data
from lstmlab.data.rows import Rows
from lstmlab.models.base import Task

ROWS = 64  # rows traced at once
WINDOW = 512  # steps traced at once if the state can be carried over, to bound the memory


def load_model_data(model: Task, changes: Mapping[str, Any]):
    """The data module that the model was trained with. changes: new values for keys of its `data` group."""
    module = build_data(change_data(model.config.data, changes), model.config.seed, model.info)
    module.prepare_data()
    module.setup("fit")
    return module


def load_validation_rows(model: Task, changes: Mapping[str, Any], count: int) -> tuple[Rows, str]:
    """The model's validation data, `count` steps or slightly more, or all if there are fewer.

    changes: as in `load_model_data`. Also returns a sentence for the report, which is empty unless the text
    differs from that of training: the model may then have been trained on some of it.
    """
    module = load_model_data(model, changes)
    rows = model.validation_rows(module, count)
    source = model.info.get("source")
    note = "" if module.info.get("source") == source else f" It is not the text of training, {source}."
    return rows, note


@torch.inference_mode()
def trace(model: Task, rows: Rows, names: str | None = None) -> dict[str, Tensor]:
    """i, f, g, o, c, h (GRU: r, z, n, h; RNN: h) → (L, D, N, H), one row after the other.

    model: with scratch cells, in evaluation mode. names: "ch" keeps those of c and h that the cell has; None
    keeps all. Each row starts from a zero state.

    Raises Unsupported for a task without a cell.
    """
    cell = model.traced_cell()
    T = rows.ids.size(1)
    carry = not cell.bidirectional and bool((rows.lengths == T).all())
    groups = []
    for start in range(0, len(rows.ids), ROWS):
        ids, lengths = rows.ids[start : start + ROWS], rows.lengths[start : start + ROWS]
        mask = rows.mask[start : start + ROWS]
        windows, state = [], None
        for x in model.embed_ids(ids).split(WINDOW if carry else T, 1):
            _, state, values = cell.trace(x, state, None if carry else lengths)
            windows.append({name: values[name] for name in values if names is None or name in names})
        groups.append({k: torch.cat([w[k] for w in windows], 3)[:, :, mask] for k in windows[0]})
    return {name: torch.cat([group[name] for group in groups], 2) for name in groups[0]}
