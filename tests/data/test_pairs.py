import csv
import json

import pytest

from conftest import compose_train
from lstmlab.data import build_data, change_data
from lstmlab.data.translation import decode_targets, encode_sources

PAIRS = [(f"numéro {n}", f"номер {n}") for n in range(60)]


def write_tsv(path, pairs, header=("fr", "ru")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([header, *pairs])
    return str(path)


@pytest.fixture
def build(module, tmp_path):
    path = write_tsv(tmp_path / "pairs.tsv", PAIRS)

    def build(**changes):
        given = {"path": path, "source": "fr", "target": "ru", "tokenizer": "char"}
        return module("pairs", **given | changes)

    return build


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_pairs(build, tokenizer):
    built = build(tokenizer=tokenizer)
    splits = built.read()
    assert {part: len(sources) for part, (sources, _) in splits.items()} == {"train": 48, "val": 6, "test": 6}
    assert sorted(pair for columns in splits.values() for pair in zip(*columns, strict=True)) == sorted(PAIRS)
    assert "pairs.tsv: 48 rows to train, 6 rows to validate (split off), 6 rows" in built.info["source"]
    assert build(tokenizer=tokenizer, source="ru", target="fr").read()["test"] == splits["test"][::-1]
    found = [
        pair
        for batch in built.test_dataloader()
        for pair in zip(
            decode_targets(built.info, batch.source.tolist()),
            decode_targets(built.info, batch.target.tolist()),
            strict=True,
        )
    ]
    assert sorted(found) == sorted(zip(*splits["test"], strict=True))
    assert encode_sources(built.info, ["numéro"])[0].shape[0] == 1


def test_sources_that_occur_in_two_parts_are_counted_and_kept(build, tmp_path):
    test = write_tsv(tmp_path / "test.tsv", [PAIRS[3], PAIRS[4], ("neuf", "девять")])
    built = build(test=test)
    assert "3 rows to test; sources of test that occur in train too: 2" in built.info["source"]
    assert len(built.datasets["train"]) == 54 and len(built.datasets["test"]) == 3


def test_a_checkpoint_reads_other_pairs_as_a_whole(build, tmp_path):
    """And its own as they were split."""
    trained = build()
    other = write_tsv(tmp_path / "other.tsv", [("un", "один"), ("deux", "два")])
    opened = build_data(change_data(trained.config, {"path": other}), 0, trained.info)
    opened.setup()
    assert opened.read()["test"] == opened.read()["val"] == (["un", "deux"], ["один", "два"])
    again = build_data(change_data(trained.config, {"path": trained.config.path}), 0, trained.info)
    again.setup()
    assert again.read() == trained.read() and again.info == trained.info


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"fr": "", "ru": "нет"}, "row 2 of train of .* has an empty fr; fill it in or remove the row"),
        ({"fr": "non", "ru": " "}, "row 2 of train of .* has an empty ru"),
        ({"fr": "non"}, "row 2 of train of .* has nothing for its ru, which must be a text"),
        ({"fr": 5, "ru": "пять"}, "row 2 of train of .* has 5 for its fr, which must be a text"),
    ],
)
def test_wrong_rows(build, tmp_path, pair, said):
    rows = [{"fr": "oui", "ru": "да"}, pair, {"fr": "six", "ru": "шесть"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=said) as error:
        build(path=f"{tmp_path}/a.jsonl")
    assert "\n" not in str(error.value)


def test_wrong_columns(build):
    with pytest.raises(
        ValueError, match="has no column de, only fr, ru; its first line must name the columns"
    ):
        build(target="de")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "data=pairs needs data.path=FILE_OR_FOLDER"),
        (["data.path=a", "data.target=source"], "data.source=source and data.target=source are one column"),
        (["data.path=a", "data.tokenizer=word"], "data.tokenizer=word: input should be 'char' or 'bpe'"),
    ],
)
def test_wrong_settings(overrides, said):
    with pytest.raises(ValueError, match=said):
        compose_train("model=seq2seq", "data=pairs", "run_dir=x", *overrides)


def test_from_file_to_translation_by_the_commands_alone(command, tmp_path, build):
    pairs = f"data.path={tmp_path}/pairs.tsv", "data.source=fr", "data.target=ru", f"data.cache={tmp_path}"
    small = "cell.hidden_size=16", "model.embedding_size=8", "trainer.enable_progress_bar=false"
    run = f"{tmp_path}/run"
    tokens = "data.tokenizer=char", "trainer.max_steps=3", "trainer.log_every_n_steps=1"
    code, out, error = command(
        "train", "model=seq2seq", "data=pairs", *pairs, *small, *tokens, f"hydra.run.dir={run}"
    )
    assert code == 0 and "pairs.tsv: 48 rows to train" in out, error
    code, out, _ = command("evaluate", f"ckpt={run}")
    assert code == 0 and {"val/loss", "test/sacrebleu"} <= {*out.split()}
    assert command("predict", f"ckpt={run}", "text=numéro 7")[0] == 0
    assert command("analyze", f"ckpt={run}", "probe_steps=100")[0] == 0
    code, out, _ = command("export", f"ckpt={run}")
    assert code == 0 and "decoder.onnx" in out
    write_tsv(tmp_path / "pairs.tsv", PAIRS[1:])
    code, _, error = command("evaluate", f"ckpt={run}")
    assert code == 1 and "the model may have been trained on its validation part" in error
    code, out, _ = command("evaluate", f"ckpt={run}", f"data.path={tmp_path}/pairs.tsv")
    assert code == 0 and "test/exact_match" in out
