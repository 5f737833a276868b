"""A character language model trained by truncated backpropagation through time."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab import distributed
from lstmlab.cells.dropout import Dropout
from lstmlab.data.text import TextBatch
from lstmlab.models.base import Task, detach

TRANSFER = 16  # characters sampled on the device before they are fetched from it together


class CharLM(Task):
    """p(x_t | x_<t): embedding → dropout → recurrent stack → dropout → projection (V).

    Loss in nats a character. With `tie_weights` the projection is the embedding's matrix, after a
    linear map to its size where that differs from the stack's (Press & Wolf 2017).
    """

    options = ("length", "temperature", "top_k", "seed")

    def __init__(self, config: dict, info: dict):
        super().__init__(config, info)
        model, hidden_size = config["model"], config["cell"]["hidden_size"]
        self.vocabulary: str = info["vocabulary"]
        embedding_size = model["embedding_size"]
        self.embedding = nn.Embedding(len(self.vocabulary), embedding_size)
        self.cell = self.build_cell(embedding_size)
        self.dropout = Dropout(model["dropout"])
        features = embedding_size if model["tie_weights"] else hidden_size
        self.resize = (
            nn.Identity() if features == hidden_size else nn.Linear(hidden_size, features, bias=False)
        )
        self.projection = nn.Linear(features, len(self.vocabulary))
        if model["tie_weights"]:
            self.projection.weight = self.embedding.weight
        self.train_state: tuple[Tensor, ...] | None = None
        self.val_state: tuple[Tensor, ...] | None = None

    def forward(self, inputs: Tensor, state=None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids (B, T) and the state that the stack left before them → logits (B, T, V) and the new state."""
        output, state = self.cell(self.dropout(self.embedding(inputs)), state)  # (B, T, H)
        return self.projection(self.resize(self.dropout(output))), state

    def loss(self, batch: TextBatch, state) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, state = self(batch.inputs, state)
        # In float32, whatever the precision of the matrices: exp(loss) is reported
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()), state

    def training_step(self, batch: TextBatch, index: int) -> Tensor:
        if index == 0:  # an epoch begins at the start of the text
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
        if self.train_state is not None:  # that of a checkpoint
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
        count = batch.targets.numel()  # the mean is over characters
        self.log(name, loss, prog_bar=True, batch_size=count, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        loss = self.trainer.callback_metrics["val/loss_stateful"]
        self.log_dict({"val/perplexity": loss.exp(), "val/bits_per_character": loss / math.log(2)})

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
        """Continue `prompt` by `length` characters, yielded a few at a time.

        As `sample_ids` draws them. Raises ValueError for a prompt that is empty or holds a character that
        the model never saw.
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
        """Continue each row of ids (B, T) by `length`, yielded a few at a time: (B, at most TRANSFER).

        At temperature 0 the most probable character is taken; otherwise one is drawn from
        softmax(logits / temperature), over the `top_k` most probable if that is given. It is drawn as
        argmax(logits + temperature · noise), the noise being Gumbel's, −log Exp(1) (Maddison et al. 2014).
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        state = None
        noise = torch.empty(TRANSFER, len(inputs), len(self.vocabulary), device=self.device)
        for start in range(0, length, TRANSFER):
            drawn = []
            noise.exponential_(generator=generator).log_().mul_(-temperature)
            noise[..., 0] = -math.inf  # UNKNOWN
            for noise_t in noise[: length - start]:
                logits, state = self(inputs, state)
                logits = logits[:, -1].float()  # (B, V)
                if top_k is not None and top_k < logits.size(1):
                    logits[:, 0] = -math.inf
                    logits[logits < logits.topk(top_k).values[:, -1:]] = -math.inf
                inputs = (logits + noise_t).argmax(-1, keepdim=True)
                drawn.append(inputs)
            yield torch.cat(drawn, 1)

    def respond(self, text: str, options: dict) -> Iterator[str]:
        yield text
        yield from self.sample(text, **{key: options[key] for key in self.options})

    def examples(self, batch: TextBatch) -> tuple[list[str], list[list]]:
        prompts = [self.decode(row) or self.vocabulary[1] for row in batch.inputs[:3, :40]]
        return ["prompt", "sample"], [[p, "".join(self.sample(p, 80, temperature=0.8))] for p in prompts]

    def finish(self) -> str:
        """500 characters that go on from the beginning of the validation text."""
        trainer: Any = self.trainer
        _, cold = trainer.datamodule.val_dataloader()
        prompt = self.decode(next(iter(cold)).inputs[0]) or self.vocabulary[1]
        last_line = prompt.rpartition("\n")[2]
        return last_line + "".join(self.eval().sample(prompt, 500, temperature=0.8))

    def decode(self, ids: Tensor) -> str:
        """The characters of ids (T,), without those that the model never saw."""
        return "".join(self.vocabulary[i] for i in ids.tolist() if i > 0)
