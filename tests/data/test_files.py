import json

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import run_with_hub
from lstmlab.data.files import read_splits
from lstmlab.schema import HubConfig

FILES = {"train": "train-*.parquet", "test": "test-*.parquet"}
COLUMNS = {"text": str, "label": int}
NONE = pa.array([], pa.string())


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    for split, texts in {"train": ["good", "bad"], "test": ["fair"]}.items():
        write(folder / f"plain_text/{split}-00000-of-00001.parquet", text=texts, label=[1] * len(texts))
    return folder


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def read(folder):
    config = HubConfig.model_validate({"path": str(folder), "hub": "some/where", "revision": "main"})
    return read_splits(config, FILES, COLUMNS, "data=reviews")


def test_parquet(folder):
    """A split may lie in several files."""
    write(folder / "plain_text/train-00001-of-00002.parquet", text=["more"], label=[0])
    assert read(folder) == {
        "train": {"text": ["good", "bad", "more"], "label": [1, 1, 0]},
        "test": {"text": ["fair"], "label": [1]},
    }


def test_jsonl(tmp_path):
    for split in ("train", "test"):
        lines = [json.dumps({"en": f"{split} {i}", "de": "ä"}, ensure_ascii=False) for i in range(2)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = HubConfig.model_validate({"path": str(tmp_path), "hub": "some/where", "revision": "main"})
    files = {"train": "train.jsonl", "test": "test.jsonl"}
    splits = read_splits(config, files, {"de": str, "en": str}, "data=dates")
    assert splits["train"] == {"de": ["ä", "ä"], "en": ["train 0", "train 1"]}


@pytest.mark.parametrize(
    ("break_it", "kind", "said"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-20]),
            OSError,
            r"cannot read train-\*.parquet in data",
        ),
        (lambda path: path.write_bytes(b""), OSError, r"cannot read train-\*.parquet in data"),
        (lambda path: path.unlink(), FileNotFoundError, r"holds no train-\*\.parquet"),
        (lambda path: write(path, text=["a"]), ValueError, "train of .* has no column label, only text"),
        (lambda path: write(path, text=NONE, label=NONE), ValueError, "train of .* has no rows"),
        (lambda path: write(path, text=["a", None], label=[0, 1]), ValueError, "row 1 .* None for its text"),
        (lambda path: write(path, text=["a"], label=["good"]), ValueError, "'good' for its label"),
    ],
)
def test_broken_files(folder, break_it, kind, said):
    break_it(folder / "plain_text/train-00000-of-00001.parquet")
    with pytest.raises(kind, match=said) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(
        NotADirectoryError, match=r"data\.path=.*nowhere is not a folder; give .* data=reviews"
    ):
        read(tmp_path / "nowhere")


def test_of_a_hubs_files_only_those_that_are_read_are_fetched(folder, tmp_path):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
    files |= {"plain_text/unsupervised-00000-of-00001.parquet": b"large", "README.md": b"# IMDB"}
    script = (
        "import json; from lstmlab.data.files import read_splits; from lstmlab.schema import HubConfig; "
        "config = HubConfig(path=None, hub='some/where', revision='main'); "
        f"print(json.dumps(read_splits(config, {FILES}, {{'text': str, 'label': int}}, 'data=reviews')))"
    )
    printed, asked = run_with_hub(script, files, tmp_path / "hub")
    assert json.loads(printed) == read(folder)
    fetched = {path.rpartition("/")[2] for path in asked if path.endswith(".parquet")}
    assert fetched == {"train-00000-of-00001.parquet", "test-00000-of-00001.parquet"}


def test_no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = HubConfig.model_validate({"path": None, "hub": "no-such/set", "revision": "main"})
    with pytest.raises(OSError, match=r"no-such/set .*data\.path=FOLDER.* data=reviews") as error:
        read_splits(config, FILES, COLUMNS, "data=reviews")
    assert "\n" not in str(error.value)


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"en": "a", "de": "b"}\n{"en": "a", "de"\n')
    config = HubConfig.model_validate({"path": str(tmp_path), "hub": "some/where", "revision": "main"})
    with pytest.raises(OSError, match=r"cannot read train\.jsonl in data\.path=") as error:
        read_splits(config, {"train": "train.jsonl"}, {"de": str, "en": str}, "data=dates")
    assert "\n" not in str(error.value)
