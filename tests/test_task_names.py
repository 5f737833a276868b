"""Only the tasks and their data sets know the names of tasks; all other files call methods of the task."""

import ast

import pytest

from lstmlab.config import PROJECT

SOURCE = PROJECT / "src"
NAMES = {path.stem for path in (PROJECT / "conf/model").glob("*.yaml")}
OWN = ("models/", "data/", "schema.py")  # below src/lstmlab
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}
OTHERS = [name for name in FILES if not name.removeprefix("lstmlab/").startswith(OWN)]


def find_comparisons(code: str) -> list[str]:
    """The expressions in a file that compare the name of a task."""
    places = []
    for node in ast.walk(ast.parse(code)):
        named = isinstance(node, ast.Constant) and node.value in NAMES
        compared = isinstance(node, (ast.Compare, ast.Match)) and any(
            text in ast.unparse(node.left if isinstance(node, ast.Compare) else node.subject)
            for text in ("['model']['name']", "model.name")
        )
        if named or compared:
            places.append(ast.unparse(node))
    return places


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_file_compares_the_name_of_a_task(name):
    assert find_comparisons(FILES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        'name == "charlm"',
        'config["model"]["name"] == name',
        "config.model.name in names",
        'task in ("seq2seq", "x")',
        'match config["model"]["name"]:\n    case x: pass',
    ],
)
def test_a_comparison_is_noticed(code):
    assert {"charlm", "copytask", "sentiment", "seq2seq"} <= NAMES and find_comparisons(code)
    assert (
        find_comparisons('model_class(config["model"]["name"])')
        == find_comparisons('f"model={model.name}"')
        == []
    )
