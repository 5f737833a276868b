"""Initial weights, the same for every backend."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .kinds import KINDS


@torch.no_grad()
def initialise_parameters(
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    kind: str,
    hidden_size: int,
    init: str,
    forget_bias: float,
    chrono_steps: int | None,
) -> None:
    """Set a cell's parameters in place.

    xavier: uniform Xavier input weights (Glorot & Bengio 2010) and orthogonal recurrent weights
        (Saxe et al. 2014), both per gate, those of an sLSTM per head as well, and an orthogonal
        projection. The biases are zero, but b_f = forget_bias in the LSTM kinds (Jozefowicz et al. 2015),
        all of it in bias_ih.
    chrono: the same weights; b_f = log(u), u ~ U(1, chrono_steps − 1), b_i = −b_f
        (Tallec & Ollivier 2018, equation 16).
    torch: U(−1/√H, 1/√H) for all, nn.LSTM's default.

    The matrices of a mogrifier are uniform Xavier too: 2σ of small numbers is close to 1, so that its
    rounds begin close to the identity (Melis et al. 2020).

    Of a kind's other own parameters, those whose name starts with "gain" start at one and the others at
    zero, unless init is torch: peephole weights, one per unit, have no symmetry to break. One number
    from torch's global generator seeds a generator of the cell's own, so that what is built
    afterwards does not depend on how many numbers are drawn here.
    """
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = torch.Generator().manual_seed(seed)
    gates = KINDS[kind].gates
    bound = 1 / math.sqrt(hidden_size)

    for name, parameter in named_parameters:
        if parameter.is_meta:  # It has a shape and no numbers.
            continue
        value = torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu")
        per_gate = dict(zip(gates, value.chunk(len(gates)), strict=False))  # views
        if name.startswith("gain"):
            value.fill_(1)
        elif init == "torch":
            value.uniform_(-bound, bound, generator=generator)
        elif name.startswith("weight_ih"):
            for weight in per_gate.values():
                nn.init.xavier_uniform_(weight, generator=generator)
        elif name.startswith(("weight_q", "weight_r")):
            nn.init.xavier_uniform_(value, generator=generator)
        elif name.startswith("weight_hh"):
            block = value.size(1) if kind == "slstm" else hidden_size
            for weight in per_gate.values():
                for head in weight.split(block):
                    nn.init.orthogonal_(head, generator=generator)
        elif name.startswith("weight_hr"):
            nn.init.orthogonal_(value, generator=generator)
        elif name.startswith("bias_ih") and init == "chrono":
            assert chrono_steps is not None
            per_gate["f"].uniform_(1, chrono_steps - 1, generator=generator).log_()
            per_gate["i"].copy_(-per_gate["f"])
        elif name.startswith("bias_ih") and "f" in gates:
            per_gate["f"].fill_(forget_bias)
        parameter.copy_(value)
