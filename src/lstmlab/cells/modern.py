"""The equations of newer kinds, written as those in scratch.py."""

from math import inf

from torch import Tensor, cat, exp, sigmoid, tanh, where
from torch.nn.functional import linear, logsigmoid

StepResult = tuple[tuple[Tensor, ...], dict[str, Tensor]]  # the new state, and the gates


class MinGRU:
    """Feng et al. 2024: the gates see the input alone, so each step is linear in h.

    z = σ(W_z·x + b_z)
    g = G(W_g·x + b_g), where G(a) = a + 0.5 for a ≥ 0, else σ(a)
    h' = (1 − z) ⊙ h + z ⊙ g
    """

    def __init__(self, weight_ih: Tensor, bias_ih: Tensor):
        self.W_z, self.W_g = weight_ih.chunk(2)
        self.b_z, self.b_g = bias_ih.chunk(2)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x (…, I) → a and b of h' = a ⊙ h + b, and the gates, each (…, H)."""
        z_a = linear(x, self.W_z, self.b_z)
        z, g = sigmoid(z_a), positive(linear(x, self.W_g, self.b_g))
        return sigmoid(-z_a), z * g, {"z": z, "g": g}

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        """x (B, I), h (B, H)."""
        a, b, gates = self.terms(x)
        return (a * h + b,), gates


class MinLSTM:
    """Feng et al. 2024: as minGRU, with two gates that are normalised, so that i + f = 1.

    f = σ(log σ(W_f·x + b_f) − log σ(W_i·x + b_i))
    i = 1 − f
    g = G(W_g·x + b_g), where G(a) = a + 0.5 for a ≥ 0, else σ(a)
    h' = f ⊙ h + i ⊙ g
    """

    def __init__(self, weight_ih: Tensor, bias_ih: Tensor):
        self.W_i, self.W_f, self.W_g = weight_ih.chunk(3)
        self.b_i, self.b_f, self.b_g = bias_ih.chunk(3)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x (…, I) → a and b of h' = a ⊙ h + b, and the gates, each (…, H)."""
        log_f = logsigmoid(linear(x, self.W_f, self.b_f))
        log_i = logsigmoid(linear(x, self.W_i, self.b_i))
        f, i = sigmoid(log_f - log_i), sigmoid(log_i - log_f)
        g = positive(linear(x, self.W_g, self.b_g))
        return f, i * g, {"i": i, "f": f, "g": g}

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        """x (B, I), h (B, H)."""
        a, b, gates = self.terms(x)
        return (a * h + b,), gates


def positive(a: Tensor) -> Tensor:
    """G of minGRU and minLSTM."""
    return where(a >= 0, a + 0.5, sigmoid(a))


class SLSTM:
    """Beck et al. 2024: exponential gates, a normaliser n, and a stabiliser m against overflow. R_i and its
    siblings are block-diagonal: they mix the units of each head only.

    ĩ = W_i·x + R_i·h + b_i
    m' = max(log σ(W_f·x + R_f·h + b_f) + m, ĩ)
    i = exp(ĩ − m')
    f = exp(log σ(W_f·x + R_f·h + b_f) + m − m')
    g = tanh(W_g·x + R_g·h + b_g)
    o = σ(W_o·x + R_o·h + b_o)
    c' = f ⊙ c + i ⊙ g
    n' = f ⊙ n + i
    h' = o ⊙ c' / n'

    A unit with n = 0 has not started: m' = ĩ and f = 0. From then on n is at least 1.
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor):
        self.W_i, self.W_f, self.W_g, self.W_o = weight_ih.chunk(4)
        self.R_i, self.R_f, self.R_g, self.R_o = weight_hh.chunk(4)
        self.b_i, self.b_f, self.b_g, self.b_o = (bias_ih + bias_hh).chunk(4)

    def __call__(self, x: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor) -> StepResult:
        """x (B, I), h, c, n and m (B, H)."""
        i_a = linear(x, self.W_i, self.b_i) + multiply_heads(h, self.R_i)
        past = logsigmoid(linear(x, self.W_f, self.b_f) + multiply_heads(h, self.R_f)) + m
        m = where((n == 0) | (i_a >= past), i_a, past)
        i = exp(i_a - m)
        f = exp(where(n == 0, -inf, past - m))
        g = tanh(linear(x, self.W_g, self.b_g) + multiply_heads(h, self.R_g))
        o = sigmoid(linear(x, self.W_o, self.b_o) + multiply_heads(h, self.R_o))
        c = f * c + i * g
        n = f * n + i
        h = o * c / n
        return (h, c, n, m), {"i": i, "f": f, "g": g, "o": o}


def multiply_heads(h: Tensor, R: Tensor) -> Tensor:
    """h (B, H) times the block-diagonal matrix whose blocks lie in R (H, d), one below the other → (B, H)."""
    d = R.size(1)
    return cat([linear(h_k, R_k) for h_k, R_k in zip(h.split(d, -1), R.split(d), strict=True)], -1)
