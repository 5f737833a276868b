"""The equations of newer kinds, written as those in scratch.py."""

from torch import Tensor, sigmoid, where
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
