"""Attention of a decoder over the output of an encoder: three scores, one weighted mean."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Memory(NamedTuple):
    """The output of an encoder, prepared once for all decoder steps."""

    values: Tensor  # (B, S, M): the output
    keys: Tensor  # (B, S, H): queries are scored against these
    mask: Tensor  # (B, S): True inside the source


class Attention(nn.Module):
    """α_t = softmax_s score(query_t, value_s) · context_t = Σ_s α_ts value_s

    Queries (B, T, H) are decoder steps or parallel hypotheses; values are (B, S, M), M = D·H.
    """

    # What may look at the weights (B, T, S), given the mask (B, S), and change them
    hooks: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, query_size: int, value_size: int):
        super().__init__()
        self.query_size, self.context_size = query_size, value_size

    def keys(self, values: Tensor) -> Tensor:
        """The part of the score that is the same for all queries, (B, S, M) → (B, S, H)."""
        raise NotImplementedError

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, T, H) and (B, S, H) → (B, T, S)."""
        return query @ keys.transpose(1, 2)

    def memory(self, values: Tensor, mask: Tensor) -> Memory:
        return Memory(values, self.keys(values), mask)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context (B, T, M) and weights (B, T, S), which are 0 where `memory.mask` is False."""
        scores = self.score(query, memory.keys).masked_fill(~memory.mask[:, None], -math.inf)
        weights = scores.softmax(-1)
        if self.hooks is not None:
            weights = self.hooks(weights, memory.mask)
        return weights.to(memory.values.dtype) @ memory.values, weights


class Dot(Attention):
    """score(q, v) = qᵀv (Luong et al. 2015); the two halves of a bidirectional v are added."""

    def keys(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (-1, self.query_size)).sum(-2)  # (B, S, D·H) → (B, S, H)


class General(Attention):
    """score(q, v) = qᵀ W v (Luong et al. 2015)."""

    def __init__(self, query_size: int, value_size: int):
        super().__init__(query_size, value_size)
        self.W = nn.Linear(value_size, query_size, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        return self.W(values)


class Additive(Attention):
    """score(q, v) = wᵀ tanh(W q + U v) (Bahdanau et al. 2014); slower, since it needs (B, T, S, H)."""

    def __init__(self, query_size: int, value_size: int):
        super().__init__(query_size, value_size)
        self.W = nn.Linear(query_size, query_size, bias=False)
        self.U = nn.Linear(value_size, query_size, bias=False)
        self.w = nn.Linear(query_size, 1, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        return self.U(values)

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        hidden = torch.tanh(self.W(query)[:, :, None] + keys[:, None])  # (B, T, S, H)
        return self.w(hidden).squeeze(-1)


class NoAttention(Attention):
    """An empty context (B, T, 0): the decoder only has its first state."""

    def __init__(self, query_size: int, value_size: int):
        super().__init__(query_size, 0)

    def keys(self, values: Tensor) -> Tensor:
        return values[..., :0]

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        B, T, _ = query.shape
        return query.new_zeros(B, T, 0), query.new_zeros(B, T, memory.values.size(1))


ATTENTIONS: dict[str, type[Attention]] = {
    "additive": Additive,
    "dot": Dot,
    "general": General,
    "none": NoAttention,
}
