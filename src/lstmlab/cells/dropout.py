"""Dropout whose random numbers cost little on the CPU, eager and compiled."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """x with each element zeroed with probability p and the others over 1 − p; in evaluation, x itself.

    The same as torch.nn.functional.dropout (Srivastava et al. 2014), which draws a number for each element.
    On the CPU this one draws 64 bits for four elements and rounds p to a multiple of 2⁻¹⁶.
    """
    if not training or p == 0:
        return x
    # vmap recognises PyTorch's random functions.
    if not x.is_cpu or torch._C._are_functorch_transforms_active():
        return F.dropout(x, p)
    if torch.compiler.is_compiling():  # The compiler has no random_.
        bits = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 3) // 4,), device="cpu")
    else:
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None)
    numbers = bits.view(torch.int16)[: x.numel()].view(x.shape)  # −2¹⁵ to 2¹⁵ − 1
    mask = (numbers >= round(p * 2**16) - 2**15).to(x.dtype)
    return x * mask.mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)
