"""Classification of texts: is a review positive or negative, or which of C classes is a text of?"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lstmlab.cells.dropout import Dropout
from lstmlab.data.features import Features, position_in_text
from lstmlab.data.rows import Rows, choose_rows
from lstmlab.data.sentiment import LABELS, SentimentBatch, clean, encode_reviews
from lstmlab.data.tokenization import PAD, UNK, load_tokenizer, token_texts
from lstmlab.distributed import scale_to_global_mean
from lstmlab.models.base import Graph, Task
from lstmlab.schema import PredictConfig, TrainConfig

SHOWN = 8  # texts in the table of examples, and words that got the most attention
RUNNERS_UP = 3  # classes that `respond` names beside the most probable one
WRITTEN = 20  # classes up to which the confusion matrix has its numbers written into it


class Sentiment(Task):
    """p(class | text): word dropout → embedding → dropout → recurrent stack → pooling → dropout → logits.

    Of two classes there is one logit, that of the second; of C > 2 classes there are C.

    Pooling makes one vector (D·H) of the stack's outputs h_t at a text's own steps: `last` is the final
    state of each direction, `max` and `mean` are over t, `attention` is Σ α_t h_t with
    α = softmax_t(vᵀ tanh(W h_t + b)) (Yang et al. 2016). The loss is the cross-entropy in nats per text.
    With `class_weights=balanced` that of a text counts N / (C · N_c) times, where N_c of the N training texts
    are of its class c. With `adversarial` = ε > 0 training takes the mean of the loss and of the loss on
    embeddings x + ε g/‖g‖, where g = ∂loss/∂x of that text: the words are moved to where they hurt most
    (Miyato et al. 2017).
    """

    page = "sentiment.html"

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
        self.labels: list[str] = info.get("labels", LABELS)
        C = len(self.labels)
        self.projection = nn.Linear(size, 1 if C == 2 else C)
        self.weights: Tensor | None
        weights = None
        if model.class_weights == "balanced":
            counts = torch.tensor(info["label_counts"], dtype=torch.float32)
            weights = counts.sum() / (C * counts)
        self.register_buffer("weights", weights, persistent=False)
        metrics = MetricCollection(
            {"accuracy": BinaryAccuracy(), "f1": BinaryF1Score(), "auroc": BinaryAUROC()}
            if C == 2
            else {
                "accuracy": MulticlassAccuracy(C, average="micro"),
                "macro_f1": MulticlassF1Score(C, average="macro"),
                "auroc": QuietAUROC(C),
            }
        )
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        # Of several processes each validates on all data: summed, every text would count several times
        self.confusion = MulticlassConfusionMatrix(C, sync_on_compute=False)
        self.confused: Tensor | None = None  # (C, C) of the latest validation: rows are the truth

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids (B, T) and lengths (B,) → logits (B, C), of two classes (B,); α (B, T) if there are any."""
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
        logits = self.projection(self.dropout(pooled))
        return logits.squeeze(1) if logits.size(1) == 1 else logits, weights

    def loss(self, batch: SentimentBatch, embedded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss and logits, on the vectors `embedded` (B, T, E) if they are given."""
        if embedded is None:
            logits, _ = self(batch.tokens, batch.lengths)
        else:
            logits, _ = self.classify(embedded, batch.lengths)
        logits = logits.float()
        if self.weights is None:
            return cross_entropy(logits, batch.labels), logits
        # Not torch's own weights, which would divide by those of the batch
        losses = cross_entropy(logits, batch.labels, reduction="none")
        return (losses * self.weights[batch.labels.long()]).mean(), logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits of `forward` → (B, C)."""
        if logits.dim() == 2:
            return logits.softmax(1)
        p = logits.sigmoid()
        return torch.stack([1 - p, p], 1)

    def training_step(self, batch: SentimentBatch, index: int) -> Tensor:
        embedded = self.embed_ids(batch.tokens)
        if self.adversarial:
            embedded.requires_grad_()  # it does not yet where the embedding is frozen
        loss, _ = self.loss(batch, embedded)
        if self.adversarial:
            (gradient,) = torch.autograd.grad(loss, embedded, retain_graph=True)
            worst = F.normalize(gradient.flatten(1)).view_as(gradient)  # (B, T, E), of norm 1 for each review
            loss = (loss + self.loss(batch, embedded + self.adversarial * worst)[0]) / 2
        loss = scale_to_global_mean(loss, len(batch.labels))
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def validation_step(self, batch: SentimentBatch, index: int) -> None:
        p = self.log_measures("val", self.val_metrics, batch)
        self.confusion.update(p.argmax(1), batch.labels.long())

    def on_validation_epoch_end(self) -> None:
        self.confused = self.confusion.compute()
        super().on_validation_epoch_end()

    def test_step(self, batch: SentimentBatch, index: int) -> None:
        self.log_measures("test", self.test_metrics, batch)

    def log_measures(self, part: str, metrics: MetricCollection, batch: SentimentBatch) -> Tensor:
        """Log the loss and the metrics; returns the probabilities (B, C)."""
        loss, logits = self.loss(batch)
        p = self.probabilities(logits)
        metrics.update(p[:, 1] if logits.dim() == 1 else p, batch.labels.long())
        self.log(f"{part}/loss", loss, batch_size=len(batch.labels))
        self.log_dict(metrics, prog_bar=True)
        return p

    def count_tokens(self, batch: SentimentBatch) -> Tensor:
        return batch.lengths.sum()

    def targets(self, batch: SentimentBatch) -> Tensor | None:
        return batch.labels.long() if self.weights is None else None

    def examples(self, batch: SentimentBatch) -> tuple[list[str], list[list]]:
        tokenizer, labels = load_tokenizer(self.info["tokenizer"]), self.labels
        tokens, lengths = batch.tokens[:SHOWN], batch.lengths[:SHOWN]
        p = self.probabilities(self(tokens, lengths)[0])
        shown = p[:, 1] if len(labels) == 2 else p.amax(1)
        texts = tokenizer.decode_batch([row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)])
        told = zip(texts, p.argmax(1).tolist(), shown.tolist(), batch.labels.tolist(), strict=False)
        column = f"p({labels[1]})" if len(labels) == 2 else "p(prediction)"
        return ["text", "prediction", column, "truth"], [
            [text[:500], labels[found], f"{p:.4f}", labels[int(truth)]] for text, found, p, truth in told
        ]

    def draw_example(self, batch: SentimentBatch) -> Figure | None:
        """The confusion matrix of the whole validation part."""
        return None if self.confused is None else draw_confusion(self.confused, self.labels)

    @torch.inference_mode()
    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        """The label, its probability and, with attention, the words that weighed most."""
        tokens, lengths, _ = self.read_text(text)
        logits, weights = self(tokens.to(self.device), lengths.to(self.device))
        probabilities = self.probabilities(logits)[0].tolist()
        ranked = sorted(zip(probabilities, self.labels, strict=True), reverse=True)
        (p, label), *others = ranked[: 1 + RUNNERS_UP]
        yield f"{label}, probability {p:.3f}"
        if len(self.labels) > 2:
            yield f" ({', '.join(f'{other} {p:.3f}' for p, other in others)})"
        if (tokens == UNK).all():
            yield " (the model knows none of these words)"
        if weights is not None:
            tokenizer = load_tokenizer(self.info["tokenizer"])
            top = weights[0].topk(min(SHOWN, tokens.shape[1]))
            for weight, token in zip(top.values.tolist(), tokens[0, top.indices.cpu()].tolist(), strict=True):
                yield f"\n{weight:.3f} {tokenizer.decode([token], skip_special_tokens=False) or '␣'}"

    @torch.inference_mode()
    def answer(self, texts: list[str], options: PredictConfig) -> list[dict[str, Any]]:
        """The label of each text and the probability of each class."""
        tokens, lengths = (tensor.to(self.device) for tensor in encode_reviews(self.info, texts))
        p = self.probabilities(self(tokens, lengths)[0])
        names = [f"p({label})" for label in self.labels]
        return [
            {"prediction": self.labels[best]} | dict(zip(names, row, strict=True))
            for best, row in zip(p.argmax(1).tolist(), p.tolist(), strict=True)
        ]

    # --- to analyse and export ---

    def traced_cell(self) -> nn.Module:
        return self.cell

    def read_text(self, text: str) -> Rows:
        if not (clean(text) if self.info.get("strip_markup", True) else text).strip():
            raise ValueError("text= is empty; give a text to classify")
        return Rows(*encode_reviews(self.info, [text]))

    def run(self, rows: Rows) -> Tensor:
        return self(rows.ids.to(self.device), rows.lengths)[0]

    def compute_losses(self, rows: Rows) -> Tensor:
        """One per text, (B, 1). The rows have labels."""
        assert rows.labels is not None
        logits = self.run(rows)
        return cross_entropy(logits, rows.labels.to(logits.device), reduction="none")[:, None]

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
        numbers = rows.labels.numpy().astype(int)
        shown = list(enumerate(self.labels))[1:] if len(self.labels) == 2 else list(enumerate(self.labels))
        of_classes = {
            f"the text is {name}": np.repeat((numbers == number).astype(np.float32), lengths)
            for number, name in shown[:SHOWN]
        }
        return of_classes | found

    def graphs(self) -> dict[str, Graph]:
        tokens, lengths = torch.ones(2, 5, dtype=torch.long), torch.tensor([5, 3])
        outputs = ["logits", "attention"] if self.pooling == "attention" else ["logits"]
        return {"model": Graph(self, {"tokens": (tokens, "BT"), "lengths": (lengths, "B")}, outputs)}


class QuietAUROC(MulticlassAUROC):
    """The mean over classes of one against the rest. A class that is not there is left out without a word."""

    def compute(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().compute()


def draw_confusion(counts: Tensor, labels: list[str]) -> Figure:
    """How many texts of each class (rows) were taken for which (columns): counts (C, C)."""
    C = len(labels)
    size = min(12.0, 3 + C / 2)
    figure = Figure((size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in labels]
    axes.set_xticks(range(C), names, rotation=90, parse_math=False)
    axes.set_yticks(range(C), names, parse_math=False)
    axes.set(xlabel="prediction", ylabel="truth", title="Texts of the validation part")
    for row, column in np.ndindex(C, C) if C <= WRITTEN else ():
        dark = shares[row, column] > 0.5
        number = f"{int(counts[row, column]):,}"
        axes.text(column, row, number, ha="center", va="center", color="white" if dark else "black")
    return figure


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Of two classes, logits (B,) and labels 0.0 or 1.0; of more, logits (B, C) and class numbers."""
    of = F.binary_cross_entropy_with_logits if logits.dim() == 1 else F.cross_entropy
    return of(logits, labels, reduction=reduction)
