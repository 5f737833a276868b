"""A language model over characters, words or subwords, trained by truncated backpropagation through time."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab import distributed
from lstmlab.cells.dropout import Dropout
from lstmlab.data.codecs import Characters, Tokens
from lstmlab.data.features import Features
from lstmlab.data.rows import Rows
from lstmlab.data.text import TextBatch
from lstmlab.models.base import Graph, Sample, Task, detach
from lstmlab.schema import PredictConfig, TrainConfig

TRANSFER = 16  # characters sampled on the device before they are fetched together


class CharLM(Task):
    """p(x_t | x_<t): embedding → dropout → recurrent stack → dropout → projection (V).

    The loss is in nats per character, with data=texts per token. With `tie_weights` the projection is the
    embedding matrix (Press & Wolf 2017), after a linear map to its size if the stack has another size. With
    `adaptive_cutoffs` it is an adaptive softmax (Grave et al. 2017), which computes the scores of a group of
    rarer tokens only where such a token comes next, or all are asked for.
    """

    options = ("length", "temperature", "top_k", "seed")
    writes_text = True
    page = "charlm.html"

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        model, hidden_size = config.model, config.cell.hidden_size
        self.codec: Characters | Tokens
        if "tokenizer" in info:
            self.codec = Tokens(info["tokenizer"], config.data.tokenizer)
        else:
            self.vocabulary: str = info["vocabulary"]
            self.codec = Characters(self.vocabulary)
        V, embedding_size = len(self.codec), model.embedding_size
        self.embedding = nn.Embedding(V, embedding_size)
        if isinstance(self.codec, Tokens):
            with torch.no_grad():
                # PyTorch's N(0, 1) is noise that rare words, which are most words, never lose
                self.embedding.weight *= 0.1
        self.cell = self.build_cell(embedding_size)
        self.dropout = Dropout(model.dropout)
        size = embedding_size if model.tie_weights else hidden_size
        self.resize = nn.Identity() if size == hidden_size else nn.Linear(hidden_size, size, bias=False)
        self.projection: Any
        if model.adaptive_cutoffs is None:
            self.projection = nn.Linear(size, V)
        else:
            if model.adaptive_cutoffs[-1] >= V:
                raise ValueError(
                    f"model.adaptive_cutoffs={list(model.adaptive_cutoffs)} must all be less than {V}, "
                    "the size of the vocabulary"
                )
            self.projection = nn.AdaptiveLogSoftmaxWithLoss(size, V, list(model.adaptive_cutoffs))
        if model.tie_weights:
            self.projection.weight = self.embedding.weight
        self.train_state: tuple[Tensor, ...] | None = None
        self.val_state: tuple[Tensor, ...] | None = None

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids))

    def read(self, inputs: Tensor, state=None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids (B, T) and the state before them → the input of the projection (B, T, S) and the new state."""
        output, state = self.cell(self.embed_ids(inputs), state)  # (B, T, H)
        return self.resize(self.dropout(output)), state

    def forward(self, inputs: Tensor, state=None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids (B, T) and the state before them → logits (B, T, V), with `adaptive_cutoffs` log p, and the new
        state."""
        hidden, state = self.read(inputs, state)
        if self.config.model.adaptive_cutoffs is None:
            return self.projection(hidden), state
        return self.projection.log_prob(hidden.flatten(0, 1)).view(*inputs.shape, -1), state

    def loss(self, batch: TextBatch, state) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, state = self.read(batch.inputs, state)
        targets = batch.targets.flatten()
        # In float32 at any precision: the perplexity is exp(loss)
        if self.config.model.adaptive_cutoffs is None:
            return F.cross_entropy(self.projection(hidden).flatten(0, 1).float(), targets), state
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.flatten(0, 1).to(self.projection.head.weight.dtype)
            return self.projection(hidden, targets).loss, state

    def training_step(self, batch: TextBatch, index: int) -> Tensor:
        # An epoch starts at the beginning of the text
        if index == 0:
            self.train_state = None
        state = self.train_state
        share = self.config.model.reset_probability
        if state is not None and share:
            keep = torch.rand(len(batch.inputs), 1, device=self.device) >= share  # (B, 1)
            state = tuple(member * keep for member in state)
        loss, state = self.loss(batch, state)
        self.train_state = detach(state)
        self.log_step({"train/loss": loss}, prog_bar=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        state = self.train_state
        checkpoint["train_state"] = state and tuple(distributed.gather_rows(s, 1) for s in state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.train_state = checkpoint["train_state"]

    def on_train_start(self) -> None:
        # A checkpoint holds the states of the streams of all processes
        if self.train_state is not None:
            self.train_state = tuple(
                member[:, distributed.rank() :: distributed.world_size()].to(self.device).contiguous()
                for member in self.train_state
            )

    def validation_step(self, batch: TextBatch, index: int, dataloader_idx: int) -> None:
        stateful = dataloader_idx == 0
        if index == 0:
            self.val_state = None
        loss, state = self.loss(batch, self.val_state if stateful else None)
        self.val_state = state
        name = "val/loss_stateful" if stateful else "val/loss_cold"
        # The mean over batches is weighted by characters or tokens
        count = batch.targets.numel()
        self.log(name, loss, prog_bar=True, batch_size=count, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        self.log_perplexity("val")
        super().on_validation_epoch_end()

    def test_step(self, batch: TextBatch, index: int) -> None:
        loss, self.val_state = self.loss(batch, self.val_state if index else None)
        self.log("test/loss_stateful", loss, batch_size=batch.targets.numel())

    def on_test_epoch_end(self) -> None:
        self.log_perplexity("test")

    def log_perplexity(self, part: str) -> None:
        loss = self.trainer.callback_metrics[f"{part}/loss_stateful"]
        self.log(f"{part}/perplexity", loss.exp())
        if isinstance(self.codec, Characters):  # a token has no fixed number of characters
            self.log(f"{part}/bits_per_character", loss / math.log(2))

    def count_tokens(self, batch: TextBatch) -> int:
        return batch.inputs.numel()

    def targets(self, batch: TextBatch) -> Tensor:
        return batch.targets

    def sample(
        self,
        prompt: str,
        length: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Continue `prompt` by `length` characters or tokens, yielded a few at a time; see `sample_ids`. A
        text of tokens may end before that.

        Raises ValueError for a prompt that is empty or holds a character outside the vocabulary; a prompt of
        tokens may be any text.
        """
        ids = self.codec.encode_prompt(prompt)
        inputs = torch.tensor([ids], device=self.device)
        yield from self.codec.continue_text(ids, self.sample_ids(inputs, length, temperature, top_k, seed))

    @torch.inference_mode()
    def sample_ids(
        self,
        inputs: Tensor,
        length: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Iterator[Tensor]:
        """Continue each row of ids (B, T) by `length` ids, yielded a few at a time: (B, at most TRANSFER).

        Temperature 0 takes the most probable id. Otherwise it is drawn from
        softmax(logits / temperature), among the `top_k` most probable ones if that is given, as
        argmax(logits + temperature · noise) with Gumbel noise, −log Exp(1) (Maddison et al. 2014).
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        state = None
        never = list(self.codec.never_drawn)
        noise = torch.empty(TRANSFER, len(inputs), len(self.codec), device=self.device)
        for start in range(0, length, TRANSFER):
            drawn = []
            noise.exponential_(generator=generator).log_().mul_(-temperature)
            noise[..., never] = -math.inf
            for noise_t in noise[: length - start]:
                logits, state = self(inputs, state)
                logits = logits[:, -1].float()  # (B, V)
                if top_k is not None and top_k < logits.size(1):
                    logits[:, never] = -math.inf
                    logits[logits < logits.topk(top_k).values[:, -1:]] = -math.inf
                inputs = (logits + noise_t).argmax(-1, keepdim=True)
                drawn.append(inputs)
            yield torch.cat(drawn, 1)

    def respond(self, text: str, options: PredictConfig) -> Iterator[str]:
        pieces = self.sample(text, **{key: getattr(options, key) for key in self.options})
        # Raises before anything is printed
        yield text + next(pieces)
        yield from pieces

    def answer(self, texts: list[str], options: PredictConfig) -> list[dict[str, Any]]:
        """What follows each text, which is drawn as by `sample`."""
        how = {key: getattr(options, key) for key in self.options}
        return [{"continuation": "".join(self.sample(text, **how))} for text in texts]

    def examples(self, batch: TextBatch) -> tuple[list[str], list[list]]:
        prompts = [self.codec.decode(row) or self.codec.first for row in batch.inputs[:3, :40].tolist()]
        return ["prompt", "sample"], [[p, "".join(self.sample(p, 80, temperature=0.8))] for p in prompts]

    def finish(self) -> Sample | None:
        """The last line of the first validation prompt, continued by 500 characters; of tokens a new text."""
        if isinstance(self.codec, Tokens):
            text = "".join(self.eval().sample("", 500, temperature=0.8))
            return Sample("A text that it writes, at temperature 0.8", text, " ".join(text.split()[:2]))
        trainer: Any = self.trainer
        _, cold = trainer.datamodule.val_dataloader()
        prompt = self.codec.decode(next(iter(cold)).inputs[0].tolist()) or self.codec.first
        last_line = prompt.rpartition("\n")[2]
        text = last_line + "".join(self.eval().sample(prompt, 500, temperature=0.8))
        title = f"How it continues held-out text that ends in {last_line[-24:]!r}, at temperature 0.8"
        return Sample(title, text, last_line[-40:] or prompt[-1:])

    # --- analysis and export ---

    def traced_cell(self) -> nn.Module:
        return self.cell

    def read_text(self, text: str) -> Rows:
        """One row. A character outside the vocabulary is UNKNOWN."""
        if not (ids := self.codec.encode(text)):
            raise ValueError("text= is empty; give at least one character to read")
        return Rows.dense(torch.tensor([ids]))

    def run(self, rows: Rows) -> Tensor:
        return self(rows.ids.to(self.device))[0]

    def compute_losses(self, rows: Rows) -> Tensor:
        """Those of the next tokens of rows of one length, (B, T − 1)."""
        logits, targets = self.run(rows)[:, :-1], rows.ids[:, 1:].to(self.device)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    def rows_of_batch(self, batch: TextBatch) -> Rows:
        return Rows.dense(batch.inputs.cpu())

    def validation_rows(self, datamodule: Any, count: int) -> Rows:
        """One row: the beginning of the validation text."""
        return Rows.dense(torch.from_numpy(datamodule.read_ids(datamodule.meta["train"], count))[None])

    def training_text(self, datamodule: Any, count: int) -> str:
        """The first `count` characters of the training text, with UNKNOWN for those without an id."""
        ids = datamodule.read_ids(0, min(count, datamodule.meta["train"]))
        return "".join(np.array(list(self.vocabulary))[ids])

    def token_texts(self, rows: Rows) -> list[str]:
        return self.codec.step_texts(rows)

    def text_features(self, rows: Rows, language: str | None) -> Features:
        """By default the features of Python source for data=stdlib, and those of English prose otherwise."""
        default = "python" if self.config.data.name == "stdlib" else "english"
        return self.codec.compute_features(rows, language or default)

    def graphs(self) -> dict[str, Graph]:
        """One graph, which takes a state and returns the new one."""
        _, state = self(torch.ones(2, 5, dtype=torch.long))
        inputs = {"tokens": (torch.ones(2, 5, dtype=torch.long), "BT")}
        inputs |= {name: (torch.zeros_like(member), "LBH") for name, member in state._asdict().items()}
        outputs = ["logits", *(f"next_{name}" for name in state._fields)]
        return {"model": Graph(lambda tokens, *members: self(tokens, members), inputs, outputs)}
