"""Which engine runs a call of `fused`: the fastest one that computes the same numbers.

native  the kernel for the CPU (`native.py`)
amx     the same with bf16 products on AMX tiles (`tiles.h`); never measured, so only cell.engine=amx takes it
torch   PyTorch's operator (oneDNN on the CPU, cuDNN, MPS), for the kinds that it has
plain   a loop in PyTorch with a backward pass of its own (`recurrence.py`), for the other kinds

The choice depends on the call and the machine, never on a clock, so that a run repeats itself bit for bit.
The thresholds were measured by `python src/bench.py suite=engines`, whose figures stand in the README of the
benchmarks.
"""

from typing import Any, NamedTuple

from torch import nn

from .cpu import Cpu, find_cpu
from .kinds import KINDS
from .library import load_kernel


class Call(NamedTuple):
    """What the choice depends on. bf16: under bf16 autocast. gradients: with a backward pass to come."""

    device: str
    kind: str
    bf16: bool
    ragged: bool
    gradients: bool
    B: int
    T: int
    I: int
    H: int


def choose_engine(call: Call, cpu: Cpu, compiled: bool) -> str:
    """compiled: whether the kernel takes these tensors, for which it must have been compiled."""
    if "torch" not in KINDS[call.kind].backends:
        return "native" if call.device == "cpu" and compiled else "plain"
    if call.device != "cpu" or not compiled:
        return "torch"
    return "torch" if call.bf16 and operator_is_faster_in_bf16(call, cpu) else "native"


def operator_is_faster_in_bf16(call: Call, cpu: Cpu) -> bool:
    """Whether it beats the kernel, which multiplies in float32 where the CPU does not multiply bf16 fast."""
    if call.B < 32:
        return False
    if "AMX-BF16" in cpu.instruction_sets:  # oneDNN uses the tiles for LSTMs, and the kernel does not
        wide = call.H >= 512 or (call.H >= 128 and not call.ragged)
        return call.kind == "lstm" and call.T > 1 and wide
    if call.T > 1 or call.gradients or call.ragged or not cpu.multiplies_bf16_fast:
        return False
    # A single step of the kernel multiplies in float32.
    return call.B * len(KINDS[call.kind].gates) * call.H * (call.I + call.H) >= 10**7


def operator_casts_to_bf16(cpu: Cpu) -> bool:
    """Whether PyTorch's operator is faster in bf16 than in float32: without such instructions it takes twice
    as long."""
    return bool({"AVX512-BF16", "AMX-BF16"} & set(cpu.instruction_sets))


def describe(model: nn.Module, device: str = "cpu", bf16: bool = False, batch_size: int = 32) -> str:
    """One line for each engine that the fused cells of a model take in training; without such cells, none.

    >>> print(describe(build_cell("fused", 64, 128)))
    fused: native kernel, AVX-512
    """
    cells: list[Any] = [cell for cell in model.modules() if getattr(cell, "backend", None) == "fused"]
    return "\n".join(dict.fromkeys(_describe_cell(cell, device, bf16, batch_size) for cell in cells))


def _describe_cell(cell: Any, device: str, bf16: bool, batch_size: int) -> str:
    cpu = find_cpu()
    compiled = device == "cpu" and not cell.proj_size and load_kernel() is not None
    call = Call(device, cell.kind, bf16, False, True, batch_size, 100, cell.input_size, cell.hidden_size)
    engine = choose_engine(call, cpu, compiled) if cell.engine == "auto" else cell.engine
    words = [
        {
            "native": "native kernel",
            "amx": "native kernel",
            "torch": "PyTorch's operator",
            "plain": "plain PyTorch",
        }[engine]
    ]
    if engine == "amx" and bf16:
        words += ["AMX-BF16"]
    elif engine in ("native", "amx"):
        fast = bf16 and cpu.multiplies_bf16_fast
        words += [name for name in cpu.instruction_sets if name.endswith("BF16") is fast][-1:]
    elif device != "cpu":
        words += ["cuDNN" if (engine, device) == ("torch", "cuda") else device]
    if bf16 and device == "cpu":
        in_bf16 = {"amx": True, "native": cpu.multiplies_bf16_fast}.get(engine, operator_casts_to_bf16(cpu))
        words += ["in bf16" if in_bf16 else "in float32"]
    if cell.engine != "auto":
        words += [f"cell.engine={cell.engine}"]
    elif device == "cpu" and not compiled:
        words += ["proj_size" if cell.proj_size else "no C++ compiler"]
    return f"fused: {', '.join(words)}"
