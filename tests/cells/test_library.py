"""The compiled library: built once, verified when it is loaded, done without where there is no compiler."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lstmlab.cells import build_cell, library
from lstmlab.cells.cpu import Cpu, find_cpu
from lstmlab.cells.library import FLAGS, SOURCES, choose_flags, load_kernel

CALL = """
import warnings, torch
from lstmlab.cells import build_cell
warnings.simplefilter("always")
cell, scratch = build_cell("fused", 3, 4), build_cell("scratch", 3, 4)
scratch.load_state_dict(cell.state_dict())
x = torch.randn(2, 5, 3)
torch.testing.assert_close(cell(x)[0], scratch(x)[0])
"""


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_kernel.cache_clear()
    yield tmp_path / "cache/lstmlab"
    load_kernel.cache_clear()


@pytest.fixture(scope="module")
def built() -> Path:
    """A library as a compiler has left it."""
    loaded = load_kernel()
    if loaded is None:
        pytest.skip("no C++ compiler for the native kernel")
    return Path(loaded._name)


@pytest.fixture
def compiler(built, monkeypatch, tmp_path) -> Path:
    """$CXX: a compiler that is done at once."""
    script = tmp_path / "c++"
    script.write_text(f'#!/bin/sh\nfor output; do :; done\ncp {built} "$output"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return script


@pytest.fixture
def filled_cache(built, tmp_path) -> Path:
    folder = tmp_path / "filled/lstmlab"
    folder.mkdir(parents=True)
    return Path(shutil.copy(built, folder))


def call(**environment: str) -> str:
    """A cell called in a process of its own, its numbers compared; what that wrote to standard error."""
    env = {**os.environ, **environment}
    run = subprocess.run([sys.executable, "-c", CALL], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_without_a_compiler_it_says_so_once_and_does_without(empty_cache, monkeypatch):
    x = torch.randn(2, 5, 3)
    cell = build_cell("fused", 3, 4)
    expected = build_cell("scratch", 3, 4)
    expected.load_state_dict(cell.state_dict())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning) as said:
        assert_close(cell(x)[0], expected(x)[0])
        cell(x)
    assert [str(warning.message) for warning in said] == [
        "cell=fused does without its native kernel: no-such-compiler cannot build it "
        "([Errno 2] No such file or directory: 'no-such-compiler')"
    ]


def test_a_compiler_that_fails_is_quoted(empty_cache, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: unknown option' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match="error: unknown option"):
        assert load_kernel() is None
    assert not empty_cache.exists()


def test_a_compiler_may_have_arguments(empty_cache, compiler, monkeypatch):
    monkeypatch.setenv("CXX", f"{compiler} -w")
    assert load_kernel() is not None


def test_two_at_once_compile_without_harm(empty_cache, compiler):
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(lambda _: load_kernel.__wrapped__(), range(2)))
    assert None not in libraries
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]


def test_a_library_in_the_cache_needs_no_compiler(filled_cache):
    cache = str(filled_cache.parent.parent)
    assert call(XDG_CACHE_HOME=cache, CXX="no-such-compiler") == ""


def test_processors_of_different_kinds_share_a_cache_but_no_library(filled_cache, compiler):
    """One that lacks an instruction would end the process at it: here PyTorch is told to use none of them."""
    if choose_flags(find_cpu()) == FLAGS:
        pytest.skip("the flags are the same for all processors of this kind")
    assert call(XDG_CACHE_HOME=str(filled_cache.parent.parent), ATEN_CPU_CAPABILITY="default") == ""
    keys = {path.name.split("-")[1] for path in filled_cache.parent.iterdir()}
    assert len(keys) == 2


@pytest.mark.parametrize("damage", ["empty", "cut short", "one byte altered"])
def test_a_damaged_library_is_compiled_again(filled_cache, compiler, damage):
    whole = filled_cache.read_bytes()
    content = bytearray(whole)
    if damage == "one byte altered":
        content[len(content) // 2] ^= 1
    filled_cache.write_bytes(content[: {"empty": 0, "cut short": 20_000}.get(damage)])
    assert call(XDG_CACHE_HOME=str(filled_cache.parent.parent)) == ""
    assert [path.read_bytes() for path in filled_cache.parent.iterdir()] == [whole]


@pytest.mark.parametrize("obstacle", ["no home", "a file in the way", "not writable"])
def test_without_a_cache_it_compiles_for_itself_and_says_so_once(compiler, monkeypatch, tmp_path, obstacle):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc" if obstacle == "not writable" else "")
    monkeypatch.setattr(Path, "home", no_home if obstacle == "no home" else lambda: compiler)
    load_kernel.cache_clear()
    with pytest.warns(UserWarning, match="compiled for this process alone") as said:
        assert load_kernel() is load_kernel() is not None
    assert len(said) == 1
    assert list(private.iterdir()) == []
    load_kernel.cache_clear()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AMX is of x86")
def test_the_kernel_for_amx_compiles(built, tmp_path):
    """Its instructions, which the emulation does not reach."""
    flags = choose_flags(Cpu("", "GenuineIntel", ("AVX-512", "AMX-BF16")), amx=True)
    command = [*library.compiler(), *flags, "-S", str(SOURCES[0]), "-o", str(tmp_path / "kernel.s")]
    subprocess.run(command, check=True)
    assembly = (tmp_path / "kernel.s").read_text()
    assert all(
        f"tdpbf16ps %tmm{b}, %tmm{a}, %tmm{c}" in assembly
        for c, a, b in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))
    )
