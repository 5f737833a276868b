import math

import pytest
import torch

from lstmlab.models.attention import ATTENTIONS

B, T, S, H, D = 3, 4, 6, 5, 2
LENGTHS = torch.tensor([6, 1, 4])


@pytest.fixture(params=["additive", "dot", "general"])
def kind(request):
    return request.param


@pytest.fixture
def attention(kind):
    torch.manual_seed(0)
    return ATTENTIONS[kind](H, D * H).double()


@pytest.fixture
def query_and_values():
    torch.manual_seed(1)
    return torch.randn(B, T, H).double(), torch.randn(B, S, D * H).double()


def attend(attention, query, values):
    return attention(query, attention.memory(values, torch.arange(S) < LENGTHS[:, None]))


def test_each_score_matches_its_formula(kind, attention, query_and_values):
    """Softmax and weighted mean as plain loops over the steps inside the source."""
    query, values = query_and_values
    weight = attention.state_dict()

    def score(q, v):
        if kind == "dot":
            return q @ v[:H] + q @ v[H:]
        if kind == "general":
            return q @ weight["W.weight"] @ v
        return weight["w.weight"][0] @ torch.tanh(weight["W.weight"] @ q + weight["U.weight"] @ v)

    context, weights = attend(attention, query, values)
    assert context.shape == (B, T, D * H) and weights.shape == (B, T, S)
    for b in range(B):
        for t in range(T):
            powers = [math.exp(score(query[b, t], values[b, s])) for s in range(LENGTHS[b])]
            expected = [power / sum(powers) for power in powers]
            torch.testing.assert_close(weights[b, t, : LENGTHS[b]].tolist(), expected)
            mean = sum(a * values[b, s] for s, a in enumerate(expected))
            torch.testing.assert_close(context[b, t], mean)


def test_weights_sum_to_one_and_are_zero_on_padding(attention, query_and_values):
    query, values = query_and_values
    _, weights = attend(attention, 100 * query, values)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T).double())
    for b in range(B):
        assert weights[b, :, LENGTHS[b] :].eq(0).all()


def test_padding_changes_nothing(attention, query_and_values):
    query, values = query_and_values
    other = values.clone()
    for b in range(B):
        other[b, LENGTHS[b] :] = 1e6
    values.requires_grad_()
    context, _ = attend(attention, query, values)
    torch.testing.assert_close(attend(attention, query, other)[0], context, rtol=0, atol=0)
    context.sum().backward()
    for b in range(B):
        assert values.grad[b, LENGTHS[b] :].eq(0).all()


def test_a_unidirectional_encoder(kind):
    attention = ATTENTIONS[kind](H, H)
    context, _ = attend(attention, torch.randn(B, T, H), torch.randn(B, S, H))
    assert context.shape == (B, T, H)


def test_none_has_no_context():
    attention = ATTENTIONS["none"](H, D * H)
    context, weights = attend(attention, torch.randn(B, T, H), torch.randn(B, S, D * H))
    assert context.shape == (B, T, attention.context_size) == (B, T, 0)
    assert weights.shape == (B, T, S) and not weights.any()
