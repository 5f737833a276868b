"""The copy task (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016) and its relatives in
`data/sequence_tasks.py`: how long does a cell remember, and what can it keep track of?"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab.data.features import Features
from lstmlab.data.generated import SequenceBatch
from lstmlab.data.rows import Rows
from lstmlab.data.sequence_tasks import IGNORED, TASKS, SequenceTask
from lstmlab.models.base import Graph, Task
from lstmlab.schema import PredictConfig, TrainConfig


class CopyTask(Task):
    """p(answer_k | inputs so far), k = 1 … K: one-hot → recurrent stack → projection (answers).

    Only the last K steps count: those of the recall, or all of them (`SequenceTask.recall`). The loss is in
    nats per answer. With `cell.chrono_steps=null`, `cell.init=chrono` uses the length of a training sequence.
    """

    page = "copytask.html"

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        cell = config.cell
        self.task: SequenceTask = TASKS[info["task"]](**info["options"])
        self.steps = self.task.count_steps(info["longest"])  # of the longest training sequence
        self.cell = self.build_cell(len(self.task.tokens), chrono_steps=cell.chrono_steps or self.steps)
        self.projection = nn.Linear(cell.hidden_size * (1 + cell.bidirectional), len(self.task.answers))

    def embed_ids(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, len(self.task.tokens)).to(self.projection.weight.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (B, T) → logits (B, K, answers)."""
        output, _ = self.cell(self.embed_ids(tokens))  # (B, T, D·H)
        return self.projection(output if self.task.recall is None else output[:, -self.task.recall :])

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        logits = self(batch.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED)
        return loss, logits

    def compute_metrics(self, batch: SequenceBatch) -> dict[str, Tensor]:
        loss, logits = self.loss(batch)
        asked = batch.targets != IGNORED  # (B, K)
        right = logits.argmax(-1) == batch.targets
        return {
            "loss": loss,
            "loss_over_chance": loss / math.log(len(self.task.answers)),
            "symbol_accuracy": right.sum() / asked.sum(),
            "sequence_accuracy": (right | ~asked).all(1).float().mean(),
        }

    def training_step(self, batch: SequenceBatch, index: int) -> Tensor:
        loss, _ = self.loss(batch)
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def validation_step(self, batch: SequenceBatch, index: int) -> None:
        self.log_metrics("val", batch, prog_bar=True)

    def test_step(self, batch: SequenceBatch, index: int) -> None:
        """The name of a metric holds a size that was not trained on: test/sequence_accuracy_delay200."""
        trainer: Any = self.trainer
        self.log_metrics("test", batch, trainer.datamodule.name_size(batch.tokens.shape[1]))

    def log_metrics(self, part: str, batch: SequenceBatch, suffix: str = "", prog_bar: bool = False) -> None:
        """The means over all answers, or over all sequences."""
        answers = int((batch.targets != IGNORED).sum())
        for name, value in self.compute_metrics(batch).items():
            weight = len(batch.targets) if name == "sequence_accuracy" else answers
            shown = prog_bar and "accuracy" in name
            self.log(f"{part}/{name}{suffix}", value, prog_bar=shown, batch_size=weight)

    def count_tokens(self, batch: SequenceBatch) -> int:
        return batch.tokens.numel()

    def targets(self, batch: SequenceBatch) -> Tensor:
        return batch.targets[batch.targets != IGNORED]

    def examples(self, batch: SequenceBatch) -> tuple[list[str], list[list]]:
        answered = self(batch.tokens[:8]).argmax(-1)
        rows = zip(answered, batch.targets, strict=False)
        return ["prediction", "truth"], [[self.write(*row), self.write(row[1], row[1])] for row in rows]

    def write(self, answers: Tensor, targets: Tensor) -> str:
        """The names of answers (K,), where the targets ask for one."""
        names = [self.task.answers[i] for i in answers[targets != IGNORED].tolist()]
        return (" " if len(self.task.answers) > 10 else "").join(names)

    @torch.inference_mode()
    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        """Show the tokens of `text`, and return what the model answers."""
        tokens = self.task.parse(text, self.info["longest"])
        targets = torch.from_numpy(self.task.solve(tokens))[0]
        answers = self(torch.from_numpy(tokens).to(self.device))[0].argmax(-1).cpu()
        right, asked = int((answers == targets).sum()), int((targets != IGNORED).sum())
        yield f"{self.write(answers, targets)}\n"
        waited = f" after {self.info['longest']} steps" if self.task.unit == "delay" else ""
        yield f"{right} of {asked} symbols correct{waited}"

    # --- analysis and export ---

    def traced_cell(self) -> nn.Module:
        return self.cell

    def read_text(self, text: str) -> Rows:
        return Rows.dense(torch.from_numpy(self.task.parse(text, self.info["longest"])))

    def run(self, rows: Rows) -> Tensor:
        return self(rows.ids.to(self.device))

    def compute_losses(self, rows: Rows) -> Tensor:
        """(B, K), with NaN where no answer is asked for."""
        targets = torch.from_numpy(self.task.solve(rows.ids.numpy())).to(self.device)
        losses = F.cross_entropy(self.run(rows).transpose(1, 2), targets, reduction="none")
        return losses.masked_fill(targets == IGNORED, torch.nan)

    def rows_of_batch(self, batch: SequenceBatch) -> Rows:
        return Rows.dense(batch.tokens.cpu())

    def validation_rows(self, datamodule: Any, count: int) -> Rows:
        """Sequences as long as those of the first batch."""
        batches = [batch.tokens for batch in datamodule.val_dataloader()]
        T = batches[0].size(1)
        tokens = torch.cat([batch for batch in batches if batch.size(1) == T])
        return Rows.dense(tokens[: -(-count // T)])

    def token_texts(self, rows: Rows) -> list[str]:
        gap = " " if max(map(len, self.task.tokens)) > 1 else ""
        return rows.end_lines([self.task.tokens[i] + gap for i in rows.ids[rows.mask].tolist()])

    def text_features(self, rows: Rows, language: str | None) -> Features:
        return self.task.features(rows.ids.numpy())

    def graphs(self) -> dict[str, Graph]:
        tokens = torch.zeros(2, self.steps, dtype=torch.long)
        return {"model": Graph(self, {"tokens": (tokens, "BT")}, ["logits"])}
