from typing import Any

import numpy as np
import pytest

from lstmlab.data.tokenization import (
    BOS,
    EOS,
    PAD,
    SPECIALS,
    UNK,
    delimit,
    encode,
    fit_and_encode,
    load_tokenizer,
    train_tokenizer,
)
from lstmlab.schema import TokensConfig

TEXTS = [
    "Not bad, isn't it?",
    "Zwei junge Männer überqueren die Straße...",
    "a man, a plan",
    "电影 is a film",
] * 3


def rows(encoded):
    return [part.tolist() for part in np.split(encoded.flat, encoded.offsets[1:-1])]


@pytest.mark.parametrize("kind", ["word", "bpe", "char"])
def test_special_ids_and_determinism(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 300, lowercase=False)
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == [PAD, BOS, EOS, UNK] == [0, 1, 2, 3]
    assert tokenizer.to_str() == train_tokenizer(TEXTS, kind, 300, lowercase=False).to_str()
    again = load_tokenizer(tokenizer.to_str())
    assert rows(encode(again, TEXTS)) == rows(encode(tokenizer, TEXTS))


def test_words():
    tokenizer = train_tokenizer(TEXTS, "word", 300, lowercase=True)
    words = [tokenizer.id_to_token(i) for i in rows(encode(tokenizer, [TEXTS[0]]))[0]]
    assert words == ["not", "bad", ",", "isn't", "it", "?"]
    assert tokenizer.encode("ÜBERQUEREN").ids == tokenizer.encode("überqueren").ids != [UNK]
    assert train_tokenizer(TEXTS, "word", 6, lowercase=True).get_vocab_size() == 6


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_decoding_gives_back_the_text(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 400, lowercase=False)
    texts = [*TEXTS, " a man", "  a man ", " ", "a  man"]
    assert tokenizer.decode_batch(rows(encode(tokenizer, texts))) == texts


def test_bytes_leave_no_text_unknown():
    tokenizer = train_tokenizer(["only ascii"], "bpe", 300, lowercase=False)
    text = "Ä 电影 🎬"
    ids = rows(encode(tokenizer, [text]))[0]
    assert UNK not in ids and tokenizer.decode(ids) == text


def test_unusual_texts():
    tokenizer = train_tokenizer(TEXTS, "word", 300, lowercase=True)
    long = "a plan " * 5000
    encoded = encode(tokenizer, ["", "  \n", "wholly unheard", "ελληνικά", "<eos> <pad>", long])
    assert rows(encoded)[:4] == [[UNK], [UNK], [UNK, UNK], [UNK]]
    assert not {PAD, BOS, EOS} & set(rows(encoded)[4])
    assert encoded.lengths[5] == 10_000


def test_delimit():
    tokenizer = train_tokenizer(TEXTS, "char", 300, lowercase=False)
    plain = encode(tokenizer, ["ab", "", "b"])
    assert rows(delimit(plain, BOS, EOS)) == [[BOS, *row, EOS] for row in rows(plain)]
    assert rows(delimit(plain, None, EOS)) == [[*row, EOS] for row in rows(plain)]


def choose(cache: str) -> TokensConfig:
    names: dict[str, Any] = {"name": "a data set", "batch_size": 1, "max_length": 9, "num_workers": 0}
    return TokensConfig(tokenizer="word", vocab_size=300, lowercase=True, cache=cache, **names)


def test_fit_and_encode_is_done_once(tmp_path):
    columns = {"train": TEXTS, "test": ["a man, unheard"]}
    config = choose(cache=str(tmp_path / "new"))
    tokenizer, encoded = fit_and_encode(columns, ["train"], config, None)
    assert rows(encoded["test"])[0][-1] == UNK  # the tokenizer has not seen the test column
    (file,) = (tmp_path / "new").iterdir()
    written = file.stat().st_mtime_ns
    again, same = fit_and_encode(columns, ["train"], config, None)
    assert file.stat().st_mtime_ns == written and again.to_str() == tokenizer.to_str()
    assert all(rows(same[name]) == rows(encoded[name]) for name in columns)


def test_what_lies_in_the_cache_is_that_of_the_same_settings(tmp_path):
    """One after the other in one cache, each with what the settings ask for."""
    columns = {"train": ["One two", "one three"], "test": ["Four"]}
    settings = choose(cache=str(tmp_path))

    def known(fit: list[str] | None = None, trained: str | None = None, **changes) -> set[str]:
        tokenizer, _ = fit_and_encode(columns, fit or ["train"], settings.replace(changes), trained)
        return set(tokenizer.get_vocab()) - set(SPECIALS)

    for _ in range(2):  # the second time out of the cache
        assert known() == {"one", "two", "three"}
        assert known(lowercase=False) == {"One", "one", "two", "three"}
        assert known(vocab_size=5) == {"one"}
        assert known(tokenizer="char") == set("one two three")
        assert known(fit=["train", "test"]) == {"one", "two", "three", "four"}
        assert known(fit=["test"]) == {"four"}
        assert known(trained=train_tokenizer(["five"], "word", 300, True).to_str()) == {"five"}
        assert known(trained=train_tokenizer(["six"], "word", 300, True).to_str()) == {"six"}
    for texts in (["another"], ["one"]):
        tokenizer, encoded = fit_and_encode(columns | {"test": texts}, ["train"], settings, None)
        assert rows(encoded["test"]) == [[tokenizer.token_to_id(texts[0]) or UNK]]
    swapped = {"train": columns["test"], "test": columns["train"]}
    tokenizer, encoded = fit_and_encode(swapped, ["train"], settings, None)
    assert set(tokenizer.get_vocab()) - set(SPECIALS) == {"four"} and len(encoded["test"]) == 2
    renamed = {"test": columns["train"], "train": columns["test"]}  # the same texts in the same order
    tokenizer, encoded = fit_and_encode(renamed, ["train"], settings, None)
    assert set(tokenizer.get_vocab()) - set(SPECIALS) == {"four"} and len(encoded["test"]) == 2


def test_more_texts_than_are_encoded_at_once():
    tokenizer = train_tokenizer(["a b c d"], "word", 300, lowercase=True)
    texts = [" ".join("abcd"[k % 4] for k in range(n % 7)) for n in range(2005)]
    expected = [[tokenizer.token_to_id(word) for word in text.split()] or [UNK] for text in texts]
    assert rows(encode(tokenizer, texts)) == expected


def test_refusals():
    with pytest.raises(ValueError, match=r"data\.tokenizer=wrod must be one of word, bpe, char"):
        train_tokenizer(TEXTS, "wrod", 300, lowercase=True)
    with pytest.raises(ValueError, match=r"data\.vocab_size=259 must be at least 260 for bpe"):
        train_tokenizer(TEXTS, "bpe", 259, lowercase=True)
    assert train_tokenizer(TEXTS, "bpe", 260, lowercase=True).get_vocab_size() == 260
