"""What a model might keep in mind while it reads: features of a text that can be computed exactly.

Each is (N,), one number per step: what a reader knows after that step, without looking ahead.
"""

import re

import numpy as np

Features = dict[str, np.ndarray]

LEXEME = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<triple>\"{3}|'{3}) (?:[^\\]|\\(?:.|\Z))*? (?:(?P=triple)|(?P<cut>\Z))
      | (?P<single>["'])     (?:[^\\\n]|\\(?:.|\Z))*? (?:(?P=single)|(?P<broken>(?=\n)|\Z))
      | (?P<open>[(\[{]) | (?P<close>[)\]}])""",
    re.DOTALL | re.VERBOSE,
)
WORD = re.compile(r"\w+(?:['’]\w+)*")


def position_in_text(lengths: np.ndarray) -> np.ndarray:
    """The number of each step in its own row, from 0 on; lengths (B,)."""
    return np.concatenate([np.arange(length) for length in lengths]).astype(np.float32)


def python(text: str) -> Features:
    """Features of Python source: indentation, strings, comments, brackets and the position in the line.

    The text may be any part of a file, and may begin within a triple-quoted string. It is read both ways,
    and the reading with fewer errors is taken.
    """
    readings = [_scan(text, quotes) for quotes in ("", '"""', "'''")]
    _, string, comment, depth = min(readings, key=lambda reading: reading[0])
    return {
        "indentation": indentation(text),
        "inside a string": string,
        "inside a comment": comment,
        "bracket depth": depth,
        "position in line": position_in_line(text),
    }


def _scan(text: str, quotes: str) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """The number of errors, and (N,) each: in a string, in a comment, brackets open.

    quotes: what the text is taken to begin within, "" for nothing.
    """
    text = quotes + text
    errors, depth = 0, 0
    string, comment, change = (np.zeros(len(text), np.float32) for _ in range(3))
    for match in LEXEME.finditer(text):
        start, end = match.span()
        if match["comment"]:
            comment[start:end] = 1
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
            string[start : end if unfinished else end - 1] = 1
    cut = len(quotes)
    return errors, string[cut:], comment[cut:], change.cumsum()[cut:]


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
