import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from hub_server import run_with_hub
from lstmlab.config import PROJECT
from lstmlab.data.sources import find_files, read_parts
from lstmlab.schema import ClassesConfig

VALUES = {"text": ["NA", "007", ' ",;\t', "1e5\nnull", "2026-11-22", "ä 电影"], "label": list("001.50")}


def settings(**changes) -> ClassesConfig:
    written = OmegaConf.load(PROJECT / "conf/data/classes.yaml")
    return ClassesConfig.model_validate(
        OmegaConf.to_container(OmegaConf.merge(written, {"cache": ""}, changes))
    )


def read(**changes):
    return read_parts(settings(**changes), ["text", "label"])


def quote(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def write_lines(path, separator, columns):
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_bytes("\r\n".join(separator.join(map(quote, row)) for row in rows).encode("utf-8"))


def write_json(path, columns):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")


WRITERS = {
    "comma.csv": lambda path, columns: write_lines(path, ",", columns),
    "semicolon.CSV": lambda path, columns: write_lines(path, ";", columns),
    "tab.tsv": lambda path, columns: write_lines(path, "\t", columns),
    "lines.jsonl": write_json,
    "lines.ndjson": write_json,
    "table.parquet": lambda path, columns: pq.write_table(pa.table(columns), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_texts_as_they_stand(tmp_path, name):
    """No column is converted, whatever else the file holds and wherever the columns stand."""
    columns = {"id": list("123456"), " more ": list("123456"), **VALUES}
    WRITERS[name](tmp_path / name, columns)
    assert read(path=str(tmp_path / name)) == {"train": VALUES}
    assert read(train=str(tmp_path / name), test=str(tmp_path / name)) == {"train": VALUES, "test": VALUES}


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name in ("comma.csv", "lines.jsonl"):
        WRITERS[name](tmp_path / name, VALUES)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
        assert read(path=str(tmp_path / name)) == {"train": VALUES}


def test_quotes_of_a_tsv_file_may_be_text(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"No," he said.\tx\n5" disk\ty\n"yes"\tz\n')
    assert read(path=f"{tmp_path}/a.tsv")["train"]["text"] == ['"No," he said.', '5" disk', '"yes"']


def test_numbers_of_json_and_parquet_stay_numbers(tmp_path):
    columns = {"text": ["a", "b", "c"], "label": [2, 0, 1]}
    for name in ("lines.jsonl", "table.parquet"):
        WRITERS[name](tmp_path / name, columns)
        assert read(path=str(tmp_path / name)) == {"train": columns}


def test_classes_of_the_hub_have_their_names(tmp_path):
    """As AG News has them: data/train-00000-of-00001.parquet, with numbers that the file's schema names."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["World", "Sci/Tech"])}
    )
    for part in ("train", "test"):
        table = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
        dataset = datasets.Dataset.from_dict(table, features)
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(
            dataset.with_format("arrow")[:].replace_schema_metadata(dataset.features.arrow_schema.metadata),
            tmp_path / f"data/{part}-00000-of-00001.parquet",
        )
    expected = {"text": ["a", "b", "c"], "label": ["Sci/Tech", "World", None]}
    assert read(path=str(tmp_path)) == {"train": expected, "test": expected}
    assert read(hub=str(tmp_path)) == {"train": expected, "test": expected}


def test_fields_of_a_column_are_named_with_a_dot(tmp_path):
    """As data sets for translation on the hub have them."""
    pairs = [{"en": "a", "fr": "b"}, {"en": "c", "fr": "d"}]
    pq.write_table(pa.table({"id": ["1", "2"], "translation": pairs}), tmp_path / "train.parquet")
    for source in ({"path": str(tmp_path)}, {"hub": str(tmp_path)}):
        found = read_parts(settings(**source), ["translation.en", "translation.fr"])
        assert found == {"train": {"translation.en": ["a", "c"], "translation.fr": ["b", "d"]}}
        with pytest.raises(ValueError, match=r"has no column translation.de, only .*translation.en"):
            read_parts(settings(**source), ["translation.de"])
        with pytest.raises(ValueError, match=r"has no column de, only id, translation"):
            read_parts(settings(**source), ["de"])


def test_a_data_set_of_the_hub_and_one_of_its_configurations(tmp_path):
    """Which splits and files each has, its card says."""
    files, configs = {}, []
    for name in ("de", "fr"):
        splits = []
        for part in ("train", "validation", "test"):
            path = tmp_path / "part.parquet"
            pq.write_table(pa.table({"text": [f"{name} {part}"], "label": ["x"]}), path)
            files[f"{name}/{part}-00000-of-00001.parquet"] = path.read_bytes()
            splits.append({"split": part, "path": f"{name}/{part}-*"})
        configs.append({"config_name": name, "data_files": splits})
    card = {"configs": configs}
    files["README.md"] = f"---\n{json.dumps(card)}\n---\n# A data set".encode()
    script = (
        "import json; from lstmlab.data.sources import read_parts; from lstmlab.schema import ClassesConfig\n"
        "for name in ('fr', None, 'it'):\n"
        "    config = ClassesConfig.model_construct(\n"
        "        path=None, train=None, hub='some/where', hub_config=name, revision='main')\n"
        "    try: print(json.dumps(read_parts(config, ['text'])))\n"
        "    except OSError as error: print(error)\n"
    )
    printed, _ = run_with_hub(script, files, tmp_path / "hub")
    found, unnamed, unknown = printed.splitlines()
    parts = {"train": "train", "val": "validation", "test": "test"}
    assert json.loads(found) == {part: {"text": [f"fr {split}"]} for part, split in parts.items()}
    assert "['de', 'fr']" in unnamed and "name one of several configurations by data.hub_config=" in unnamed
    assert "BuilderConfig 'it' not found" in unknown


def test_the_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"could not fetch no-such/set .* data\.path=FOLDER") as error:
        read(hub="no-such/set")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["train.csv", "dev.csv", "test.csv", "notes.txt"], ["train.csv"]),
        (["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv"], None),
        (["my_Train_v2.csv", "validation.csv"], ["my_Train_v2.csv"]),
        (["default/train/0000.csv", "default/test/0000.csv"], ["default/train/0000.csv"]),
        (["strained.csv"], ["strained.csv"]),
    ],
)
def test_the_parts_of_a_folder(tmp_path, files, parts):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files(settings(path=str(tmp_path)))
    assert found["train"] == [tmp_path / name for name in parts or files]
    assert bool(found["val"]) == any(name.startswith(("dev", "val")) for name in files)
    assert bool(found["test"]) == any("test" in name for name in files)


def test_a_part_lies_in_several_files(tmp_path):
    for number, label in enumerate("ab"):
        WRITERS["comma.csv"](tmp_path / f"train-{number}.csv", {"text": [f"t{number}"], "label": [label]})
    assert read(path=str(tmp_path)) == {"train": {"text": ["t0", "t1"], "label": ["a", "b"]}}


BROKEN = [  # the file, its content, and what is said
    ("a.csv", b"", "a.csv has no column text, only none at all; its first line must name the columns"),
    ("a.csv", b"text,label\n", "cannot read .*a.csv: it has no rows"),
    ("a.csv", b"text\nx\n", "has no column label, only text; its first line must name the columns"),
    ("a.csv", b"text,text,label\na,b,c\n", "2 columns named text; rename all but one"),
    (
        "a.csv",
        b"text,label\na,b,c\n",
        "cannot read .*a.csv: a row has more fields than the first line; quote",
    ),
    ("a.csv", b"text,label\na,b\nc,d,e\n", "Expected 2 fields in line 3, saw 3"),
    ("a.csv", b'text,label\na,"b\nc,d\n', "EOF inside string starting at row 1"),
    ("a.csv", "text,label\na,b\n\u00e9,c\n".encode("latin-1"), "line 3 of .*a.csv is not UTF-8 text; save"),
    ("a.csv", "text,label\na,b\n".encode("utf-16"), "line 1 of .*a.csv is not UTF-8 text"),
    ("a.tsv", "text\tlabel\na\tb\n".encode("utf-16-le"), "line 1 of .*a.tsv is not UTF-8 text"),
    ("a.jsonl", b"", "train of .*a.jsonl has no rows"),
    ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n', "line 2 of .*a.jsonl is not JSON: Expecting"),
    ("a.jsonl", b'["a", 1]\n', "line 1 of .*a.jsonl must be a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n', "a.jsonl has no column label, only text"),
    ("a.jsonl", b'{"text": "\xff"}\n', "line 1 of .*a.jsonl is not UTF-8 text"),
    ("a.parquet", b"PAR1", "cannot read .*a.parquet: "),
    ("a.parquet", b"", "cannot read .*a.parquet: "),
    ("a.txt", b"text,label\na,b\n", r"a.txt is not a file to read for train: its name must end in \.csv, "),
    ("a", b"text,label\na,b\n", r"is not a file to read for train: its name must end in \.csv, "),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_broken_files(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=said) as error:
        read(path=str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        ([], {"path": "nowhere"}, "nowhere: no such file or folder"),
        (
            [],
            {"path": ""},
            r"has no file to train on, such as train.csv: it holds no file that ends in \.csv",
        ),
        (["test.csv", "val.csv"], {"path": ""}, "no file to train on.* it holds test.csv, val.csv"),
        (["a.csv", "b.csv"], {"path": ""}, "no file to train on.* it holds a.csv, b.csv"),
        (["train.csv", "train.tsv"], {"path": ""}, "files of two kinds for train, .* data.train=FILE"),
        ([], {"train": "a.csv"}, r"data\.train=.*a\.csv: no such file"),
        (["a.csv"], {"path": "a.csv", "test": ""}, r"data\.test=.*: a folder, not a file"),
    ],
)
def test_wrong_places(tmp_path, files, changes, said):
    for name in files:
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises((ValueError, OSError), match=said) as error:
        read(**{key: str(tmp_path / name) for key, name in changes.items()})
    assert "\n" not in str(error.value)
