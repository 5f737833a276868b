import csv
from typing import Any

import numpy as np
import pytest

from conftest import compose_train
from lstmlab.benchmarks.floors import score_classifiers
from lstmlab.data import build_data, change_data
from lstmlab.data.sentiment import encode_reviews

TOPICS = ["sport", "trade", "weather"]


def rows(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"text {n} about {TOPICS[n % 3]}", TOPICS[n % 3]) for n in range(start, start + count)]


def write(path, rows, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def folder(tmp_path):
    for part, count, start in (("train", 60, 0), ("val", 12, 60), ("test", 15, 72)):
        write(tmp_path / f"{part}.csv", rows(count, start))
    return tmp_path


def test_classes(module, folder):
    built = module("classes", path=str(folder), batch_size=8)
    splits = built.read()
    assert {part: len(texts) for part, (texts, _) in splits.items()} == {"train": 60, "val": 12, "test": 15}
    assert splits["val"] == ([text for text, _ in rows(12, 60)], [n % 3 for n in range(60, 72)])
    info = built.info
    assert info["labels"] == TOPICS and info["label_counts"] == [20, 20, 20] and not info["strip_markup"]
    assert info["source"].startswith(
        f"{folder}: 60 rows to train, 12 rows to validate, 15 rows to test; 3 cl"
    )
    batches = list(built.train_dataloader())
    assert sorted(len(batch.tokens) for batch in batches) == [4, *[8] * 7]
    assert sorted(label for batch in batches for label in batch.labels.tolist()) == sorted([0, 1, 2] * 20)
    assert not any(batch.labels.is_floating_point() for batch in batches)


def test_two_classes_have_labels_as_those_of_reviews(module, tmp_path):
    built = module("classes", path=write(tmp_path / "a.csv", [(f"t{n}", n % 2) for n in range(40)]))
    assert built.info["labels"] == ["0", "1"] and built.datasets["val"].labels.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["b", "10", "a"], ["10", "a", "b"]),
        ([" a", "a ", "b"], ["a", "b"]),
    ],
)
def test_the_order_of_the_classes(module, tmp_path, labels, classes):
    path = write(tmp_path / "a.csv", [(f"text {n}", labels[n % 3]) for n in range(60)])
    assert module("classes", path=path).info["labels"] == classes


def test_numbers_and_truth_values_are_names(module, tmp_path):
    for name, values in {"whole": ("1.0", "0.0"), "true": ("true", "false")}.items():
        lines = [f'{{"text": "t{n}", "label": {values[n % 2]}}}' for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    assert module("classes", path=f"{tmp_path}/whole.jsonl").info["labels"] == ["0", "1"]
    assert module("classes", path=f"{tmp_path}/true.jsonl").info["labels"] == ["False", "True"]


def test_missing_parts_are_split_off_the_same_for_every_seed(module, tmp_path):
    path = write(tmp_path / "a.csv", rows(90))
    built = module("classes", path=path)
    assert [np.bincount(labels).tolist() for _, labels in built.read().values()] == [
        [24, 24, 24],
        [3, 3, 3],
        [3, 3, 3],
    ]
    assert "9 rows to validate (split off), 9 rows to test (split off)" in built.info["source"]
    assert module("classes", seed=1, path=path).read() == built.read()
    texts = [text for texts, _ in built.read().values() for text in texts]
    assert sorted(texts) == sorted(text for text, _ in rows(90))


def test_a_part_without_labels_is_missing(module, folder):
    write(folder / "test.csv", [(text, "") for text, _ in rows(9, 80)])
    info = module("classes", path=str(folder)).info
    assert "6 rows to test (split off)" in info["source"]
    assert "test has no labels and is not used" in info["source"]


def test_texts_of_other_parts_are_left_out_of_training(module, folder):
    write(folder / "train.csv", rows(60) + rows(2, 60) + rows(1, 72) * 3)
    write(folder / "test.csv", rows(15, 71))
    built = module("classes", path=str(folder))
    texts = {part: set(column) for part, (column, _) in built.read().items()}
    assert len(texts["train"]) == 60 and not texts["train"] & (texts["val"] | texts["test"])
    assert "training texts left out since they occur in val or test too: 5" in built.info["source"]
    assert "texts of val that occur in test too: 1" in built.info["source"]


def test_markup_is_text_unless_it_is_to_be_stripped(module, tmp_path):
    path = write(tmp_path / "a.csv", [(f"<b>bold {n}</b> &amp;", "ab"[n % 2]) for n in range(40)])
    for strip, known in ((False, True), (True, False)):
        built = module("classes", path=path, strip_markup=strip)
        assert (built.tokenizer.token_to_id("</") is not None) == known
        _, lengths = encode_reviews(built.info, ["<b>bold</b>"])
        assert lengths.tolist() == [7 if known else 1]


def test_a_checkpoint_knows_its_classes(module, folder, tmp_path):
    """Other files are read with the classes and the tokenizer that were trained on."""
    trained = module("classes", train=f"{folder}/train.csv", test=f"{folder}/test.csv")
    other = folder / "other"
    other.mkdir()
    path = write(other / "a.csv", [(f"new {n}", TOPICS[1 + n % 2]) for n in range(40)])
    changed: Any = change_data(trained.config, {"path": path})
    assert changed.train is None and changed.test is None
    again = build_data(changed, 0, trained.info)
    again.setup()
    assert again.info["labels"] == TOPICS and again.info["tokenizer"] == trained.info["tokenizer"]
    assert set(again.read()["train"][1]) == {1, 2}
    write(other / "a.csv", [(f"new {n}", "snow") for n in range(40)])
    with pytest.raises(ValueError, match="has the label snow, which training does not have: sport, trade"):
        build_data(changed, 0, trained.info).setup()


WRONG = [  # rows of the file, and what is said
    ([("a", "x"), (" ", "y")] * 10, "row 2 of train of .* has an empty text; fill it in or remove the row"),
    ([("a", "x"), ("b", " ")] * 10, "row 2 of train of .* has ' ' for its label; labels are words or whole"),
    ([("a",), ("b", "y")] * 10, "row 1 of train of .* has '' for its label"),
    ([("a", "x")] * 10, "one class alone, x in column label; it takes two to tell apart"),
    ([(f"t{n}", n) for n in range(20)], "data.label=label has 20 different labels in 20 rows"),
    ([("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")], "has 4 rows, too few to split off test"),
    ([("a", "x"), *[("b", "y")] * 20], "every training text of the class y .* occurs in val or test too"),
]


@pytest.mark.parametrize(("rows", "said"), WRONG)
def test_wrong_rows(module, tmp_path, rows, said):
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(ValueError, match=said) as error:
        module("classes", path=path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 5, "label": "x"}', "row 1 of train .* has 5 for its text, which must be a text"),
        ('{"text": null, "label": "x"}', "row 1 of train .* has nothing for its text"),
        ('{"text": "a", "label": null}', "row 1 of train .* has None for its label"),
        ('{"text": "a", "label": 0.5}', "row 1 of train .* has 0.5 for its label"),
        ('{"text": "a", "label": ["x"]}', r"row 1 of train .* has \['x'\] for its label"),
    ],
)
def test_wrong_values(module, tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=said):
        module("classes", path=f"{tmp_path}/a.jsonl")


def test_floors_are_of_two_classes(module, folder):
    with pytest.raises(ValueError, match="suite=floors tells two classes apart, but the data have 3"):
        score_classifiers(module("classes", path=str(folder)))


def test_labels_of_other_parts_occur_in_training(module, folder):
    write(folder / "test.csv", [("a", "sport"), ("b", "snow")])
    with pytest.raises(ValueError, match="has the label snow, which training does not have: sport"):
        module("classes", path=str(folder))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "data=classes needs data.path=FILE_OR_FOLDER, data.train=FILE, or data.hub=NAME"),
        (["data.path=a", "data.train=b"], "data.path=a and data.train=b both say what to train on"),
        (["data.path=a", "data.hub=b"], "data.path=a and data.hub=b both say what to train on"),
        (["data.hub=a", "data.test=b"], "data.test=b does not go with data.hub=a"),
        (["data.path=a", "data.hub_config=b"], "data.hub_config=b is for data.hub=, not for files"),
        (["data.path=a", "data.text=label"], "data.text=label and data.label=label are one column"),
        (["data.path=a", "data.val_fraction=0.5", "data.test_fraction=0.5"], "leave nothing to train on"),
        (["data.path=a", "data.val_fraction=0"], "data.val_fraction=0"),
        (["data.path=a", "data.label=3"], "data.label=3: input should be a valid string"),
        (["data.path=a", "data.tokenizer=words"], "data.tokenizer=words: input should be 'word'"),
        (
            ["data.path=a", "model.class_weights=equal"],
            "model.class_weights=equal: input should be 'balanced'",
        ),
    ],
)
def test_wrong_settings(overrides, said):
    with pytest.raises(ValueError, match=said):
        compose_train("model=sentiment", "data=classes", "run_dir=x", *overrides)
