"""Traces made by hand, with units that track a known feature."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from lstmlab.analysis.probes import Unit, correlate, find_units, score_linear_probe

N = 4000


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def held(length: int, generator: torch.Generator) -> torch.Tensor:
    """0 or 1 at random, the same for `length` steps."""
    return torch.randint(2, (N // length + 1,), generator=generator).repeat_interleave(length)[:N].float()


def test_correlation_is_pearsons(generator):
    x, y = torch.randn(50, 3, generator=generator).double(), torch.randn(50, 2, generator=generator).double()
    y[:, 0] += x[:, 1]
    expected = torch.from_numpy(np.corrcoef(x.T, y.T)[:3, 3:])
    torch.testing.assert_close(correlate(x, y), expected)
    x[:, 2] = 7
    assert correlate(x, y)[2].tolist() == [0, 0]


def test_linear_probe(generator):
    """R² is 1 for what is linear in the units and 0 for noise."""
    x = torch.randn(2 * N, 5, generator=generator)
    noise = torch.randn(2 * N, 2, generator=generator)
    y = torch.stack([3 * x[:, 0] - x[:, 4] + 2, x[:, 1] + noise[:, 0], noise[:, 1]], 1)
    r2 = score_linear_probe(x[:N], y[:N], x[N:], y[N:])
    torch.testing.assert_close(r2, torch.tensor([1.0, 0.5, 0.0]), atol=0.03, rtol=0)


def test_linear_probe_is_ridge_regression(generator):
    """Compared with scikit-learn; mean and spread differ in the test half, and one unit is constant."""
    x, x_test = torch.randn(60, 4, generator=generator), 3 * torch.randn(40, 4, generator=generator) + 2
    noise = torch.randn(100, 2, generator=generator)
    W = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.0, 1.0], [0.5, 0.0]])
    y, y_test = x @ W + noise[:60], x_test @ W + noise[60:] + 0.5
    x[:, 3] = x_test[:, 3] = 7
    found = score_linear_probe(x, y, x_test, y_test)
    scaled = StandardScaler().fit(x)
    deviation = scaled.scale_ * (60 / 59) ** 0.5  # n − 1
    given, tested = ((each.numpy() - scaled.mean_) / np.maximum(deviation, 1e-6) for each in (x, x_test))
    ridge = Ridge(alpha=1e-3 * 60).fit(given, y)
    expected = r2_score(y_test, ridge.predict(tested), multioutput="raw_values")
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=1e-4, rtol=1e-3)


def test_the_probe_is_fitted_to_the_first_half_only(generator):
    """With a quarter as many units as steps, a probe fits any label, but only in the first half."""
    noise, label = torch.randn(1, 1, 400, 100, generator=generator), torch.randn(400, generator=generator)
    [result] = find_units({"h": noise}, {"noise": label.numpy()})
    assert result.probe < -0.5 and result.control_probe < 0


def test_planted_units_are_found(generator):
    """One unit of h tracks a feature with r = 0.8; another feature is spread over two units of c."""
    c, h = (torch.randn(2, 1, N, 6, generator=generator) for _ in range(2))
    first, second = held(7, generator), held(5, generator)
    h[1, 0, :, 4] = -(first - 0.5) * 2 * 0.8 + 0.6 * h[1, 0, :, 4]
    c[0, 0, :, 1] += 5
    noise = 3 * torch.randn(N, generator=generator)
    c[0, 0, :, 2], c[1, 0, :, 3] = second + noise, second - noise
    features = {"first": first.numpy(), "second": second.numpy(), "constant": np.ones(N, np.float32)}
    found = {result.feature: result for result in find_units({"c": c, "h": h}, features)}
    assert found.keys() == {"first", "second"}
    unit, r = found["first"].best[0]
    assert unit == Unit("h", 1, 0, 4) and str(unit) == "h, layer 1, unit 4"
    assert (r, *found["first"].halves) == pytest.approx((-0.8,) * 3, abs=0.03)
    assert found["first"].probe == pytest.approx(0.64, abs=0.03)
    assert abs(found["second"].best[0][1]) < 0.25
    assert found["second"].probe > 0.98
    for result in found.values():
        assert result.control_r < 0.15 and result.control_probe < 0.02


def test_each_half_is_scored(generator):
    """One unit tracks its feature in the first half only. A feature constant in a half is left out."""
    half, signal = N // 2, held(5, generator)
    h = torch.randn(1, 1, N, 3, generator=generator)
    h[0, 0, :half, 1] = signal[:half]
    first, second = torch.zeros(N), torch.zeros(N)
    first[:half:2], second[half::2] = 1, 1
    features = {"signal": signal.numpy(), "first": first.numpy(), "second": second.numpy()}
    [result] = find_units({"h": h}, features)
    assert result.feature == "signal" and result.best[0][0] == Unit("h", 0, 0, 1)
    assert result.halves == pytest.approx((1, 0), abs=0.05)
    assert len(find_units({"h": h}, features, top=2)[0].best) == 2


def test_the_control_is_the_best_of_all_shifts(generator):
    """A label with a period of a tenth of the steps, equal to the first shift."""
    label = torch.randint(2, (N // 10,), generator=generator).repeat(10).float()
    h = torch.randn(1, 1, N, 3, generator=generator)
    h[0, 0, :, 2] = label + 0.1 * h[0, 0, :, 2]
    [result] = find_units({"h": h}, {"label": label.numpy()})
    assert result.best[0][1] > 0.95 and result.control_r == pytest.approx(result.best[0][1], abs=1e-3)
    assert result.probe > 0.9 and result.control_probe == pytest.approx(result.probe, abs=1e-3)


def test_the_control_shows_the_effect_of_slow_signals(generator):
    """Random walks and a slow label correlate by chance, and so do shifted labels."""
    walks = torch.randn(1, 1, N, 50, generator=generator).cumsum(2)
    label = torch.randn(N, generator=generator).cumsum(0)
    [result] = find_units({"h": walks}, {"slow": label.numpy()})
    assert result.control_r > 0.7
    assert abs(result.best[0][1]) < result.control_r + 0.1
