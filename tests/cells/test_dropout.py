import pytest
import torch
from torch.func import vmap

from lstmlab.cells.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_p_is_zero_and_the_rest_is_scaled(p, dtype):
    torch.manual_seed(0)
    x = torch.full((301, 1001), 3.0, dtype=dtype, requires_grad=True)
    y = dropout(x, p)
    assert y.dtype == dtype
    dropped = y == 0
    assert dropped.double().mean() == pytest.approx(p, abs=0.005)  # more than 5 standard deviations
    assert (y[~dropped] == (x / (1 - p))[0, 0]).float().mean() > 0.99 or dtype == torch.bfloat16
    torch.testing.assert_close(y[~dropped], (x / (1 - p))[~dropped], rtol=1e-2, atol=0)
    # neither rows, nor columns, nor the four elements of a draw have anything in common
    for way in (dropped.double().mean(0), dropped.double().mean(1)):
        assert (way - p).abs().max() < 0.2
    pairs = dropped.flatten()
    for lag in (1, 2, 3, 4, 1001):
        both = (pairs[lag:] & pairs[:-lag]).double().mean()
        assert both == pytest.approx(p * p, abs=0.005), lag

    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * 3, y)


def test_evaluation_and_p_0_change_nothing_and_draw_nothing():
    x, before = torch.randn(3, 5), torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_gives_the_same_mask_in_any_layout():
    x = torch.ones(6, 7)
    masks = []
    for t in (x, x.t().contiguous().t(), x[:1].expand(6, 7)):
        torch.manual_seed(0)
        masks.append(Dropout(0.5)(t))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], Dropout(0.5)(x))


def test_under_vmap_each_sample_has_its_mask():
    y = vmap(lambda x: dropout(x, 0.5), randomness="different")(torch.ones(2, 500))
    assert 0.3 < torch.eq(y[0], y[1]).double().mean() < 0.7


def test_in_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager")
    y = compiled(torch.ones(1000), 0.25)
    assert torch.eq(y, 0).double().mean() == pytest.approx(0.25, abs=0.07)
