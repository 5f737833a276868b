"""Each measure against its definition, written out as slow loops."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lstmlab.analysis.written import (
    find_copied_runs,
    measure_coverage,
    measure_distinct,
    split_words,
    write_ngram_text,
)
from lstmlab.checkpoint import load_model


def longest_from(text: str, i: int, corpus: str) -> int:
    return max(n for n in range(len(text) - i + 1) if text[i : i + n] in corpus)


def random_text(letters: str, length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


CORPUS = random_text("ab\n", 300, 0)


@pytest.mark.parametrize(
    ("texts", "corpus"),
    [
        ([random_text("ab\n", 60, 1), CORPUS[17:90] + "é" + CORPUS[200:], "", CORPUS[-9:] + "a"], CORPUS),
        ([CORPUS, CORPUS[3:]], CORPUS),
        (["aaaaaaaaaaaaa", "aaab", "xyz", CORPUS], "aaaaa"),
        ([random_text("aé电\ufffd🙂", 50, 3), "b", "\0a"], random_text("aé电\ufffd🙂", 400, 4)),
        (["", ""], "abc"),
        (["abcabc"], "c"),
    ],
)
def test_copied_runs(texts, corpus):
    found = find_copied_runs(texts, corpus)
    assert [run.tolist() for run in found] == [
        [longest_from(text, i, corpus) for i in range(len(text))] for text in texts
    ]


@pytest.mark.parametrize("least", [1, 4, 5, 6, 20])
def test_covered(least):
    text = random_text("abc", 200, 5)
    [runs] = find_copied_runs([text], random_text("abc", 100, 6))
    inside = [any(runs[j] >= least and j <= i < j + runs[j] for j in range(200)) for i in range(200)]
    assert measure_coverage(runs, least) == pytest.approx(np.mean(inside))


def test_words():
    assert split_words("ut Don't, SAY 'tis_2 étés ca") == ["don't", "say", "tis_2", "étés"]
    assert split_words(" a ") == ["a"] and split_words("a") == split_words("") == []


def test_distinct():
    texts = [["a", "b", "a", "b", "c"], ["a", "b"], []]
    assert measure_distinct(texts, 1) == 3 / 7
    assert measure_distinct(texts, 2) == 3 / 5  # ab ba bc; none across two texts
    assert measure_distinct(texts, 3) == 1
    assert math.isnan(measure_distinct(texts, 6))


def test_ngrams_follow_the_corpus():
    corpus = random_text("abcd ", 5000, 7)
    text = write_ngram_text(corpus, "the", 3000, 3, seed=0)
    assert len(text) == 3000 and text == write_ngram_text(corpus, "the", 3000, 3, seed=0)
    assert text != write_ngram_text(corpus, "the", 3000, 3, seed=1)
    windows = {text[i : i + 4] for i in range(2997)}
    assert all(window in corpus for window in windows) and len(windows) > 400
    # "bc" ends the corpus: nothing follows it
    assert write_ngram_text("abc", "abc", 3, 2, seed=0)[0] in "abc"


def test_ngrams_have_the_corpus_frequencies():
    """In the corpus, "a" is followed by "b" three times out of four, evenly spread."""
    corpus = "abababac" * 50
    followers = [write_ngram_text(corpus, "a", 1, 1, seed=seed) for seed in range(2000)]
    assert followers.count("b") / 2000 == pytest.approx(3 / 4, abs=0.04)


def test_the_report_tabulates_each_measure(trained, command, text_file, tmp_path):
    """Compared with prompts cut by hand, texts from the sampler, and the loss of one text at a time."""
    ckpt = trained("charlm")
    arguments = [f"ckpt={ckpt}", f"data.cache={tmp_path}", f"folder={tmp_path}/x", "page_steps=100"]
    code, out, error = command("analyze", *arguments, "probe_steps=0", f"data.path={text_file}")
    assert code == 0, error
    section = out.partition("## What it writes\n")[2]
    assert "20 texts of 25 characters, each after 5 held-out ones" in section
    assert "first 5,400 characters of the training text" in section
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    table = {name: values for name, *values in lines}

    model: Any = load_model(str(ckpt))
    whole = text_file.read_text(encoding="utf-8")
    corpus, starts = whole[:5400], range(5400, 6000, 30)
    prompts = torch.tensor([[model.vocabulary.index(c) for c in whole[s : s + 5]] for s in starts])
    sampled = torch.cat(list(model.sample_ids(prompts, 25, temperature=0.8)), 1)
    ids = {
        "held-out text": [[model.vocabulary.index(c) for c in whole[s + 5 : s + 30]] for s in starts],
        "the model, temperature 0.8": sampled.tolist(),
    }
    for name, rows in ids.items():
        texts = ["".join(model.vocabulary[i] for i in row) for row in rows]
        found = [split_words(text) for text in texts]
        known = [word in split_words(corpus) for text in found for word in text]
        runs = [longest_from(text, i, corpus) for text in texts for i in range(25)]
        with torch.inference_mode():
            losses = [
                F.cross_entropy(model(torch.tensor([[*p, *row]]))[0][0, 4:-1], torch.tensor(row))
                for p, row in zip(prompts.tolist(), rows, strict=True)
            ]
        assert table[name][:-1] == [
            f"{np.mean(losses):.3f}",
            f"{np.mean(known):.1%} of {len(known)}",
            f"{max(runs)}",
            f"{np.mean(runs):.1f}",
            "0.0%",
            *(f"{measure_distinct(found, n):.2f}" for n in (1, 2, 3)),
        ]
        new = [word for word in table[name][-1].split(", ") if word]
        assert len(new) > 0 and not set(new) & set(split_words(corpus))
        if name != "held-out text":
            assert "    " + texts[0].replace("\n", "\n    ") in section
