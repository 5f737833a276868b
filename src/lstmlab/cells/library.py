"""The native kernel's library. It is compiled on first use, in some seconds, and kept in the user's cache
folder ($XDG_CACHE_HOME or ~/.cache). Its name there holds digests of the sources and flags and of its bytes.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path

from .cpu import Cpu, find_cpu

HEADERS = (
    "scan.h",
    "cell.h",
    "min.h",
    "slstm.h",
    "mogrifier.h",
    "gemm.h",
    "tiles.h",
    "packed.h",
    "unpacked.h",
)
SOURCES = [Path(__file__).with_name(name) for name in ("kernel.cpp", *HEADERS)]
# Not -march=native: several machines may share the cache folder.
CPU_FLAGS = {"AVX-512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "AVX2": ["-march=x86-64-v3"]}
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
]


def choose_flags(cpu: Cpu, amx: bool = False) -> list[str]:
    """The compiler's flags. Only with the last one has the kernel products in bf16.

    amx: for those products alone, on AMX tiles or, where the CPU has none, in an emulation of them.
    """
    found = next((flags for name, flags in CPU_FLAGS.items() if name in cpu.instruction_sets), [])
    if amx:
        return [*FLAGS, *found, "-DAMX", *([] if "AMX-BF16" in cpu.instruction_sets else ["-DEMULATED"])]
    return [*FLAGS, *found, *(["-mavx512bf16"] if cpu.multiplies_bf16_fast else [])]


def find_kernel(precision: str) -> ctypes.CDLL | None:
    """The kernel that has, if any does, products in this precision: f32, f64, bf16 or amx."""
    return load_amx_kernel() if precision == "amx" else load_kernel()


@functools.cache
def load_amx_kernel() -> ctypes.CDLL | None:
    return _load(choose_flags(find_cpu(), amx=True)) if "AVX-512" in find_cpu().instruction_sets else None


@functools.cache
def load_kernel() -> ctypes.CDLL | None:
    """The kernel, or None with one warning if the cache holds none and no compiler can build it."""
    return _load(choose_flags(find_cpu()))


def _load(flags: list[str]) -> ctypes.CDLL | None:
    key = digest(b"".join(source.read_bytes() for source in SOURCES) + repr(flags).encode())
    try:
        return load_cached(key) or compile_kernel(key, flags)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        # Not the logging module, which Hydra's settings may have switched off.
        warnings.warn(
            f"cell=fused does without its native kernel: {compiler()[0]} cannot build it ({reason})",
            stacklevel=3,
        )
        return None


def load_cached(key: str) -> ctypes.CDLL | None:
    """Load the kernel from the cache if it is there. Its bytes are checked first, because loading a file that
    was cut short can end the process."""
    try:
        for path in cache_folder().glob(f"kernel-{key}-*.so"):
            if path.stem.endswith(digest(path.read_bytes())):
                return ctypes.CDLL(str(path))
            path.unlink()
    except (OSError, RuntimeError):
        pass  # `compile_kernel` meets the same obstacle and reports it.
    return None


def compile_kernel(key: str, flags: list[str]) -> ctypes.CDLL:
    """Compile the kernel, store it in the cache and load it; without a cache, for this process only."""
    with tempfile.TemporaryDirectory(prefix="lstmlab-") as folder:
        compiled, linked = Path(folder, "kernel.o"), Path(folder, "kernel.so")
        # Linked without OpenMP: torch has loaded its own, and the kernel must use those threads.
        for arguments in (
            [*flags, "-c", str(SOURCES[0]), "-o", str(compiled)],
            ["-shared", str(compiled), "-o", str(linked)],
        ):
            subprocess.run([*compiler(), *arguments], check=True, capture_output=True, text=True)
        try:
            return ctypes.CDLL(str(store_in_cache(linked.read_bytes(), key)))
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"the native kernel was compiled for this process alone: it cannot be stored ({error})",
                stacklevel=4,
            )
            return ctypes.CDLL(str(linked))


def store_in_cache(content: bytes, key: str) -> Path:
    """Write a file to the cache whole or not at all, even if another process stores the same one."""
    target = cache_folder() / f"kernel-{key}-{digest(content)}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with Path(folder, target.name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, target)
    return target


def cache_folder() -> Path:
    """Raises RuntimeError if there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lstmlab"


def compiler() -> list[str]:
    """The words of $CXX, which may hold arguments; or c++."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
