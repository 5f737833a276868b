"""Sentiment: is a review positive or negative?"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score

from lstmlab.cells.dropout import Dropout
from lstmlab.data.features import Features, position_in_text
from lstmlab.data.rows import Rows, choose_rows
from lstmlab.data.sentiment import SentimentBatch, clean, encode_reviews
from lstmlab.data.tokenization import PAD, UNK, load_tokenizer, token_texts
from lstmlab.distributed import scale_to_global_mean
from lstmlab.models.base import Graph, Task
from lstmlab.schema import PredictConfig, TrainConfig

SHOWN = 8  # reviews in the table of examples, and words that got the most attention


class Sentiment(Task):
    """p(positive | review): word dropout → embedding → dropout → recurrent stack → pooling → dropout → logit.

    Pooling makes one vector (D·H) of the stack's outputs h_t at a review's own steps: `last` is the final
    state of each direction, `max` and `mean` are over t, `attention` is Σ α_t h_t with
    α = softmax_t(vᵀ tanh(W h_t + b)) (Yang et al. 2016). The loss is the binary cross-entropy in nats per
    review. With `adversarial` = ε > 0 training takes the mean of that loss and of the loss on embeddings
    x + ε g/‖g‖, where g = ∂loss/∂x of that review: the words are moved to where they hurt most
    (Miyato et al. 2017).
    """

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        model, cell = config.model, config.cell
        self.embedding = nn.Embedding(info["vocab_size"], model.embedding_size, padding_idx=PAD)
        with torch.no_grad():
            # PyTorch's N(0, 1) is noise that rare words, which are most words, never lose
            self.embedding.weight *= 0.1
        self.cell = self.build_cell(model.embedding_size)
        self.dropout = Dropout(model.dropout)
        self.word_dropout, self.adversarial = model.word_dropout, model.adversarial
        self.directions = 1 + cell.bidirectional
        size = cell.hidden_size * self.directions
        self.pooling = model.pooling
        if self.pooling == "attention":
            self.score = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
        self.projection = nn.Linear(size, 1)
        metrics = MetricCollection(
            {"accuracy": BinaryAccuracy(), "f1": BinaryF1Score(), "auroc": BinaryAUROC()}
        )
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids (B, T) and lengths (B,) → logits (B,) of `positive`, and α (B, T) if there is attention."""
        return self.classify(self.embed_ids(tokens), lengths)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Ids (B, T) → vectors (B, T, E); those of dropped words are 0."""
        if self.training and self.word_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.word_dropout
            ids = ids.masked_fill(dropped, PAD)  # the vector of PAD is 0
        return self.embedding(ids)

    def classify(self, embedded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, T, E) and lengths (B,) → what `forward` returns."""
        output, state = self.cell(self.dropout(embedded), lengths=lengths)  # (B, T, D·H)
        padding = torch.arange(embedded.shape[1], device=embedded.device) >= lengths[:, None]  # (B, T)
        weights = None
        if self.pooling == "last":
            pooled = state.h[-self.directions :].transpose(0, 1).flatten(1)  # (D, B, H) → (B, D·H)
        elif self.pooling == "max":
            pooled = output.masked_fill(padding[:, :, None], -torch.inf).amax(1)
        elif self.pooling == "mean":
            pooled = output.sum(1) / lengths[:, None]  # the output is 0 on padding
        else:
            scores = self.score(output).squeeze(2).masked_fill(padding, -torch.inf)
            weights = scores.softmax(1)
            pooled = torch.einsum("bt,bth->bh", weights, output)
        return self.projection(self.dropout(pooled)).squeeze(1), weights

    def loss(self, batch: SentimentBatch, embedded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss and logits (B,), on the vectors `embedded` (B, T, E) if they are given."""
        embedded = self.embed_ids(batch.tokens) if embedded is None else embedded
        logits, _ = self.classify(embedded, batch.lengths)
        logits = logits.float()
        return F.binary_cross_entropy_with_logits(logits, batch.labels), logits

    def training_step(self, batch: SentimentBatch, index: int) -> Tensor:
        embedded = self.embed_ids(batch.tokens)
        loss, _ = self.loss(batch, embedded)
        if self.adversarial:
            (gradient,) = torch.autograd.grad(loss, embedded, retain_graph=True)
            worst = F.normalize(gradient.flatten(1)).view_as(gradient)  # (B, T, E), of norm 1 for each review
            loss = (loss + self.loss(batch, embedded + self.adversarial * worst)[0]) / 2
        loss = scale_to_global_mean(loss, len(batch.labels))
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def validation_step(self, batch: SentimentBatch, index: int) -> None:
        self.log_measures("val", self.val_metrics, batch)

    def test_step(self, batch: SentimentBatch, index: int) -> None:
        self.log_measures("test", self.test_metrics, batch)

    def log_measures(self, part: str, metrics: MetricCollection, batch: SentimentBatch) -> None:
        loss, logits = self.loss(batch)
        metrics.update(logits.sigmoid(), batch.labels.long())
        self.log(f"{part}/loss", loss, batch_size=len(batch.labels))
        self.log_dict(metrics, prog_bar=True)

    def count_tokens(self, batch: SentimentBatch) -> Tensor:
        return batch.lengths.sum()

    def targets(self, batch: SentimentBatch) -> Tensor:
        return batch.labels.long()

    def examples(self, batch: SentimentBatch) -> tuple[list[str], list[list]]:
        tokenizer, labels = load_tokenizer(self.info["tokenizer"]), self.info["labels"]
        tokens, lengths = batch.tokens[:SHOWN], batch.lengths[:SHOWN]
        logits, _ = self(tokens, lengths)
        texts = tokenizer.decode_batch([row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)])
        return ["review", "prediction", "p(positive)", "truth"], [
            [text[:500], labels[p > 0.5], f"{p:.4f}", labels[int(truth)]]
            for text, p, truth in zip(texts, logits.sigmoid().tolist(), batch.labels.tolist(), strict=False)
        ]

    @torch.inference_mode()
    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        """The label, its probability and, with attention, the words that weighed most."""
        tokens, lengths, _ = self.read_text(text)
        logits, weights = self(tokens.to(self.device), lengths.to(self.device))
        p = logits.sigmoid().item()
        yield f"{self.info['labels'][p > 0.5]}, probability {max(p, 1 - p):.3f}"
        if (tokens == UNK).all():
            yield " (the model knows none of these words)"
        if weights is not None:
            tokenizer = load_tokenizer(self.info["tokenizer"])
            top = weights[0].topk(min(SHOWN, tokens.shape[1]))
            for weight, token in zip(top.values.tolist(), tokens[0, top.indices.cpu()].tolist(), strict=True):
                yield f"\n{weight:.3f} {tokenizer.decode([token], skip_special_tokens=False) or '␣'}"

    # --- to analyse and export ---

    def traced_cell(self) -> nn.Module:
        return self.cell

    def read_text(self, text: str) -> Rows:
        if not clean(text).strip():
            raise ValueError("text= is empty; give a review")
        return Rows(*encode_reviews(self.info, [text]))

    def rows_of_batch(self, batch: SentimentBatch) -> Rows:
        return Rows(*(member.cpu() for member in batch))

    def validation_rows(self, datamodule: Any, count: int) -> Rows:
        dataset = datamodule.datasets["val"]
        return self.rows_of_batch(dataset[choose_rows(dataset.lengths, count)])

    def token_texts(self, rows: Rows) -> list[str]:
        return token_texts(rows, self.info["tokenizer"], self.config.data.tokenizer)

    def text_features(self, rows: Rows, language: str | None) -> Features:
        lengths = rows.lengths.numpy()
        found = {"position in text": position_in_text(lengths)}
        if rows.labels is None:
            return found
        return {"verdict of the review": np.repeat(rows.labels.numpy(), lengths)} | found

    def graphs(self) -> dict[str, Graph]:
        tokens, lengths = torch.ones(2, 5, dtype=torch.long), torch.tensor([5, 3])
        outputs = ["logits", "attention"] if self.pooling == "attention" else ["logits"]
        return {"model": Graph(self, {"tokens": (tokens, "BT"), "lengths": (lengths, "B")}, outputs)}
