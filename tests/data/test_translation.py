import json

import numpy as np
import pytest

from lstmlab.data.tokenization import BOS, EOS, UNK, train_tokenizer
from lstmlab.data.translation import decode_targets, encode_sources

PAIRS = [
    ("A man in a red shirt.", "Ein Mann in einem roten Hemd."),
    ("Two girls cross the street.", "Zwei Mädchen überqueren die Straße."),
    ("A dog.", "Ein Hund."),
    ("Green bushes", "Grüne Büsche"),
    ('He says: "no".', "Er sagt: „nein“."),
]


@pytest.fixture
def folder(tmp_path):
    for split, copies in {"train": 8, "val": 2, "test": 1}.items():
        lines = [
            json.dumps({"en": f"{en} {i}", "de": f"{de} {i}"}, ensure_ascii=False)
            for i in range(copies)
            for en, de in PAIRS
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def multi30k(module, folder):
    def build(**changes):
        return module("multi30k", **{"path": str(folder), "vocab_size": 320, "batch_size": 8} | changes)

    return build


def pairs(built, loader):
    found: list[tuple[str, str]] = []
    for source, source_lengths, target, target_lengths in loader:
        assert (source.ne(0).sum(1) == source_lengths).all() and (target.ne(0).sum(1) == target_lengths).all()
        assert source.shape[1] == source_lengths.max() and target.shape[1] == target_lengths.max()
        assert target[:, 0].eq(BOS).all()
        last = target.gather(1, target_lengths[:, None] - 1)
        assert last.eq(EOS).all() and source.gather(1, source_lengths[:, None] - 1).eq(EOS).all()
        found += zip(
            decode_targets(built.info, source.tolist()),
            decode_targets(built.info, target.tolist()),
            strict=True,
        )
    return found


def test_multi30k(multi30k):
    built = multi30k()
    for split, loader in (("train", built.train_dataloader()), ("test", built.test_dataloader())):
        assert sorted(pairs(built, loader)) == sorted(zip(*built.read()[split], strict=True))
    assert [len(built.datasets[split]) for split in ("train", "val", "test")] == [40, 10, 5]
    info = built.info
    assert info["vocab_size"] == 320 and (info["pad"], info["bos"], info["eos"], info["unk"]) == (0, 1, 2, 3)
    assert info["max_target_length"] == max(built.datasets["train"].target.lengths)


def test_lower_case(multi30k):
    built = multi30k(lowercase=True)
    expected = [tuple(text.lower() for text in pair) for pair in zip(*built.read()["test"], strict=True)]
    assert sorted(pairs(built, built.test_dataloader())) == sorted(expected)


def test_the_tokenizer_knows_the_training_texts_alone(module, folder):
    """Both sides of them."""
    for split in ("train", "val", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"en": f"{split}en", "de": f"{split}de"}))
    built = module("multi30k", path=str(folder), vocab_size=270)
    expected = train_tokenizer(["trainen", "trainde"], "bpe", 270, built.config.lowercase)
    assert built.tokenizer.get_vocab() == expected.get_vocab()
    assert {"train", "en", "de"} <= {token.strip("Ġ") for token in expected.get_vocab()}


def test_the_other_way_round(multi30k):
    assert multi30k(source="de", target="en").read()["test"][0][0] == "Ein Mann in einem roten Hemd. 0"


def test_the_train_loader_resumes_exactly(multi30k):
    def batches(loader):
        return [batch.target.tolist() for batch in loader]

    whole = multi30k().train_dataloader()
    expected = batches(whole) + batches(whole)
    started, resumed = multi30k().train_dataloader(), multi30k(num_workers=0).train_dataloader()
    next(iter(started))
    resumed.load_state_dict(started.state_dict())
    assert batches(resumed) + batches(resumed) == expected[1:]


def test_long_pairs_are_left_out_of_training_only(multi30k):
    """One whose longer side has just `max_length` tokens, BOS and EOS not counted, is not too long."""
    tokenizer = multi30k().tokenizer
    splits = multi30k().read()
    longer = [
        max(len(tokenizer.encode(text).ids) for text in pair) for pair in zip(*splits["train"], strict=True)
    ]
    limit = sorted(longer)[20]
    assert min(longer) < limit < max(longer)
    built = multi30k(max_length=limit)
    kept = [pair for pair, n in zip(zip(*splits["train"], strict=True), longer, strict=True) if n <= limit]
    assert sorted(pairs(built, built.train_dataloader())) == sorted(kept)
    assert len(built.datasets["test"]) == 5 and built.info["max_length"] == limit
    targets = [len(tokenizer.encode(target).ids) for _, target in kept]
    assert built.info["max_target_length"] == max(targets) + 2
    with pytest.raises(ValueError, match=r"data\.max_length=1 leaves no training pair"):
        multi30k(max_length=1)


def test_encode_sources(multi30k):
    info = multi30k().info
    texts = ["", "电影", "A dog. <eos>", "Ä"]
    source, lengths = encode_sources(info, texts)
    assert source[0, :2].tolist() == [UNK, EOS] and lengths[0] == 2
    assert decode_targets(info, source.tolist())[1:] == texts[1:]
    assert encode_sources(info | {"max_length": int(lengths.max()) - 1}, texts)[0].equal(
        source
    )  # EOS is no more
    with pytest.raises(
        ValueError, match=f"a text has {lengths.max() - 1} tokens, but this model was trained on"
    ):
        encode_sources(info | {"max_length": int(lengths.max()) - 2}, texts)
    with pytest.raises(ValueError, match=r"a text has .* tokens, but this model was trained on at most 100"):
        encode_sources(info, ["dog " * 10_000])


def test_decode_targets_stops_at_the_first_eos(multi30k):
    info = multi30k().info
    ids = encode_sources(info, ["A dog."])[0][0].tolist()
    assert decode_targets(info, [[BOS, *ids, *ids], ids[:-1], [EOS], []]) == ["A dog.", "A dog.", "", ""]


def test_a_missing_language_is_named(multi30k):
    with pytest.raises(ValueError, match="has no column fr, only en, de"):
        multi30k(target="fr")


def test_real_files_come_back_from_their_ids(module, real_data):
    built = module("multi30k", path=str(real_data / "multi30k"))
    assert [len(built.datasets[split]) for split in ("train", "val", "test")] == [29000, 1014, 1000]
    target = built.datasets["test"].target
    ids = [part.tolist() for part in np.split(target.flat, target.offsets[1:-1])]
    assert decode_targets(built.info, ids) == built.read()["test"][1]
