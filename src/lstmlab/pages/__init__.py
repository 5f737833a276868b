"""Web pages, each one file that asks no network: models that run, and what is inside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def assemble_page(
    task: str, scripts: Sequence[str], meta: Mapping[str, Any], blocks: Mapping[str, str]
) -> str:
    """The frame page.html with the file `task`: its markup, and its script after shared.js and the `scripts`.

    meta: what the scripts know as `meta`, with title and subtitle. blocks: other data as text, by id.
    """
    markup, _, script = read_file(task).partition("<script>")
    page = read_file("page.html")
    for mark, content in {
        "/* STYLE */": read_file("style.css"),
        "<!-- TASK -->": markup,
        "/* SCRIPTS */": "\n".join(
            [*map(read_file, ["shared.js", *scripts]), script.removesuffix("</script>\n")]
        ),
        "<!-- META -->": json.dumps(meta, separators=(",", ":")).replace("<", "\\u003c"),
        "<!-- BLOCKS -->": "\n".join(
            f'<script type="text/plain" id="{id}">{block}</script>' for id, block in blocks.items()
        ),
    }.items():
        page = page.replace(mark, content, 1)
    return page


def read_file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
