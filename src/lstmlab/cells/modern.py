"""The equations of newer kinds, written as those in scratch.py."""

from math import inf

from torch import Tensor, cat, exp, sigmoid, tanh, where
from torch.nn.functional import linear, logsigmoid

StepResult = tuple[tuple[Tensor, ...], dict[str, Tensor]]  # the new state, and the gates


class Mogrifier:
    """Melis et al. 2020: before the step of an LSTM, x and h modulate each other, r times by turns.

    x ← 2σ(Q_1·h) ⊙ x
    h ← 2σ(R_2·x) ⊙ h
    x ← 2σ(Q_3·h) ⊙ x
    h ← 2σ(R_4·x) ⊙ h …

    Of low rank, each matrix is a product of two.
    """

    def __init__(
        self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, *matrices: Tensor
    ):
        self.W_i, self.W_f, self.W_g, self.W_o = cat([weight_hh, weight_ih], 1).chunk(4)
        self.b_i, self.b_f, self.b_g, self.b_o = (bias_ih + bias_hh).chunk(4)
        whole = matrices[0].size(1) == weight_hh.size(1)
        pairs = zip(matrices[1::2], matrices[::2], strict=True) if not whole else ()
        # Of each round, that which meets the vector first
        self.rounds = [(matrix,) for matrix in matrices] if whole else list(pairs)

    def modulate(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        for k, factors in enumerate(self.rounds):
            a = x if k % 2 else h
            for factor in factors:
                a = linear(a, factor)
            x, h = (x, 2 * sigmoid(a) * h) if k % 2 else (2 * sigmoid(a) * x, h)
        return x, h

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> StepResult:
        """x (B, I), h and c (B, H)."""
        x, h = self.modulate(x, h)
        hx = cat([h, x], -1)
        i = sigmoid(linear(hx, self.W_i, self.b_i))
        f = sigmoid(linear(hx, self.W_f, self.b_f))
        g = tanh(linear(hx, self.W_g, self.b_g))
        o = sigmoid(linear(hx, self.W_o, self.b_o))
        c = f * c + i * g
        h = o * tanh(c)
        return (h, c), {"i": i, "f": f, "g": g, "o": o}


class MinGRU:
    """Feng et al. 2024: the gates see the input alone, so each step is linear in h.

    z = σ(W_z·x + b_z)
    g = G(W_g·x + b_g), where G(a) = a + 0.5 for a ≥ 0, else σ(a)
    h' = (1 − z) ⊙ h + z ⊙ g
    """

    def __init__(self, weight_ih: Tensor, bias_ih: Tensor):
        self.W_z, self.W_g = weight_ih.chunk(2)
        self.b_z, self.b_g = bias_ih.chunk(2)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (…, I) → a and b of h' = a ⊙ h + b, each (…, H)."""
        z = sigmoid(linear(x, self.W_z, self.b_z))
        return 1 - z, z * positive(linear(x, self.W_g, self.b_g))

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        """x (B, I), h (B, H)."""
        z = sigmoid(linear(x, self.W_z, self.b_z))
        g = positive(linear(x, self.W_g, self.b_g))
        h = (1 - z) * h + z * g
        return (h,), {"z": z, "g": g}


class MinLSTM:
    """Feng et al. 2024: as minGRU, with two gates that are normalised, so that i + f = 1.

    f = σ(log σ(W_f·x + b_f) − log σ(W_i·x + b_i))
    i = σ(log σ(W_i·x + b_i) − log σ(W_f·x + b_f))
    g = G(W_g·x + b_g), where G(a) = a + 0.5 for a ≥ 0, else σ(a)
    h' = f ⊙ h + i ⊙ g
    """

    def __init__(self, weight_ih: Tensor, bias_ih: Tensor):
        self.W_i, self.W_f, self.W_g = weight_ih.chunk(3)
        self.b_i, self.b_f, self.b_g = bias_ih.chunk(3)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (…, I) → a and b of h' = a ⊙ h + b, each (…, H)."""
        odds = self.log_odds(x)
        return sigmoid(odds), sigmoid(-odds) * positive(linear(x, self.W_g, self.b_g))

    def log_odds(self, x: Tensor) -> Tensor:
        """log f − log i."""
        return logsigmoid(linear(x, self.W_f, self.b_f)) - logsigmoid(linear(x, self.W_i, self.b_i))

    def __call__(self, x: Tensor, h: Tensor) -> StepResult:
        """x (B, I), h (B, H)."""
        odds = self.log_odds(x)
        f = sigmoid(odds)
        i = sigmoid(-odds)
        g = positive(linear(x, self.W_g, self.b_g))
        h = f * h + i * g
        return (h,), {"i": i, "f": f, "g": g}


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
