"""Imports run one way, from the commands down to the ground, and no two files import each other."""

import ast
from functools import cache
from pathlib import Path

import pytest

from lstmlab.config import PROJECT

SOURCE = PROJECT / "src"
# From the ground up: a file may import what stands in its own layer or below.
LAYERS = (
    ("atomic", "distributed", "tables", "cells", "schema", "help", "json_schema", "config"),
    ("data",),
    ("models",),
    ("checkpoint", "loggers"),
    ("callbacks", "analysis"),
    ("export", "comparison", "runs"),
    ("benchmarks",),
)
LONGEST_CHAIN = 8


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(SOURCE.glob("lstmlab/**/*.py"))}


@cache
def imports_of(module: str, within_functions: bool = True) -> frozenset[str]:
    """The files of lstmlab that `module` imports: at its top and, if asked for, within functions."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    tree, found = ast.parse(FILES[module].read_text(encoding="utf-8")), set()
    for node in ast.walk(tree) if within_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in FILES else base)
    return frozenset(found & FILES.keys()) - {module}


def longest_chain(module: str, within_functions: bool, above: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The longest chain of imports that starts at `module`. Fails where a chain comes back to itself."""
    assert module not in above, " → ".join((*above[above.index(module) :], module))
    chain = (*above, module)
    below = imports_of(module, within_functions)
    return max((longest_chain(other, within_functions, chain) for other in below), key=len, default=chain)


def layer_of(module: str) -> int:
    name = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def test_no_two_files_import_each_other():
    for module in FILES:
        longest_chain(module, within_functions=True)


def test_no_chain_of_imports_is_long():
    """Of those that a start waits for: an import within a function may come much later, or never."""
    longest = max((longest_chain(module, within_functions=False) for module in FILES), key=len)
    assert len(longest) <= LONGEST_CHAIN, " → ".join(longest)


@pytest.mark.parametrize("module", [module for module in FILES if module != "lstmlab"])
def test_imports_run_downwards(module):
    above = [other for other in imports_of(module) if layer_of(other) > layer_of(module)]
    assert not above


def test_a_circle_is_noticed(monkeypatch):
    def round_trip(module: str, within_functions: bool) -> frozenset[str]:
        return frozenset({"lstmlab.atomic"} if module == "lstmlab.tables" else {"lstmlab.tables"})

    monkeypatch.setitem(globals(), "imports_of", round_trip)
    with pytest.raises(AssertionError, match=r"lstmlab\.atomic → lstmlab\.tables → lstmlab\.atomic"):
        longest_chain("lstmlab.atomic", within_functions=True)
