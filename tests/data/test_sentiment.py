from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lstmlab.data.sentiment import IMDB, clean, encode_reviews
from lstmlab.data.tokenization import EOS, load_tokenizer
from lstmlab.schema import IMDBConfig

WORDS = ["the", "a", "film", "plot", "good", "bad", "not", "very", "old", "new"]


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 40))) for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    """Files as on the hub: sorted by label; a text that occurs twice, and one that test has too."""
    train, test = texts(60, 0), texts(20, 1)
    train[0], train[2] = train[1], test[0]
    for split, column in (("train", train), ("test", test)):
        half = len(column) // 2
        table = pa.table({"text": column, "label": [0] * half + [1] * half})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    return tmp_path


def test_imdb(module, folder):
    built = module("imdb", path=str(folder), val_size=10, batch_size=8)
    splits = built.read()
    assert {split: len(column) for split, (column, _) in splits.items()} == {
        "train": 48,
        "val": 10,
        "test": 20,
    }
    everything = [text for column, _ in splits.values() for text in column]
    assert len(set(everything)) == len(everything)
    assert set(splits["val"][1]) == {0, 1}
    assert splits == module("imdb", seed=1, path=str(folder), val_size=10).read()

    train = dict(zip(*splits["train"], strict=True))
    seen = []
    for batch in built.train_dataloader():
        assert (batch.tokens.ne(0).sum(1) == batch.lengths).all()
        assert batch.tokens.shape == (len(batch.labels), batch.lengths.max())
        for row, length, label in zip(*batch, strict=True):
            text = built.tokenizer.decode(row[:length].tolist())
            assert train[text] == label
            seen.append(text)
    assert sorted(seen) == sorted(train)
    test = [batch.labels for batch in built.test_dataloader()]
    assert sum(map(len, test)) == 20 and sum(labels.sum() for labels in test) == 10


def test_the_train_loader_resumes_exactly(module, folder):
    def loader(**changes):
        return module("imdb", path=str(folder), val_size=10, batch_size=8, **changes).train_dataloader()

    def batches(loader):
        return [batch.tokens.tolist() for batch in loader]

    whole = loader()
    expected = batches(whole) + batches(whole)
    assert expected[:6] != expected[6:]
    assert batches(loader(num_workers=2)) == expected[:6]
    assert batches(loader(seed=1)) != expected[:6]
    started, resumed = loader(), loader()
    iterator = iter(started)
    for _ in range(2):
        next(iterator)
    resumed.load_state_dict(started.state_dict())
    assert batches(resumed) + batches(resumed) == expected[2:]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_info_is_enough_to_encode(module, folder, kind):
    built = module("imdb", path=str(folder), val_size=10, max_length=8, tokenizer=kind)
    column, _ = built.read()["test"]
    tokens, lengths = encode_reviews(built.info, column)
    rows = {tuple(r.tolist()) for b in built.test_dataloader() for r in b.tokens}
    width = tokens.shape[1]
    assert {tuple(r.tolist()) for r in tokens} == {(*r, *[0] * (width - len(r))) for r in rows}
    tokens, lengths = encode_reviews(built.info, ["", "电影", "unheard of", "good film " * 5000])
    assert tokens.shape == (4, 8) and lengths[3] == 8 and lengths.min() >= 1
    assert tokens.max() < built.info["vocab_size"]


def test_the_tokenizer_knows_the_training_reviews_alone(module, folder):
    """Each review has a word of its own; tags are no words."""
    for split, count in (("train", 30), ("test", 20)):
        texts = [f"{split}{i} <i>film</i>" for i in range(count)]
        table = pa.table({"text": texts, "label": [0, 1] * (count // 2)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    built = module("imdb", path=str(folder), val_size=10)
    words = {text.split()[0] for text in built.read()["train"][0]}
    assert len(words) == 20
    assert set(built.tokenizer.get_vocab()) == {"<pad>", "<bos>", "<eos>", "<unk>", "film"} | words


def test_a_checkpoint_s_tokenizer_is_used(module, folder):
    trained = module("imdb", path=str(folder), val_size=10)
    info = trained.info
    other = module("reviews", train_size=20, val_size=10, test_size=10, info=info)
    assert other.info["tokenizer"] == info["tokenizer"]


def test_clean():
    assert (
        clean("Bad.<br /><br />A <i>B</i> film &amp; plot; 2 < 3 &#8230;")
        == "Bad.  A  B  film & plot; 2 < 3 …"
    )


@pytest.mark.parametrize(
    ("labels", "val_size", "said"),
    [
        ([0, 2], 1, "train of data=imdb has label 2, not 0 or 1"),
        ([0], 1, "data.val_size=1 must be less than the 1"),
    ],
)
def test_refusals(module, folder, labels, val_size, said):
    table = pa.table({"text": texts(len(labels), 5), "label": labels})
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=said):
        module("imdb", path=str(folder), val_size=val_size)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_a_language_model_reads_training_and_unlabelled_reviews(module, folder, unlabelled):
    """Once each, and none that validates or tests."""
    labelled = module("imdb", path=str(folder), val_size=20).read()
    alone = texts(30, 2)
    everywhere = [labelled[split][0][0] for split in ("train", "val", "test")]
    table = pa.table({"text": [*everywhere, *alone, alone[0]], "label": [-1] * 34})
    pq.write_table(table, folder / "unsupervised-00000-of-00001.parquet")
    settings = {"unlabelled": unlabelled, "val_size": 20, "batch_size": 4, "sequence_length": 8}
    built = module("imdb_texts", path=str(folder), **settings)

    decode = load_tokenizer(built.info["tokenizer"]).decode
    parts = {"train": (0, built.meta["train"]), "val": (built.meta["train"], built.meta["total"])}
    expected = {"train": labelled["train"][0] + alone * unlabelled, "val": labelled["val"][0]}
    for part, (start, stop) in parts.items():
        ids = built.read_ids(start, stop - start)
        ends = np.flatnonzero(ids == EOS)
        found = [decode(ids[a + 1 : b].tolist()) for a, b in pairwise(ends)]
        assert found == expected[part]
        assert len(set(found)) == len(found)


def test_too_few_reviews_for_a_language_model_to_validate_on(module, folder):
    table = pa.table({"text": texts(30, 2), "label": [-1] * 30})
    pq.write_table(table, folder / "unsupervised-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"^data\.val_size=2 leaves \d+ of \d+ tokens for validation"):
        module("imdb_texts", path=str(folder), val_size=2, batch_size=4, sequence_length=8)


def test_real_files_hold_no_leak(real_data):
    settings = IMDBConfig.model_construct(path=str(real_data / "imdb"), hub="", revision="", val_size=2500)
    splits = IMDB(settings).read()
    assert {split: len(column) for split, (column, _) in splits.items()} == {
        "train": 22281,
        "val": 2500,
        "test": 25000,
    }
    train, val, test = (set(splits[split][0]) for split in ("train", "val", "test"))
    assert not train & val and not train & test and not val & test
