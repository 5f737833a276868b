"""The copy task (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016): how long does a cell remember?"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab.data.copy_task import CopyBatch, present
from lstmlab.data.features import Features, bits_held
from lstmlab.data.rows import Rows
from lstmlab.models.base import Graph, Task
from lstmlab.schema import PredictConfig, TrainConfig


class CopyTask(Task):
    """p(symbol_k | all inputs), k = 1 … K: one-hot → recurrent stack → projection (symbols).

    Only the last K = `length` steps, the recall, count. The loss is in nats per symbol. With
    `cell.chrono_steps=null`, `cell.init=chrono` uses the length of a training sequence.
    """

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        cell = config.cell
        self.symbols, self.length = info["symbols"], info["length"]
        self.steps = 2 * self.length + info["max_delay"] + 1  # of the longest training sequence
        self.cell = self.build_cell(info["num_tokens"], chrono_steps=cell.chrono_steps or self.steps)
        self.projection = nn.Linear(cell.hidden_size * (1 + cell.bidirectional), self.symbols)

    def embed_ids(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, self.info["num_tokens"]).to(self.projection.weight.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (B, T) → logits (B, K, symbols) of the recall."""
        output, _ = self.cell(self.embed_ids(tokens))  # (B, T, D·H)
        return self.projection(output[:, -self.length :])

    def loss(self, batch: CopyBatch) -> tuple[Tensor, Tensor]:
        logits = self(batch.tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()), logits

    def compute_metrics(self, batch: CopyBatch) -> dict[str, Tensor]:
        loss, logits = self.loss(batch)
        right = logits.argmax(-1) == batch.targets  # (B, K)
        return {
            "loss": loss,
            "loss_over_chance": loss / math.log(self.symbols),
            "symbol_accuracy": right.float().mean(),
            "sequence_accuracy": right.all(1).float().mean(),
        }

    def training_step(self, batch: CopyBatch, index: int) -> Tensor:
        loss, _ = self.loss(batch)
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def validation_step(self, batch: CopyBatch, index: int) -> None:
        for name, value in self.compute_metrics(batch).items():
            self.log(f"val/{name}", value, prog_bar="accuracy" in name, batch_size=len(batch.targets))

    def test_step(self, batch: CopyBatch, index: int) -> None:
        """The name of a metric holds a delay that was not trained on: test/sequence_accuracy_delay200."""
        trainer: Any = self.trainer
        trained, tested = trainer.datamodule.delay, trainer.datamodule.test_delays
        delay = batch.tokens.shape[1] - 2 * self.length - 1
        as_trained = delay == trained or (isinstance(trained, tuple) and trained in tested)
        suffix = "" if as_trained else f"_delay{delay}"
        for name, value in self.compute_metrics(batch).items():
            self.log(f"test/{name}{suffix}", value, batch_size=len(batch.targets))

    def count_tokens(self, batch: CopyBatch) -> int:
        return batch.tokens.numel()

    def targets(self, batch: CopyBatch) -> Tensor:
        return batch.targets

    def examples(self, batch: CopyBatch) -> tuple[list[str], list[list]]:
        recalled = self(batch.tokens[:8]).argmax(-1)
        return ["prediction", "truth"], [
            [format_symbols(p, self.symbols), format_symbols(t, self.symbols)]
            for p, t in zip(recalled, batch.targets, strict=False)
        ]

    @torch.inference_mode()
    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        """Show the symbols of `text`, wait as long as in training, and return what the model recalls."""
        targets = self.read_symbols(text)
        delay = self.info["max_delay"]
        tokens = torch.from_numpy(present(targets, self.symbols, delay)).to(self.device)
        recalled = self(tokens).argmax(-1).cpu()
        right = int((recalled.numpy() == targets).sum())
        yield f"{format_symbols(recalled[0], self.symbols)}\n"
        yield f"{right} of {self.length} symbols correct after {delay} steps"

    def read_symbols(self, text: str) -> np.ndarray:
        """Symbols (1, K) from digits or, if the task has more than ten, from numbers separated by spaces.

        Raises ValueError for other symbols or another number of them.
        """
        pieces = text.split() if self.symbols > 10 else list("".join(text.split()))
        allowed = [str(symbol) for symbol in range(self.symbols)]
        how = f"{self.length} symbols of {allowed[0]} to {allowed[-1]}"
        if wrong := [piece for piece in pieces if piece not in allowed]:
            raise ValueError(f"text= holds {wrong[0]!r}, but this model remembers {how}")
        if len(pieces) != self.length:
            raise ValueError(f"text= holds {len(pieces)} symbols, but this model remembers {how}")
        return np.array([[int(piece) for piece in pieces]])

    # --- analysis and export ---

    def traced_cell(self) -> nn.Module:
        return self.cell

    def read_text(self, text: str) -> Rows:
        tokens = present(self.read_symbols(text), self.symbols, self.info["max_delay"])
        return Rows.dense(torch.from_numpy(tokens))

    def rows_of_batch(self, batch: CopyBatch) -> Rows:
        return Rows.dense(batch.tokens.cpu())

    def validation_rows(self, datamodule: Any, count: int) -> Rows:
        """Sequences with the delay of the first batch."""
        batches = [batch.tokens for batch in datamodule.val_dataloader()]
        T = batches[0].size(1)
        tokens = torch.cat([batch for batch in batches if batch.size(1) == T])
        return Rows.dense(tokens[: -(-count // T)])

    def token_texts(self, rows: Rows) -> list[str]:
        """Symbols as numbers, a blank as a dot, the marker as a question mark."""
        shown = [*map(str, range(self.symbols)), "·", "?"]
        gap = " " if self.symbols > 10 else ""
        return rows.end_lines([shown[i] + gap for i in rows.ids[rows.mask].tolist()])

    def text_features(self, rows: Rows, language: str | None) -> Features:
        return bits_held(rows.ids.numpy(), self.symbols, self.length)

    def graphs(self) -> dict[str, Graph]:
        tokens = torch.zeros(2, self.steps, dtype=torch.long)
        return {"model": Graph(self, {"tokens": (tokens, "BT")}, ["logits"])}


def format_symbols(symbols: Tensor, kinds: int) -> str:
    return ("" if kinds <= 10 else " ").join(map(str, symbols.tolist()))
