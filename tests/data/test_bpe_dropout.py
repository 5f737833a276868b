import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from lstmlab.data import bpe_dropout
from lstmlab.data.bpe_dropout import BPEDropout
from lstmlab.data.tokenization import encode, train_tokenizer
from lstmlab.data.translation import decode_targets
from lstmlab.runs.train import train
from same_end import assert_same_end, resume

TEXTS = [
    "bananas and anagrams, banana bread and bandanas",
    "",
    "aaaaaaaaaaaaa!",
    "Größe  «mit» 电影 ☃\n\tund <eos>",
    "x" * 70,
]
DATES = {
    "train_size": 60,
    "val_size": 10,
    "test_size": 10,
    "batch_size": 8,
    "tokenizer": "bpe",
    "vocab_size": 330,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS, TEXTS[0], TEXTS[2]], "bpe", 320, lowercase=False)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 15])
def test_without_dropout_it_is_the_bpe_of_tokenizers(tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(bpe_dropout, "CHUNK", chunk)
    for texts in (TEXTS, TEXTS[::-1], [""], ["", "", "a"], []):
        found, expected = (
            BPEDropout(tokenizer, texts, 0.0).encode(np.random.default_rng(0)),
            encode(tokenizer, texts),
        )
        assert found.flat.tolist() == expected.flat.tolist()
        assert found.offsets.tolist() == expected.offsets.tolist()


def chances(
    word: tuple[str, ...], ranks: dict[tuple[str, str], int], p: float
) -> dict[tuple[str, ...], float]:
    """{segmentation: probability} of Algorithm 1 of Provilkov et al. 2020, by enumeration."""
    possible = sorted((ranks[pair], i) for i, pair in enumerate(itertools.pairwise(word)) if pair in ranks)
    found = defaultdict(float, {word: p ** len(possible)})  # all of them fail
    for earlier, (_, i) in enumerate(possible):
        merged = (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
        for end, chance in chances(merged, ranks, p).items():
            found[end] += p**earlier * (1 - p) * chance
    return found


def test_segmentations_have_the_probabilities_of_the_algorithm(tokenizer):
    """Within four standard deviations, for each of those that are not rare."""
    n, p = 30_000, 0.3
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    expected = chances(tuple("Ġbanana"), {pair: rank for rank, pair in enumerate(merges)}, p)
    assert sum(expected.values()) == pytest.approx(1) and len(expected) > 10
    tokens = BPEDropout(tokenizer, ["banana"] * n, p).encode(np.random.default_rng(0))
    texts = [tokenizer.id_to_token(i) for i in tokens.flat]
    found = Counter(tuple(texts[a:b]) for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False))
    assert found.keys() <= expected.keys()
    for segmentation, chance in expected.items():
        if n * chance > 20:
            deviation = np.sqrt(n * chance * (1 - chance))
            assert abs(found[segmentation] - n * chance) < 4 * deviation, segmentation


def test_texts_stay_the_same_and_their_tokens_do_not(tokenizer):
    dropout = BPEDropout(tokenizer, TEXTS, 0.5)
    first, again, other = (dropout.encode(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.flat.tolist() == again.flat.tolist() != other.flat.tolist()
    for tokens in (first, other):
        ids = [tokens.flat[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]
        assert tokenizer.decode_batch(ids) == TEXTS
        assert len(tokens.flat) > len(encode(tokenizer, TEXTS).flat)


def read_epochs(built, count: int) -> list[list[list[int]]]:
    """Of each epoch the sources and targets of all batches, without padding."""
    loader = built.train_dataloader()
    return [
        [
            [token for token in row if token]
            for batch in loader
            for row in (*batch.source.tolist(), *batch.target.tolist())
        ]
        for _ in range(count)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_pairs_fall_into_other_tokens_in_each_epoch(module, workers):
    plain, built = module("dates", **DATES), module("dates", **DATES, bpe_dropout=0.3, num_workers=workers)
    epochs = read_epochs(built, 3)
    assert epochs == read_epochs(module("dates", **DATES, bpe_dropout=0.3), 3)
    assert epochs[0] != read_epochs(module("dates", **DATES, bpe_dropout=0.3, seed=1), 1)[0]
    texts = [sorted(decode_targets(built.info, epoch)) for epoch in [*epochs, *read_epochs(plain, 1)]]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    first, second = (sorted(map(str, epoch)) for epoch in epochs[:2])
    assert first != second
    # Nothing but the training set is different
    assert built.info == plain.info
    for part in ("val_dataloader", "test_dataloader"):
        batches = [[batch.source.tolist() for batch in getattr(d, part)()] for d in (plain, built)]
        assert batches[0] == batches[1]


def test_batches_hold_pairs_of_similar_length_in_their_epoch(module):
    built = module("dates", **DATES | {"train_size": 400}, bpe_dropout=0.3)
    padded = total = 0
    for batch in built.train_dataloader():
        padded += batch.source.numel() + batch.target.numel()
        total += int(batch.source_lengths.sum() + batch.target_lengths.sum())
    assert total > 0.9 * padded


def test_a_run_resumes_exactly(config, train_until_killed, tmp_path):
    data = [f"data.{key}={value}" for key, value in DATES.items()]
    given = ["model=seq2seq", "data=dates", *data, "data.bpe_dropout=0.3", f"data.cache={tmp_path}/cache"]
    given += [*SMALL, "model.embedding_size=6", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    given += ["callbacks.last.every_n_steps=3"]
    whole, interrupted = config(*given), config(*given)
    train(whole)
    train_until_killed(interrupted, 14)
    assert not Path(interrupted.run_dir, "metrics.json").exists()
    resume(interrupted)  # in the middle of the second epoch
    assert_same_end(interrupted, whole)
