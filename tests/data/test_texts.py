import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmlab.data.codecs import Tokens
from lstmlab.data.tokenization import BOS, EOS, PAD, UNK, train_tokenizer

TEXTS = [f"Number {n} is {'even' if n % 2 == 0 else 'odd'}, and {n * n} its square" for n in range(200)]
SIZES = {"batch_size": 4, "sequence_length": 10}


def write(path: Path, texts, column="text") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(column, "n"), *((text, n) for n, text in enumerate(texts))])
    return str(path)


@pytest.fixture
def build(module, tmp_path):
    """build(tokenizer="bpe", …): the data module of TEXTS with these settings."""
    path = write(tmp_path / "texts.csv", TEXTS)
    return lambda info=None, **changes: module("texts", info=info, **SIZES | {"path": path} | changes)


def split_texts(built, start: int, stop: int) -> list[str]:
    """The texts of a part, which begins and ends with EOS."""
    ids = built.read_ids(start, stop - start)
    ends = np.flatnonzero(ids == EOS)
    assert ends[0] == 0 and ends[-1] == len(ids) - 1
    decode = Tokens(built.info["tokenizer"], "bpe").decode
    return [decode(ids[a:b].tolist()) for a, b in pairwise(ends)]


def test_each_part_is_its_texts_with_an_end_after_each(build):
    built = build(tokenizer="bpe", vocab_size=300, lowercase=False)
    total = built.meta["total"]
    parts = [split_texts(built, *at) for at in ((0, built.meta["train"]), (built.meta["train"], built.stop))]
    parts.append(split_texts(built, built.stop, total))
    assert [len(part) for part in parts] == [160, 20, 20]
    assert sorted(text for part in parts for text in part) == sorted(TEXTS)
    assert parts[0] == [text for text in TEXTS if text in parts[0]]  # in the order of the file
    tested = torch.cat([batch.targets for batch in built.test_dataloader()], 1)[0]
    assert tested.tolist() == built.read_ids(built.stop + 1, total).tolist()
    assert "160 rows to train, 20 rows to validate (split off), 20 rows to test" in built.info["source"]


def test_training_texts_that_are_held_out_are_left_out(module, tmp_path):
    """Also markup, whose removal both commands of a recipe name, and a column of another name."""
    texts = [f"<b>{text}</b>" for text in TEXTS]
    for part, rows in {"train": texts, "val": texts[:45], "test": texts[35:60]}.items():
        write(tmp_path / f"{part}.csv", rows, "review")
    built = module(
        "texts",
        path=str(tmp_path),
        text="review",
        strip_markup=True,
        tokenizer="bpe",
        vocab_size=300,
        **SIZES,
    )
    found = split_texts(built, 0, built.meta["train"])
    assert len(found) == 140 and found[0].strip() == TEXTS[60].lower()
    assert "occur in val or test too: 60; texts of val that occur in test too: 10" in built.info["source"]
    limited = module("texts", path=str(tmp_path), text="review", max_val_tokens=257, **SIZES)
    assert limited.stop - limited.meta["train"] == 257


def test_a_checkpoints_tokenizer_is_kept(build, tmp_path):
    first = build(tokenizer="char")
    other = write(tmp_path / "other.csv", [text.replace("square", "電") for text in TEXTS[:120]])
    again = build(info=first.info, tokenizer="char", path=other)
    assert again.info["tokenizer"] == first.info["tokenizer"]
    assert build(tokenizer="char", path=other).info["tokenizer"] != first.info["tokenizer"]
    ids = again.read_ids(0, again.meta["total"])
    assert (ids == UNK).sum() == 3 * 120  # whole, in each part
    assert again.stop - again.meta["train"] == again.meta["train"] == again.meta["total"] - again.stop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "review"}, "has no column review, only text, n"),
        ({"sequence_length": 10_000}, "tokens to train on, fewer than data.batch_size=4"),
        ({"val_fraction": 0.01}, "leaves 21 of .* tokens for validation, which needs more than 256"),
    ],
)
def test_unsuitable_texts_are_refused(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize("kind", ["word", "bpe", "char"])
def test_a_continuation_reads_as_the_whole_text(kind):
    """Whatever the blocks: never half a character, and nothing after the end of the text."""
    texts = ["a film 電影 😀!", "the end"]
    codec = Tokens(train_tokenizer(texts, kind, 300, False).to_str(), kind)
    ids, more = codec.encode(texts[0]), codec.encode(texts[1])
    drawn = torch.tensor([[*ids[2:], EOS, *more]])
    for size in (1, 2, 16):
        pieces = list(codec.continue_text([EOS, *ids[:2]], drawn.split(size, 1)))
        assert "".join(pieces) == codec.decode(ids)[len(codec.decode(ids[:2])) :]
        assert "\ufffd" not in "".join(pieces)
    assert codec.encode_prompt("") == [EOS] and set(codec.never_drawn) == {PAD, BOS, UNK}
