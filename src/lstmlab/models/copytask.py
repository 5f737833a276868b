"""The copy task (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016): how far does a memory reach?"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab.data.copy_task import CopyBatch, present
from lstmlab.models.base import Task


class CopyTask(Task):
    """p(symbol_k | all that was shown), k = 1 … K: one-hot → recurrent stack → projection (symbols).

    Only the last K = `length` steps, the recall, are answered and counted. Loss in nats a symbol.
    `cell.init=chrono` takes the length of a training sequence for its `chrono_steps`, if that is null.
    """

    def __init__(self, config: dict, info: dict):
        super().__init__(config, info)
        cell = config["cell"]
        self.symbols, self.length = info["symbols"], info["length"]
        steps = 2 * self.length + info["max_delay"] + 1
        self.cell = self.build_cell(info["num_tokens"], chrono_steps=cell["chrono_steps"] or steps)
        self.projection = nn.Linear(cell["hidden_size"] * (1 + cell["bidirectional"]), self.symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (B, T) → logits (B, K, symbols) of the recall."""
        x = F.one_hot(tokens, self.info["num_tokens"]).to(self.projection.weight.dtype)
        output, _ = self.cell(x)  # (B, T, D·H)
        return self.projection(output[:, -self.length :])

    def loss(self, batch: CopyBatch) -> tuple[Tensor, Tensor]:
        logits = self(batch.tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()), logits

    def measures(self, batch: CopyBatch) -> dict[str, Tensor]:
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
        for name, value in self.measures(batch).items():
            self.log(f"val/{name}", value, prog_bar="accuracy" in name, batch_size=len(batch.targets))

    def test_step(self, batch: CopyBatch, index: int) -> None:
        """Delays other than that trained on are named: test/sequence_accuracy_delay200."""
        trainer: Any = self.trainer
        trained, tested = trainer.datamodule.delay, trainer.datamodule.test_delays
        delay = batch.tokens.shape[1] - 2 * self.length - 1
        as_trained = delay == trained or (isinstance(trained, tuple) and trained in tested)
        suffix = "" if as_trained else f"_delay{delay}"
        for name, value in self.measures(batch).items():
            self.log(f"test/{name}{suffix}", value, batch_size=len(batch.targets))

    def count_tokens(self, batch: CopyBatch) -> int:
        return batch.tokens.numel()

    def targets(self, batch: CopyBatch) -> Tensor:
        return batch.targets

    def examples(self, batch: CopyBatch) -> tuple[list[str], list[list]]:
        recalled = self(batch.tokens[:8]).argmax(-1)
        return ["prediction", "truth"], [
            [written(p, self.symbols), written(t, self.symbols)]
            for p, t in zip(recalled, batch.targets, strict=False)
        ]

    @torch.inference_mode()
    def respond(self, text: str, options: dict) -> Iterator[str]:
        """Show the symbols of `text`, wait as long as in training, and give what is recalled."""
        targets = self.read(text)
        delay = self.info["max_delay"]
        tokens = torch.from_numpy(present(targets, self.symbols, delay)).to(self.device)
        recalled = self(tokens).argmax(-1).cpu()
        right = int((recalled.numpy() == targets).sum())
        yield f"{written(recalled[0], self.symbols)}\n"
        yield f"{right} of {self.length} symbols right after {delay} steps"

    def read(self, text: str) -> np.ndarray:
        """Symbols typed as digits, or as numbers between spaces if there are more than ten → (1, K)."""
        pieces = text.split() if self.symbols > 10 else list("".join(text.split()))
        allowed = [str(symbol) for symbol in range(self.symbols)]
        how = f"{self.length} symbols of {allowed[0]} to {allowed[-1]}"
        if wrong := [piece for piece in pieces if piece not in allowed]:
            raise ValueError(f"text= holds {wrong[0]!r}, but this model remembers {how}")
        if len(pieces) != self.length:
            raise ValueError(f"text= holds {len(pieces)} symbols, but this model remembers {how}")
        return np.array([[int(piece) for piece in pieces]])


def written(symbols: Tensor, kinds: int) -> str:
    return ("" if kinds <= 10 else " ").join(map(str, symbols.tolist()))
