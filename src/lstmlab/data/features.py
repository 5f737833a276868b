"""What a model might keep in mind while it reads: features of a text that can be computed exactly.

Each is (N,), one number per step: what a reader knows after that step, without looking ahead.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np

Features = dict[str, np.ndarray]

LEXEME = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<triple>\"{3}|'{3}) (?:[^\\]|\\(?:.|\Z))*? (?:(?P=triple)|(?P<cut>\Z))
      | (?P<single>["'])     (?:[^\\\n]|\\(?:.|\Z))*? (?:(?P=single)|(?P<broken>(?=\n)|\Z))
      | (?P<open>[(\[{]) | (?P<close>[)\]}])""",
    re.DOTALL | re.VERBOSE,
)
QUOTES = ("", '"""', "'''")
PIECES = re.compile(r"(?<=\n)(?=[ \t]*(?:def|class|async def|@\w+)\b)")
WORD = re.compile(r"\w+(?:['’]\w+)*")


def position_in_text(lengths: np.ndarray) -> np.ndarray:
    """The number of each step in its own row, from 0 on; lengths (B,)."""
    return np.concatenate([np.arange(length) for length in lengths]).astype(np.float32)


def python(text: str) -> Features:
    """Features of Python source: indentation, strings, comments, brackets and the position in the line.

    The text may be any parts of files, one after the other, and may begin within a triple-quoted string. It
    is cut before definitions and decorators. Each piece is read as beginning in code or in a string
    of either kind; of all ways to read the pieces, that with the fewest errors is taken. A piece that does
    not begin where the last one ended counts as two errors.
    """
    readings = [{quotes: _scan(piece, quotes) for quotes in QUOTES} for piece in PIECES.split(text) if piece]
    paths = {quotes: (reading.errors, [quotes]) for quotes, reading in readings[0].items()}
    for before, piece in itertools.pairwise(readings):
        steps = {
            quotes: min(
                (cost + piece[quotes].errors + 2 * (before[path[-1]].end != quotes), path)
                for cost, path in paths.values()
            )
            for quotes in QUOTES
        }
        paths = {quotes: (cost, [*path, quotes]) for quotes, (cost, path) in steps.items()}
    _, path = min(paths.values())
    chosen = [piece[quotes] for piece, quotes in zip(readings, path, strict=True)]
    return {
        "indentation": indentation(text),
        "inside a string": np.concatenate([reading.string for reading in chosen]),
        "inside a comment": np.concatenate([reading.comment for reading in chosen]),
        "bracket depth": np.concatenate([reading.depth for reading in chosen]),
        "position in line": position_in_line(text),
    }


class _Reading(NamedTuple):
    errors: int
    string: np.ndarray  # (N,), as the others: 1 in a string
    comment: np.ndarray  # 1 in a comment
    depth: np.ndarray  # brackets open
    end: str  # the quotes of the string in which it ends, or ""


def _scan(text: str, quotes: str) -> _Reading:
    """The text, taken to begin within a string of such quotes, or with "" in code."""
    text = quotes + text
    errors, depth, end = 0, 0, ""
    string, comment, change = (np.zeros(len(text), np.float32) for _ in range(3))
    for match in LEXEME.finditer(text):
        start, stop = match.span()
        if match["comment"]:
            comment[start:stop] = 1
        elif match["open"]:
            depth += 1
            change[start] = 1
        elif match["close"]:
            errors += depth == 0
            change[start] = -(depth > 0)
            depth = max(0, depth - 1)
        else:
            unfinished = match["cut"] is not None or match["broken"] is not None
            errors += unfinished
            end = match["triple"] if match["cut"] is not None else ""
            string[start : stop if unfinished else stop - 1] = 1
    cut = len(quotes)
    return _Reading(errors, string[cut:], comment[cut:], change.cumsum()[cut:], end)


def indentation(text: str) -> np.ndarray:
    """Blanks and tabs at the start of the line, as far as the line has been read."""
    indents = [
        np.minimum(np.arange(1, len(line) + 2), len(line) - len(line.lstrip(" \t")))
        for line in text.split("\n")  # each with the line break after it
    ]
    return np.concatenate(indents)[:-1].astype(np.float32)


def position_in_line(text: str) -> np.ndarray:
    """Characters since the last line break, this one included; a line break itself is 0."""
    lines = text.split("\n")
    columns = np.concatenate([np.arange(len(line) + 1) for line in lines])  # each with the break before it
    return columns[1:].astype(np.float32)


def english(text: str) -> Features:
    """Features of prose: inside double quotes (an empty line ends them), the position in line and in word."""
    quotes, inside, word = np.zeros(len(text), np.float32), False, np.zeros(len(text), np.float32)
    for mark in re.finditer(r"[\"“”]|\n\n", text):
        opens = mark[0] == "“" or (mark[0] == '"' and not inside)
        if opens != inside:
            quotes[mark.start() :] = inside = opens
    for match in WORD.finditer(text):
        word[slice(*match.span())] = np.arange(1, len(match[0]) + 1)
    return {"inside quotes": quotes, "position in line": position_in_line(text), "position in word": word}


def symbols_held(symbols: np.ndarray, shown: np.ndarray, T: int, kinds: int) -> Features:
    """Features of the copy tasks: each symbol, −1 to 1, while it has to be held; otherwise 0.

    symbols (B, K), of so many kinds, shown at the steps (B, K) and repeated at the last K of T steps.
    """
    t, K = np.arange(T), symbols.shape[1]
    values = 2 * symbols / (kinds - 1) - 1  # (B, K)
    found = {}
    for k in range(K):
        held = (shown[:, k : k + 1] <= t) & (t < T - K + k)  # (B, T)
        found[f"symbol {k + 1} of {K}"] = (held * values[:, k : k + 1]).ravel().astype(np.float32)
    return found
