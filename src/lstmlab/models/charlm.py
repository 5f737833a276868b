"""A character language model trained by truncated backpropagation through time."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab import distributed
from lstmlab.cells.dropout import Dropout
from lstmlab.data import features
from lstmlab.data.rows import Rows
from lstmlab.data.text import TextBatch
from lstmlab.models.base import Graph, Sample, Task, detach
from lstmlab.schema import PredictConfig, TrainConfig

TRANSFER = 16  # characters sampled on the device before they are fetched together


class CharLM(Task):
    """p(x_t | x_<t): embedding → dropout → recurrent stack → dropout → projection (V).

    The loss is in nats per character. With `tie_weights` the projection is the embedding matrix (Press & Wolf
    2017), after a linear map to its size if the stack has another size.
    """

    options = ("length", "temperature", "top_k", "seed")
    writes_text = True

    def __init__(self, config: TrainConfig, info: dict):
        super().__init__(config, info)
        model, hidden_size = config.model, config.cell.hidden_size
        self.vocabulary: str = info["vocabulary"]
        embedding_size = model.embedding_size
        self.embedding = nn.Embedding(len(self.vocabulary), embedding_size)
        self.cell = self.build_cell(embedding_size)
        self.dropout = Dropout(model.dropout)
        size = embedding_size if model.tie_weights else hidden_size
        self.resize = nn.Identity() if size == hidden_size else nn.Linear(hidden_size, size, bias=False)
        self.projection = nn.Linear(size, len(self.vocabulary))
        if model.tie_weights:
            self.projection.weight = self.embedding.weight
        self.train_state: tuple[Tensor, ...] | None = None
        self.val_state: tuple[Tensor, ...] | None = None

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids))

    def forward(self, inputs: Tensor, state=None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids (B, T) and the state before them → logits (B, T, V) and the new state."""
        output, state = self.cell(self.embed_ids(inputs), state)  # (B, T, H)
        return self.projection(self.resize(self.dropout(output))), state

    def loss(self, batch: TextBatch, state) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, state = self(batch.inputs, state)
        # In float32 at any precision: the perplexity is exp(loss)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()), state

    def training_step(self, batch: TextBatch, index: int) -> Tensor:
        # An epoch starts at the beginning of the text
        if index == 0:
            self.train_state = None
        loss, state = self.loss(batch, self.train_state)
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
        # The mean over batches is weighted by characters
        count = batch.targets.numel()
        self.log(name, loss, prog_bar=True, batch_size=count, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["val/loss_stateful"]
        self.log_dict({"val/perplexity": loss.exp(), "val/bits_per_character": loss / math.log(2)})
        super().on_validation_epoch_end()

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
        """Continue `prompt` by `length` characters, yielded a few at a time; see `sample_ids`.

        Raises ValueError for a prompt that is empty or holds a character outside the vocabulary.
        """
        ids = {character: i for i, character in enumerate(self.vocabulary) if i > 0}
        if unknown := sorted(set(prompt) - ids.keys()):
            known = "".join(ids)
            raise ValueError(f"text= holds {unknown[0]!r}, not in the model's vocabulary: {known!r}")
        if not prompt:
            raise ValueError("text= is empty; give at least one character to start from")
        inputs = torch.tensor([[ids[c] for c in prompt]], device=self.device)
        for block in self.sample_ids(inputs, length, temperature, top_k, seed):
            yield self.decode(block[0])

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

        Temperature 0 takes the most probable character. Otherwise it is drawn from
        softmax(logits / temperature), among the `top_k` most probable ones if that is given, as
        argmax(logits + temperature · noise) with Gumbel noise, −log Exp(1) (Maddison et al. 2014).
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        state = None
        noise = torch.empty(TRANSFER, len(inputs), len(self.vocabulary), device=self.device)
        for start in range(0, length, TRANSFER):
            drawn = []
            noise.exponential_(generator=generator).log_().mul_(-temperature)
            noise[..., 0] = -math.inf  # UNKNOWN is never drawn
            for noise_t in noise[: length - start]:
                logits, state = self(inputs, state)
                logits = logits[:, -1].float()  # (B, V)
                if top_k is not None and top_k < logits.size(1):
                    logits[:, 0] = -math.inf
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
        prompts = [self.decode(row) or self.vocabulary[1] for row in batch.inputs[:3, :40]]
        return ["prompt", "sample"], [[p, "".join(self.sample(p, 80, temperature=0.8))] for p in prompts]

    def finish(self) -> Sample | None:
        """The last line of the first validation prompt, continued by 500 characters."""
        trainer: Any = self.trainer
        _, cold = trainer.datamodule.val_dataloader()
        prompt = self.decode(next(iter(cold)).inputs[0]) or self.vocabulary[1]
        last_line = prompt.rpartition("\n")[2]
        text = last_line + "".join(self.eval().sample(prompt, 500, temperature=0.8))
        title = f"How it continues held-out text that ends in {last_line[-24:]!r}, at temperature 0.8"
        return Sample(title, text, last_line[-40:] or prompt[-1:])

    def decode(self, ids: Tensor) -> str:
        """The characters of ids (T,), without UNKNOWN."""
        return "".join(self.vocabulary[i] for i in ids.tolist() if i > 0)

    # --- analysis and export ---

    def traced_cell(self) -> nn.Module:
        return self.cell

    def read_text(self, text: str) -> Rows:
        """One row. A character outside the vocabulary is UNKNOWN."""
        if not text:
            raise ValueError("text= is empty; give at least one character to read")
        known = {character: i for i, character in enumerate(self.vocabulary)}
        return Rows.dense(torch.tensor([[known.get(character, 0) for character in text]]))

    def run(self, rows: Rows) -> Tensor:
        return self(rows.ids.to(self.device))[0]

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
        return [self.vocabulary[i] for i in rows.ids[rows.mask].tolist()]

    def text_features(self, rows: Rows, language: str | None) -> features.Features:
        """By default the features of Python source for data=stdlib, and those of English prose otherwise."""
        default = "python" if self.config.data.name == "stdlib" else "english"
        compute = features.python if (language or default) == "python" else features.english
        return compute("".join(self.token_texts(rows)))

    def graphs(self) -> dict[str, Graph]:
        """One graph, which takes a state and returns the new one."""
        _, state = self(torch.ones(2, 5, dtype=torch.long))
        inputs = {"tokens": (torch.ones(2, 5, dtype=torch.long), "BT")}
        inputs |= {name: (torch.zeros_like(member), "LBH") for name, member in state._asdict().items()}
        outputs = ["logits", *(f"next_{name}" for name in state._fields)]
        return {"model": Graph(lambda tokens, *members: self(tokens, members), inputs, outputs)}
