"""Every gate and state of a trained model, step by step, whatever it was trained with.

A checkpoint is opened through the scratch cell: `trace(load_model(ckpt, "scratch"), rows)`. Here `model` is
one of lstmlab's tasks.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lstmlab import data
from lstmlab.data.copy_task import present
from lstmlab.data.sentiment import clean, encode_reviews
from lstmlab.data.tokenization import load_tokenizer
from lstmlab.data.translation import encode_sources

ROWS = 64  # read side by side
WINDOW = 512  # steps traced at once, where the state can be carried on: bounds the memory


class Rows(NamedTuple):
    """Sequences as a model reads them."""

    ids: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    labels: Tensor | None = None  # (B,): of reviews, 1 positive, 0 negative

    @property
    def mask(self) -> Tensor:
        """(B, T): True within a row's length. `x[mask]` are the N steps, row after row."""
        return torch.arange(self.ids.size(1)) < self.lengths[:, None]

    def head(self, count: int) -> "Rows":
        """The first rows, `count` steps in all at most; a first row that is longer is cut."""
        keep = max(1, int((self.lengths.cumsum(0) <= count).sum()))
        lengths = self.lengths[:keep].clamp(max=count)
        labels = None if self.labels is None else self.labels[:keep]
        return Rows(self.ids[:keep, : int(lengths.max())], lengths, labels)

    def side_by_side(self, streams: int) -> "Rows":
        """One long row as `streams` rows; up to streams − 1 steps at its end are left out."""
        T = self.ids.size(1) // streams
        return Rows(self.ids[:, : streams * T].view(streams, T), torch.full((streams,), T))


def read(model: Any, text: str) -> Rows:
    """A text as the model reads it; for seq2seq, a sentence a line. Raises ValueError if it can't be read."""
    name = model.config["model"]["name"]
    if not clean(text).strip():
        raise ValueError("text= is empty")
    if name == "sentiment":
        return Rows(*encode_reviews(model.info, [text]))
    if name == "seq2seq":
        return Rows(*encode_sources(model.info, [line for line in text.splitlines() if line.strip()]))
    if name == "copytask":
        ids = torch.from_numpy(present(model.read(text), model.symbols, model.info["max_delay"]))
    else:
        known = {character: i for i, character in enumerate(model.info["vocabulary"])}
        ids = torch.tensor([[known.get(character, 0) for character in text]])
    return Rows(ids, torch.tensor([ids.size(1)]))


def open_data(model: Any, given: dict) -> Any:
    """The data module that the model was trained with; given: keys of the `data` group changed, as `path`."""
    module = data.build(model.config["data"] | given, model.config["seed"], model.info)
    module.prepare_data()
    module.setup("fit")
    return module


def training_text(model: Any, given: dict, count: int) -> str:
    """The first `count` characters that a language model was trained on; UNKNOWN what it has no id for."""
    module = open_data(model, given)
    ids = np.fromfile(module.encoded, module.meta["dtype"], count=min(count, module.meta["train"]))
    return "".join(np.array(list(model.vocabulary))[ids])


def validation(model: Any, given: dict, count: int) -> tuple[Rows, str]:
    """The model's own validation data, `count` steps or somewhat more, or all if there are fewer.

    given: as in `open_data`. A text is one row; sequences come in a fixed random order. Beside them a
    sentence, if the text is not the one that the model was cut off from: some of it may then have been
    trained on.
    """
    name = model.config["model"]["name"]
    if name == "charlm":
        given = given | {"max_val_chars": max(count, 257)}
    module = open_data(model, given)
    if name == "charlm":
        ids = torch.from_numpy(module.val_sets[1].tokens.astype(np.int64))[None]
        known = model.info["source"]
        note = "" if module.info["source"] == known else f" It is not the text trained with: {known}."
        return Rows(ids, torch.tensor([ids.size(1)])), note
    if name == "copytask":
        batches = [batch.tokens for batch in module.val_dataloader()]
        T = batches[0].size(1)
        ids = torch.cat([batch for batch in batches if batch.size(1) == T])[: -(-count // T)]  # one delay
        return Rows(ids, torch.full((len(ids),), T)), ""
    dataset = module.datasets["val"]
    lengths = dataset.source.lengths if name == "seq2seq" else dataset.lengths
    order = np.random.default_rng(0).permutation(len(dataset))
    batch = dataset[order[: 1 + np.searchsorted(lengths[order].cumsum(), count)]]
    return Rows(*(batch[:2] if name == "seq2seq" else batch)), ""


def of_batch(model: Any, batch: Any) -> Rows:
    """The sequences of a training or validation batch; of the language model, its windows."""
    ids = batch[0].cpu()  # (B, T)
    if model.config["model"]["name"] in ("sentiment", "seq2seq"):
        return Rows(ids, batch[1].cpu())
    return Rows(ids, torch.full((len(ids),), ids.size(1)))


def tokens(model: Any, rows: Rows) -> list[str]:
    """The N steps' tokens as text: joined they can be read, a row a line."""
    name, steps = model.config["model"]["name"], rows.ids[rows.mask].tolist()
    if name == "charlm":
        return [model.info["vocabulary"][i] for i in steps]
    if name == "copytask":
        kinds = model.info["symbols"]
        shown = [*map(str, range(kinds)), "·", "?"]
        pieces = [shown[i] + (" " if kinds > 10 else "") for i in steps]
    else:
        tokenizer = load_tokenizer(model.info["tokenizer"])
        gap = "" if model.config["data"]["tokenizer"] == "char" else " "
        pieces = [tokenizer.decode([i], skip_special_tokens=False) + gap for i in steps]
    for end in rows.lengths.cumsum(0).tolist():
        pieces[end - 1] += "\n"
    return pieces


def stack(model: Any) -> Any:
    """The recurrent part that reads the text: of seq2seq, the encoder."""
    return model.encoder if model.config["model"]["name"] == "seq2seq" else model.cell


def embed(model: Any, ids: Tensor) -> Tensor:
    """Ids (B, T) → what `stack` sees of them (B, T, I)."""
    name = model.config["model"]["name"]
    if name == "copytask":
        return F.one_hot(ids, model.info["num_tokens"]).to(model.projection.weight.dtype)
    return model.embed(model.source_embedding, ids) if name == "seq2seq" else model.embedding(ids)


@torch.inference_mode()
def trace(model: Any, rows: Rows, names: str | None = None) -> dict[str, Tensor]:
    """i, f, g, o, c, h (GRU: r, z, n, h; RNN: h) → (L, D, N, H), the rows one after the other.

    model: with scratch cells, in evaluation mode. names: "ch" keeps c and h alone; None: all.
    Each row starts from a zero state.
    """
    cell = stack(model)
    T = rows.ids.size(1)
    carry = not cell.bidirectional and bool((rows.lengths == T).all())
    groups = []
    for start in range(0, len(rows.ids), ROWS):
        ids, lengths = rows.ids[start : start + ROWS], rows.lengths[start : start + ROWS]
        mask = rows.mask[start : start + ROWS]
        windows, state = [], None
        for x in embed(model, ids).split(WINDOW if carry else T, 1):
            _, state, values = cell.trace(x, state, None if carry else lengths)
            windows.append({name: values[name] for name in names or values})
        groups.append({k: torch.cat([w[k] for w in windows], 3)[:, :, mask] for k in windows[0]})
    return {name: torch.cat([group[name] for group in groups], 2) for name in groups[0]}
