"""Batched beam search."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], tuple[Tensor, State]]


def beam_search(
    step: Step,
    state: State,
    *,
    size: int,
    length_penalty: float,
    max_length: int,
    bos: int,
    eos: int,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """The best sequence of each of B searches: tokens (B, T ≤ max_length) with EOS and padding; scores (B,).

    step: tokens (B, K) of K hypotheses per search and a state → logits (B, K, V) and the new state.
    state: tensors (·, B, ·) at the start and (·, B·K, ·) in `step`, with the K of one search side by side.

    The K = `size` most probable hypotheses survive each step. One that ends in EOS keeps its place, so the
    search narrows until all have ended or have `max_length` tokens, including EOS. K = 1 is greedy search.
    The best of the K has the highest log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, equation 14).
    BOS and padding are never proposed.
    """
    B, K = state[0].size(1), size
    device = state[0].device
    state = tuple(member.repeat_interleave(K, 1) for member in state)
    tokens = torch.full((B, K, 1), bos, device=device)
    scores = torch.full((B, K), -math.inf, device=device, dtype=torch.float32)
    scores[:, 0] = 0  # one hypothesis at first, not K equal ones
    ended = torch.zeros(B, K, dtype=torch.bool, device=device)
    lengths = torch.zeros(B, K, device=device)
    first_row = torch.arange(B, device=device)[:, None] * K  # (B, 1)

    for _ in range(max_length):
        logits, state = step(tokens[:, :, -1], state)
        V = logits.size(-1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits[:, :, [bos, pad]] = -math.inf
        # A hypothesis that has ended competes as its own continuation by padding, ahead of all others
        alive = scores.masked_fill(ended, -math.inf)
        extended = alive[:, :, None] + logits.log_softmax(-1)  # (B, K, V)
        extended[:, :, pad] = torch.where(ended, math.inf, -math.inf)
        best, chosen = extended.flatten(1).topk(K)  # (B, K) of K·V
        parent, token = chosen // V, chosen % V
        kept = best == math.inf
        scores = torch.where(kept, scores.gather(1, parent), best)
        lengths = lengths.gather(1, parent) + ~kept
        # While fewer than K hypotheses are possible, the rest have probability 0 and cannot end
        ended = kept | (token == eos) & (best > -math.inf)
        tokens = torch.cat([tokens.gather(1, parent[:, :, None].expand_as(tokens)), token[:, :, None]], 2)
        if bool(ended.all()):
            break
        rows = (first_row + parent).flatten()
        state = tuple(member.index_select(1, rows) for member in state)

    scores, best_of = (scores / ((5 + lengths) / 6) ** length_penalty).max(1)
    return tokens[torch.arange(B, device=device), best_of, 1:], scores
