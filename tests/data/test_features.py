import io
import sysconfig
import token as tokens
import tokenize
from pathlib import Path

import numpy as np
import pytest

from lstmlab.data.features import english, position_in_line, position_in_text, python, symbols_held

CODE = """\
def f(x):  # it's (one
    return {'a': [x,
      "\\"(" ]}
'''it's
# no'''
"""


def labelled(values: np.ndarray, text: str) -> list[str]:
    """The labels as digits, cut as the text's lines are."""
    digits = iter("".join(str(int(value)) for value in values))
    return ["".join(next(digits) for _ in line) for line in text.splitlines(keepends=True)]


def test_python_by_hand():
    found = python(CODE)
    #   def f(x):  # it's (one⏎
    #       return {'a': [x,⏎
    #         "\"(" ]}⏎
    #   '''it's⏎
    #   # no'''⏎
    assert labelled(found["indentation"], CODE) == [
        "00000000000000000000000",
        "123444444444444444444",
        "123456666666666",
        "00000000",
        "00000000",
    ]
    assert labelled(found["inside a string"], CODE) == [
        "00000000000000000000000",
        "000000000000110000000",
        "000000111100000",
        "11111111",
        "11111100",
    ]
    assert labelled(found["inside a comment"], CODE) == [
        "00000000000111111111110",
        "0" * 21,
        "0" * 15,
        "0" * 8,
        "0" * 8,
    ]
    assert labelled(found["bracket depth"], CODE) == [
        "00000110000000000000000",
        "000000000001111112222",
        "222222222222100",
        "0" * 8,
        "0" * 8,
    ]


def oracle(source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In a string, in a comment, brackets open, as the tokenize module sees them."""
    starts = np.cumsum([0] + [len(line) for line in source.splitlines(keepends=True)])
    string, comment, change = (np.zeros(len(source)) for _ in range(3))
    nested, begin = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        start, end = (int(starts[row - 1]) + column for row, column in (token.start, token.end))
        name = tokens.tok_name[token.type]
        if name == "FSTRING_START":  # from Python 3.12 on
            begin = start if nested == 0 else begin
            nested += 1
        elif name == "FSTRING_END":
            nested -= 1
        if nested:
            continue
        if name in ("STRING", "FSTRING_END"):
            start = begin if name == "FSTRING_END" else start
            quote = min(i for i in (source.find("'", start), source.find('"', start)) if i >= 0)
            string[quote : end - 1] = 1
        elif name == "COMMENT":
            comment[start:end] = 1
        elif token.string and token.string in "([{":
            change[start] = 1
        elif token.string and token.string in ")]}":
            change[start] = -1
    return string, comment, change.cumsum()


@pytest.mark.parametrize("module", ["argparse", "textwrap", "tokenize", "doctest", "json/decoder", "string"])
def test_python_as_the_tokenize_module_sees_it(module):
    source = (Path(sysconfig.get_path("stdlib")) / f"{module}.py").read_text(encoding="utf-8")
    found = python(source)
    expected = oracle(source)
    for name, truth in zip(("inside a string", "inside a comment", "bracket depth"), expected, strict=True):
        np.testing.assert_array_equal(found[name], truth, err_msg=name)


@pytest.mark.parametrize("cut", [3000, 4321, 9999, 16000])
def test_python_of_a_text_that_begins_anywhere(cut):
    """Also within a docstring: the labels are those that the whole file gives."""
    source = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
    whole, part = python(source), python(source[cut:])
    for name in ("inside a string", "inside a comment"):
        agree = whole[name][cut:] == part[name]
        assert agree[200:].all(), name  # a comment or a plain string may have been cut


def test_indentation_and_position_count_what_was_read():
    text = "a\n  b\n\n\tc\x0cd"
    assert python(text)["indentation"].tolist() == [0, 0, 1, 2, 2, 2, 0, 1, 1, 1, 1]
    assert position_in_line(text).tolist() == [1, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4]


def test_english():
    text = "It's \"so, I\n\nam “A” b"
    found = english(text)
    assert labelled(found["position in word"], text) == ["123400120010", "0", "120010" + "01"]
    assert labelled(found["inside quotes"], text) == ["000001111110", "0", "00011000"]
    assert found["position in line"].tolist()[9:16] == [10, 11, 0, 0, 1, 2, 3]


def test_position_in_text():
    assert position_in_text(np.array([3, 1, 2])).tolist() == [0, 1, 2, 0, 0, 1]


def test_symbols_held():
    """Rows 1 0 · ? · · and 0 0 · ? · ·; and 1 · 0 · ? · ·, whose symbols stand apart."""
    found = symbols_held(np.array([[1, 0], [0, 0]]), np.array([[0, 1], [0, 1]]), T=6, kinds=2)
    assert found["symbol 1 of 2"].tolist() == [1, 1, 1, 1, 0, 0, -1, -1, -1, -1, 0, 0]
    assert found["symbol 2 of 2"].tolist() == [0, -1, -1, -1, -1, 0, 0, -1, -1, -1, -1, 0]
    found = symbols_held(np.array([[1, 0]]), np.array([[0, 2]]), T=7, kinds=2)
    assert found["symbol 1 of 2"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert found["symbol 2 of 2"].tolist() == [0, 0, -1, -1, -1, -1, 0]


def test_python_finds_its_way_after_each_cut():
    """Stretches from the middle of files, as in the held-out text of data=stdlib."""
    sources = [
        Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text() for name in ("argparse", "doctest")
    ]
    texts, truths = [], []
    for start in range(3000, 80_000, 7000):
        source = sources[start % 2]
        whole = python(source)
        texts.append(source[start % len(source) : start % len(source) + 2500])
        truths.append({name: v[start % len(source) :][: len(texts[-1])] for name, v in whole.items()})
    found = python("".join(texts))
    for name in ("inside a string", "inside a comment"):
        truth = np.concatenate([part[name] for part in truths])
        assert 0.05 < truth.mean() < 0.95
        assert np.corrcoef(found[name], truth)[0, 1] > 0.8, name
