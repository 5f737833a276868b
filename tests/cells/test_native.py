"""The native kernel: compiled where it can be, once, and done without where it cannot."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from lstmlab.cells import build_cell, native


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / "lstmlab"
    native.library.cache_clear()


def test_without_a_compiler_it_says_so_once_and_goes_on(empty_cache, monkeypatch):
    x = torch.randn(2, 5, 3)
    cell = build_cell("fused", 3, 4)
    expected = build_cell("scratch", 3, 4)
    expected.load_state_dict(cell.state_dict())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning) as said:
        assert_close(cell(x)[0], expected(x)[0])
        cell(x)
    assert [str(warning.message) for warning in said] == [
        "cell=fused runs its plain path: no-such-compiler cannot build the native kernel "
        "([Errno 2] No such file or directory: 'no-such-compiler')"
    ]


def test_a_compiler_that_fails_is_quoted(empty_cache, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: unknown option' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match="error: unknown option"):
        assert native.library() is None
    assert not empty_cache.exists()


def test_two_at_once_compile_without_harm(empty_cache):
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(lambda _: native.library.__wrapped__(), range(2)))
    if None in libraries:
        pytest.skip("no C++ compiler that can build the native kernel")
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]
