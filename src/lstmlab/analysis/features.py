"""What a model might keep in mind while it reads: features of a text whose truth can be computed.

Each is (N,), a number a step: what a reader knows after that step, without a look ahead.
"""

import re
from typing import Any

import numpy as np

from lstmlab.analysis.traces import Rows, tokens

Features = dict[str, np.ndarray]

LEXEME = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<triple>\"{3}|'{3}) (?:[^\\]|\\(?:.|\Z))*? (?:(?P=triple)|(?P<cut>\Z))
      | (?P<single>["'])     (?:[^\\\n]|\\(?:.|\Z))*? (?:(?P=single)|(?P<broken>(?=\n)|\Z))
      | (?P<open>[(\[{]) | (?P<close>[)\]}])""",
    re.DOTALL | re.VERBOSE,
)
WORD = re.compile(r"\w+(?:['’]\w+)*")


def features(model: Any, rows: Rows, language: str | None) -> Features:
    """The features of the model's task; language: python or english, None: as data=stdlib or others are."""
    name = model.config["model"]["name"]
    if name == "charlm":
        stdlib = model.config["data"]["name"] == "stdlib"
        kind = python if language == "python" or (language is None and stdlib) else english
        return kind("".join(tokens(model, rows)))
    if name == "copytask":
        return bits_held(rows.ids.numpy(), model.info["symbols"], model.info["length"])
    step = np.concatenate([np.arange(length) for length in rows.lengths.tolist()])
    found = {"position in text": step.astype(np.float32)}
    if rows.labels is not None:
        labels = np.repeat(rows.labels.numpy(), rows.lengths.numpy())
        found = {"verdict of the review": labels.astype(np.float32)} | found
    return found


def python(text: str) -> Features:
    """Of Python source: indentation, inside a string, inside a comment, bracket depth, position in line.

    The text may be any part of a file. It may begin within a triple-quoted string: of that and the
    plain reading, the one with fewer errors is taken.
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
    """Errors found, and (N,) each: in a string, in a comment, brackets open; `quotes` open the text."""
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
    """Blanks and tabs at the start of the line, as far as it has been read."""
    indents = [
        np.minimum(np.arange(1, len(line) + 2), len(line) - len(line.lstrip(" \t")))
        for line in text.split("\n")  # each with its break
    ]
    return np.concatenate(indents)[:-1].astype(np.float32)


def position_in_line(text: str) -> np.ndarray:
    """Characters since the last line break, this one counted; a line break is 0."""
    lines = text.split("\n")
    columns = np.concatenate([np.arange(len(line) + 1) for line in lines])  # each begins with its break
    return columns[1:].astype(np.float32)


def english(text: str) -> Features:
    """Of prose: inside double quotes (an empty line ends them), position in line and in word."""
    quotes, inside, word = np.zeros(len(text), np.float32), False, np.zeros(len(text), np.float32)
    for mark in re.finditer(r"[\"“”]|\n\n", text):
        opens = mark[0] == "“" or (mark[0] == '"' and not inside)
        if opens != inside:
            quotes[mark.start() :] = inside = opens
    for match in WORD.finditer(text):
        word[slice(*match.span())] = np.arange(1, len(match[0]) + 1)
    return {"inside quotes": quotes, "position in line": position_in_line(text), "position in word": word}


def bits_held(ids: np.ndarray, symbols: int, length: int) -> Features:
    """Of the copy task, for each place: its symbol, −1 to 1, while it has to be held."""
    B, T = ids.shape
    found = {}
    for k in range(length):
        held = np.zeros((B, T), np.float32)
        held[:, k : T - length + k] = 2 * ids[:, k : k + 1] / (symbols - 1) - 1
        found[f"symbol {k + 1} of {length}"] = held.ravel()
    return found
