"""What this CPU can do, by its own account: PyTorch's tables miss instruction sets on virtual machines.

$ATEN_CPU_CAPABILITY (default, avx2 or avx512), which limits what PyTorch uses, limits this as well.
"""

import functools
import os
import platform
import subprocess
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

# What the levels x86-64-v3 and x86-64-v4 of compilers use, as Linux names it
AVX2 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
NEEDS = {
    "NEON": {"asimd"},
    "AVX2": AVX2,
    "AVX-512": AVX512,
    "AVX512-BF16": AVX512 | {"avx512_bf16"},
    "AMX-BF16": AVX512 | {"amx_tile", "amx_bf16"},
}
LIMITS = {"default": (), "avx2": ("AVX2",)}  # Any other value of $ATEN_CPU_CAPABILITY allows all.


class Cpu(NamedTuple):
    """instruction_sets: those of `NEEDS` that it has and that may be used, in that order."""

    model: str
    vendor: str  # AuthenticAMD, GenuineIntel, …
    instruction_sets: tuple[str, ...]

    @property
    def multiplies_bf16_fast(self) -> bool:
        """Whether the kernel's bf16 products beat its float32 ones: they take 0.55 of the time on an AMD CPU
        with AVX512-BF16, but took 1.4 times as long on an Intel one."""
        return self.vendor == "AuthenticAMD" and "AVX512-BF16" in self.instruction_sets


@functools.cache
def find_cpu() -> Cpu:
    model, vendor, flags = _ask_macos() if platform.system() == "Darwin" else _read_cpuinfo()
    return Cpu(model, vendor, list_instruction_sets(flags, os.environ.get("ATEN_CPU_CAPABILITY", "")))


def list_instruction_sets(flags: Set[str], limit: str) -> tuple[str, ...]:
    allowed = LIMITS.get(limit, NEEDS)
    return tuple(name for name, needed in NEEDS.items() if needed <= flags and name in allowed)


def _read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> tuple[str, str, Set[str]]:
    facts: dict[str, str] = {}  # of the first core
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags") or facts.get("Features") or ""  # ARM has the second
    model = facts.get("model name") or platform.processor() or platform.machine()
    return model, facts.get("vendor_id", ""), set(flags.split())


def _ask_macos() -> tuple[str, str, Set[str]]:
    def ask(*words: str) -> str:
        return subprocess.run(["sysctl", *words], capture_output=True, text=True, check=False).stdout.strip()

    rows = [line.rpartition(": ") for line in ask("hw.optional").splitlines()]  # hw.optional.avx2_0: 1
    flags = {name.split(".")[-1].lower().removesuffix("_0") for name, _, value in rows if value == "1"}
    if "neon" in flags or platform.machine() == "arm64":
        flags.add("asimd")
    return ask("-n", "machdep.cpu.brand_string"), ask("-n", "machdep.cpu.vendor"), flags
