"""Sampling from a character model, against a plain loop around nn.LSTM."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lstmlab.benchmarks.timing import Section, TimingRow, time_in_turn
from lstmlab.models.charlm import CharLM
from lstmlab.schema import TrainConfig

PROMPT = "the "
VOCABULARY = "\0" + "".join(map(chr, range(32, 127)))  # the first stands for unknown characters


class PlainModel(nn.Module):
    """`logits, state = model(x, state)` around nn.LSTM, with the weights of a CharLM."""

    def __init__(self, model: CharLM):
        super().__init__()
        cell = model.config.cell
        self.embedding, self.projection = model.embedding, model.projection
        self.lstm = nn.LSTM(
            model.embedding.embedding_dim, cell.hidden_size, cell.num_layers, batch_first=True
        )
        self.lstm.load_state_dict(model.cell.state_dict())

    def forward(self, x: Tensor, state=None):
        output, state = self.lstm(self.embedding(x), state)
        return self.projection(output), state

    @torch.no_grad()
    def sample(self, length: int, greedy: bool = False) -> str:
        ids = [VOCABULARY.index(character) for character in PROMPT]
        x, state, text = torch.tensor([ids]), None, ""
        for _ in range(length):
            logits, state = self(x, state)
            logits[:, -1, 0] = -torch.inf
            p = logits[0, -1].softmax(-1)
            index = int(p.argmax() if greedy else torch.multinomial(p, 1).item())
            text += VOCABULARY[index]
            x = torch.tensor([[index]])
        return text


def measure_sampling(config: TrainConfig, rounds: int, length: int = 2000) -> Section:
    """Time CharLM.sample on each backend against PlainModel. Raises RuntimeError if greedy texts differ."""
    torch.manual_seed(config.seed)
    models: dict[str, CharLM] = {}
    for backend in ("fused", "torch", "scratch"):
        settings = config.replace({"cell.backend": backend})
        models[backend] = CharLM(settings, {"vocabulary": VOCABULARY}).eval()
        models[backend].load_state_dict(models["fused"].state_dict())
    plain = PlainModel(models["fused"]).eval()
    expected = plain.sample(200, greedy=True)
    for backend, model in models.items():
        if (text := sample_text(model, 200, temperature=0)) != expected:
            raise RuntimeError(
                f"not timed: cell={backend} samples {text!r}, but a loop around nn.LSTM samples {expected!r}"
            )

    contenders: dict[str, Callable[[], object]] = {"a loop around nn.LSTM": lambda: plain.sample(length)}
    for backend, model in models.items():
        contenders[f"cell={backend}"] = partial(sample_text, model, length)
    medians = time_in_turn(contenders, rounds)
    rates = {name: length / (ms / 1e3) for name, ms in medians.items()}
    cell = config.cell
    size = f"{length:,} characters, {cell.num_layers} × {cell.hidden_size}"
    return Section("Sampling", "cell=fused", [TimingRow(size, rates)], unit="characters/s")


def sample_text(model: CharLM, length: int, temperature: float = 1.0) -> str:
    return "".join(model.sample(PROMPT, length, temperature))
