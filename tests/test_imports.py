"""Imports run one way, from the commands down to the ground, and never in a circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

from lstmlab.config import PROJECT

SOURCE = PROJECT / "src"
# From the ground up: a file may import files of its own layer or of those below.
LAYERS = (
    ("atomic", "distributed", "progress", "tables", "cells", "schema", "help", "json_schema", "config"),
    ("data",),
    ("models",),
    ("checkpoint", "loggers"),
    ("callbacks", "analysis", "pages"),
    ("export", "comparison", "runs"),
    ("benchmarks",),
    ("__main__",),
)
LONGEST_CHAIN = 8


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(SOURCE.glob("lstmlab/**/*.py"))}


@cache
def find_imports(module: str, within_functions: bool = True) -> frozenset[str]:
    """The files of lstmlab that `module` imports at its top and, unless excluded, inside functions."""
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


def find_longest_chain(module: str, within_functions: bool, above: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The longest chain of imports that starts at `module`. Fails if a chain returns to itself."""
    assert module not in above, " → ".join((*above[above.index(module) :], module))
    chain = (*above, module)
    below = find_imports(module, within_functions)
    return max(
        (find_longest_chain(other, within_functions, chain) for other in below), key=len, default=chain
    )


def find_layer(module: str) -> int:
    name = module.split(".")[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def test_no_two_files_import_each_other():
    for module in FILES:
        find_longest_chain(module, within_functions=True)


def test_no_chain_of_imports_is_long():
    """Without imports inside functions, which may come much later or never."""
    longest = max((find_longest_chain(module, within_functions=False) for module in FILES), key=len)
    assert len(longest) <= LONGEST_CHAIN, " → ".join(longest)


@pytest.mark.parametrize("module", [module for module in FILES if module != "lstmlab"])
def test_imports_run_downwards(module):
    above = [other for other in find_imports(module) if find_layer(other) > find_layer(module)]
    assert not above


def test_a_circle_is_noticed(monkeypatch):
    def round_trip(module: str, within_functions: bool) -> frozenset[str]:
        return frozenset({"lstmlab.atomic"} if module == "lstmlab.tables" else {"lstmlab.tables"})

    monkeypatch.setitem(globals(), "find_imports", round_trip)
    with pytest.raises(AssertionError, match=r"lstmlab\.atomic → lstmlab\.tables → lstmlab\.atomic"):
        find_longest_chain("lstmlab.atomic", within_functions=True)
