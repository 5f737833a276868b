"""Which tensors the native kernel may have, and in which precision it computes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import is_traced
from .library import find_kernel

# The precision of the products by the type of the weights, without autocast.
PRECISIONS = {torch.float32: "f32", torch.float64: "f64"}
PLAIN_TYPES = (Tensor, nn.Parameter)
CAST_BY_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


def is_watched(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch must see operators: for a tracer, or for what a tensor is beside its numbers."""
    return is_traced() or any(
        type(tensor) not in PLAIN_TYPES or torch._is_functional_tensor(tensor) for tensor in tensors
    )


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether each tensor is on the CPU and its numbers are those that stand at its address."""
    for tensor in tensors:
        if type(tensor) not in PLAIN_TYPES or not tensor.is_cpu or tensor.is_neg():
            return False
    return True


def admit(
    x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, weights: Sequence[Tensor], amx: bool = False
) -> tuple[str | None, bool]:
    """The precision in which the kernel takes these tensors, or None if it does not take them; and whether it
    may have them as they are. If not, PyTorch makes them plain for an operator (`operators`).

    amx: see `find_precision`.
    weights: of all layers. `Recurrent._check_arguments` and `Recurrent._weights` have checked the shapes.
    """
    dtype = weights[0].dtype
    precision = find_precision(dtype, amx)
    if precision is None or x.numel() == 0:
        return None, False
    tensors = [x, *state, *weights] if lengths is None else [x, *state, *weights, lengths]
    plain = not is_traced() and are_plain(tensors)
    # PyTorch has zeros that take no memory.
    if plain and not (x.data_ptr() and state[0].data_ptr() and state[-1].data_ptr()):
        plain = False
    if torch.is_autocast_enabled("cpu"):  # The caller casts x and the state.
        fits = x.dtype in CAST_BY_AUTOCAST and all(weight.dtype is dtype for weight in weights)
    else:  # `Recurrent._weights` has refused weights of several types.
        fits = x.dtype is state[0].dtype is state[-1].dtype is dtype
    if not fits or not (plain or all(tensor.is_cpu for tensor in tensors)):
        return None, False
    return precision, plain


def find_precision(dtype: torch.dtype, amx: bool = False) -> str | None:
    """The precision in which the kernel computes the products of weights of this type; None: it cannot.

    Under autocast those of float32 weights are of bf16 numbers, summed in float32, if it asks for bf16 and
    the CPU multiplies that fast, or amx asks for tiles. All else is in float32.
    """
    name = PRECISIONS.get(dtype)
    if torch.is_autocast_enabled("cpu"):
        if dtype is not torch.float32:
            return None
        products = "amx" if amx else "bf16"
        if torch.get_autocast_dtype("cpu") is torch.bfloat16 and is_compiled(products):
            return products
    return name if name and is_compiled(name) else None


@torch.compiler.assume_constant_result
def is_compiled(precision: str) -> bool:
    return hasattr(find_kernel(precision), f"forward_{precision}")
