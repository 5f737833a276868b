"""What the CPU says it can do."""

import os
import platform
import subprocess
import sys

import pytest

from lstmlab.cells.cpu import AVX512, Cpu, _read_cpuinfo, list_instruction_sets
from lstmlab.cells.library import choose_flags

ALL = ("AVX2", "AVX-512", "AVX512-BF16", "AMX-BF16")
SAPPHIRE_RAPIDS = AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"}


@pytest.mark.parametrize(
    "flags, limit, expected",
    [
        (SAPPHIRE_RAPIDS, "", ALL),
        (SAPPHIRE_RAPIDS, "avx512", ALL),
        (SAPPHIRE_RAPIDS, "avx2", ("AVX2",)),
        (SAPPHIRE_RAPIDS, "default", ()),
        (AVX512, "avx512", ("AVX2", "AVX-512")),
        (AVX512 - {"avx512vl"}, "", ("AVX2",)),  # as on Xeon Phi
        ({"avx", "avx2"}, "", ()),  # without FMA
        ({"asimd"}, "", ("NEON",)),
        (set(), "avx512", ()),  # The limit grants nothing.
    ],
)
def test_instruction_sets_are_those_of_the_flags_within_the_limit(flags, limit, expected):
    assert list_instruction_sets(flags, limit) == expected


def test_the_first_core_speaks_for_all(tmp_path):
    file = tmp_path / "cpuinfo"
    core = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon(R): {}\nflags\t\t: fpu {}\n\n"
    file.write_text(core.format(0, "first", "avx2") + core.format(1, "second", "sse"), encoding="utf-8")
    assert _read_cpuinfo(file) == ("Xeon(R): first", "GenuineIntel", {"fpu", "avx2"})
    file.write_text("processor\t: 0\nFeatures\t: fp asimd\n", encoding="utf-8")  # ARM
    assert _read_cpuinfo(file)[2] == {"fp", "asimd"}


def test_a_system_without_the_file_has_no_known_instruction_sets(tmp_path):
    model, _, flags = _read_cpuinfo(tmp_path / "missing")
    assert flags == set() and model in (platform.processor(), platform.machine())


@pytest.mark.parametrize(
    "vendor, sets, fast",
    [("AuthenticAMD", ALL[:3], True), ("GenuineIntel", ALL, False), ("AuthenticAMD", ALL[:2], False)],
)
def test_bf16_products_are_compiled_only_where_they_are_fast(vendor, sets, fast):
    flags = choose_flags(Cpu("", vendor, sets))
    assert "-march=x86-64-v4" in flags and ("-mavx512bf16" in flags) is fast


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
@pytest.mark.parametrize("limit", ["default", "avx2"])
def test_the_limit_is_read_from_the_environment(limit):
    program = "from lstmlab.cells.cpu import find_cpu; print(*find_cpu().instruction_sets)"
    env = {**os.environ, "ATEN_CPU_CAPABILITY": limit}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    _, _, flags = _read_cpuinfo()
    assert tuple(run.stdout.split()) == list_instruction_sets(flags, limit)
