"""Beam search over an invented model, whose logits depend on all tokens so far and on the search."""

import itertools
import math

import pytest
import torch

from lstmlab.models.decoding import beam_search

PAD, BOS, EOS, A, C = range(5)
V = 5
MAX_LENGTH = 4


def next_log_probabilities(search: int, prefix: tuple[int, ...]) -> torch.Tensor:
    """A random table: log p (V,) of the token after `prefix`, without PAD and BOS."""
    generator = torch.Generator().manual_seed(hash((search, *prefix)) % 2**31)
    logits = 2 * torch.randn(V, generator=generator, dtype=torch.float64)
    logits[[PAD, BOS]] = -math.inf
    return logits.log_softmax(0)


def penalised(score: float, length: int, length_penalty: float) -> float:
    return score / ((5 + length) / 6) ** length_penalty


def search(searches: list[int], size: int, length_penalty: float = 0.0) -> list[tuple[list[int], float]]:
    """`beam_search`, with the prefix as its state, so that a mistake in reordering shows."""

    def step(tokens, state):
        K = tokens.size(1)
        prefixes = torch.cat([state[0], tokens.reshape(1, -1, 1)], 2)  # (1, B·K, t)
        logits = [
            next_log_probabilities(int(b), tuple(row.tolist()))
            for b, row in zip(state[1].flatten(), prefixes[0, :, 1:], strict=True)
        ]
        return torch.stack(logits).view(-1, K, V), (prefixes, state[1])

    state = (torch.zeros(1, len(searches), 0, dtype=torch.long), torch.tensor([searches]))
    tokens, scores = beam_search(
        step,
        state,
        size=size,
        length_penalty=length_penalty,
        max_length=MAX_LENGTH,
        bos=BOS,
        eos=EOS,
        pad=PAD,
    )
    found = []
    for row, score in zip(tokens.tolist(), scores.tolist(), strict=True):
        kept = [token for token in row if token != PAD]
        assert row == kept + [PAD] * (len(row) - len(kept))
        found.append((kept, score))
    return found


def plain_beam(search: int, size: int, length_penalty: float) -> tuple[list[int], float]:
    """The same with lists: `size` hypotheses, of which those that have ended keep their place."""
    ended: list[tuple[tuple[int, ...], float]] = []
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(MAX_LENGTH):
        extended = [
            ((*prefix, token), score + next_log_probabilities(search, prefix)[token].item())
            for prefix, score in alive
            for token in (EOS, A, C)
        ]
        extended.sort(key=lambda item: -item[1])
        alive = []
        for prefix, score in extended[: size - len(ended)]:
            (ended if prefix[-1] == EOS else alive).append((prefix, score))
    best = max(ended + alive, key=lambda item: penalised(item[1], len(item[0]), length_penalty))
    return list(best[0]), penalised(best[1], len(best[0]), length_penalty)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(length_penalty):
    for number, (tokens, score) in enumerate(search(list(range(20)), 40, length_penalty)):
        scores = {}
        for length in range(1, MAX_LENGTH + 1):
            for body in itertools.product((A, C), repeat=length - 1):
                for last in (EOS,) if length < MAX_LENGTH else (EOS, A, C):
                    sequence = (*body, last)
                    total = sum(
                        next_log_probabilities(number, sequence[:t])[token].item()
                        for t, token in enumerate(sequence)
                    )
                    scores[sequence] = penalised(total, length, length_penalty)
        best = max(scores, key=lambda sequence: scores[sequence])
        assert tuple(tokens) == best
        assert score == pytest.approx(scores[best])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_narrow_beam_equals_plain_lists(size, length_penalty):
    searches = list(range(40))
    for number, (tokens, score) in zip(searches, search(searches, size, length_penalty), strict=True):
        expected, expected_score = plain_beam(number, size, length_penalty)
        assert tokens == expected and score == pytest.approx(expected_score)


def test_size_1_is_greedy():
    for number, (tokens, _) in enumerate(search(list(range(40)), 1)):
        greedy: list[int] = []
        while len(greedy) < MAX_LENGTH and EOS not in greedy:
            greedy.append(int(next_log_probabilities(number, tuple(greedy)).argmax()))
        assert tokens == greedy


def test_searches_in_a_batch_are_independent():
    together = search([7, 3, 11, 3], 3, 1.0)
    assert together == [search([number], 3, 1.0)[0] for number in (7, 3, 11, 3)]


def test_a_larger_penalty_favours_longer_sequences():
    lengths = [sum(len(tokens) for tokens, _ in search(list(range(30)), 10, p)) for p in (0.0, 1.0, 3.0)]
    assert lengths[0] < lengths[1] < lengths[2]
