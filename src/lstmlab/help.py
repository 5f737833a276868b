"""The text of `--help`: Hydra's template, with the comments of conf/ beside the keys."""

import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import takewhile, zip_longest
from pathlib import Path
from string import Template

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

PACKAGE = Path(__file__).parent
IN_REPOSITORY = not (PACKAGE / "conf").is_dir()
CONF = (PACKAGE.parents[1] if IN_REPOSITORY else PACKAGE) / "conf"
WIDTH, COMMENT_COLUMN = 100, 46


def find_yaml(pattern: str) -> list[Path]:
    """The files of conf/, and of a folder conf/ of the user's own in the current folder."""
    return sorted({*CONF.glob(pattern), *Path("conf").absolute().glob(pattern)})


def show_as_typed(text: str) -> str:
    """`text` with its commands as they are typed here: `lstmlab train` instead of `python src/train.py`."""
    by_name = sys.argv[0].startswith("lstmlab ") or not IN_REPOSITORY
    return (
        re.sub(r"src/(\w+)\.py", r"-m lstmlab \1", text).replace("python -m lstmlab", "lstmlab")
        if by_name
        else text
    )


def walk_keys(node: yaml.Node | None, path: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """The path, key and value of every key below `node`. Items of a list have the path of the list."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from walk_keys(item, path)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = f"{path}.{key.value}".removeprefix(".")
            yield below, key, value
            yield from walk_keys(value, below)


def find_package(file: Path) -> str:
    """The path of the key under which Hydra puts a file of conf/."""
    root = CONF if file.is_relative_to(CONF) else Path("conf").absolute()
    *folders, name = file.relative_to(root).with_suffix("").parts
    if folders == ["base"]:
        return name
    return "" if "# @package _global_" in file.read_text(encoding="utf-8") else ".".join(folders)


def read_comments(file: Path) -> dict[str, str]:
    """The comments in a file of conf/ by key path: {"cell.dropout": "between the layers of the stack"}.

    A comment follows its value and may continue, indented, on the lines below; or it stands right above its
    key. The comment at the top of the file is that of its group.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    header = list(takewhile(lambda line: line.startswith("#"), lines))
    blocks = {file.parent.name: [line for line in header if not re.match("# (@|yaml-)", line)]}
    done = len(header)  # lines whose comments belong to an earlier key

    for path, key, value in walk_keys(yaml.compose("\n".join(lines)), find_package(file)):
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if block or getattr(value, "style", None) == "|" else value.end_mark
        trailing = lines[end.line : end.line + 1]
        if trailing and (comment := re.match(r":?\s*(#.*)", trailing[0][end.column :])):
            more = re.compile(r"\s*#" if block else r"#\s{3,}")
            blocks[path] = [comment[1], *takewhile(more.match, lines[end.line + 1 :])]
            done = end.line + len(blocks[path])
        else:
            backwards = lines[done : key.start_mark.line][::-1]
            if above := [*takewhile(lambda line: line.strip().startswith("#"), backwards)]:
                blocks[path] = above[::-1]
    comments = {path: " ".join(line.strip(" #") for line in block) for path, block in blocks.items()}
    return {path: comment for path, comment in comments.items() if comment}


def place_beside(left: list[str], comment: str) -> Iterator[str]:
    """The lines `left` with the comment in its column, or below them if they reach into that column."""
    right = textwrap.wrap(comment, WIDTH - COMMENT_COLUMN - 2, break_long_words=False, break_on_hyphens=False)
    if any(len(line) > COMMENT_COLUMN - 2 for line in left):
        right = [""] * len(left) + right
    for text, remark in zip_longest(left, right, fillvalue=""):
        yield f"{text:{COMMENT_COLUMN}}# {remark}" if remark else text


def format_help(command: str, overrides: list[str]) -> str:
    """The help of a command with these overrides. Raises HydraException for a wrong override."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = compose(command, overrides, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list(command, overrides, RunMode.RUN).defaults
    comments: dict[str, str] = {}
    for default in defaults:
        for file in find_yaml(f"{default.config_path}.yaml"):  # none for a file of Hydra
            comments = read_comments(file) | comments

    groups: list[str] = []
    for group in sorted({file.parent.name for file in find_yaml("*/*.yaml")} - {"base"}):
        options = ", ".join(sorted(file.stem for file in find_yaml(f"{group}/*.yaml")))
        left = textwrap.wrap(f"{group}: {options}", COMMENT_COLUMN - 2, subsequent_indent="  ")
        groups += place_beside(left, comments.get(f"defaults.{group}", ""))

    shown = OmegaConf.to_yaml(
        OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    )
    paths = {key.start_mark.line: path for path, key, _ in walk_keys(yaml.compose(shown))}
    settings: list[str] = []
    for number, line in enumerate(shown.splitlines()):
        settings += place_beside([line], comments.get(paths.get(number, ""), ""))

    template = Template(show_as_typed(composed.hydra.help.template))
    return template.substitute(APP_CONFIG_GROUPS="\n".join(groups) + "\n", CONFIG="\n".join(settings) + "\n")
