import gzip
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from lstmlab.config import PROJECT
from lstmlab.data import build_data
from lstmlab.data import corpora as corpora_module
from lstmlab.data.corpora import find_texts, read_characters
from lstmlab.schema import StdlibConfig, TextFileConfig

SIZES = {"a": 300, "b": 90, "c": 7}
BOOKS = {name: "".join(f"{name} of abc {n}: é电\n" for n in range(size)) for name, size in SIZES.items()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "books [1]"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text(BOOKS["a"], encoding="utf-8")
    (folder / "more/b.txt").write_text(BOOKS["b"], encoding="utf-8-sig")
    with gzip.open(folder / "more/c.txt.gz", "wt", encoding="utf-8") as file:
        file.write(BOOKS["c"].removesuffix("\n"))
    (folder / ".hidden").write_bytes(b"\xff")
    return folder


def build(path, **changes) -> Any:
    """The data module, its training part and its validation part as texts."""
    written = OmegaConf.load(PROJECT / "conf/data/textfile.yaml")
    sizes = {"batch_size": 2, "sequence_length": 10, "cache": f"{path.parent}/cache", "path": str(path)}
    settings: Any = OmegaConf.to_container(OmegaConf.merge(written, sizes, changes))
    module = build_data(TextFileConfig.model_validate(settings))
    module.prepare_data()
    module.setup("fit")
    ids = np.fromfile(module.encoded, module.meta["dtype"])
    text = "".join(module.info["vocabulary"][i] for i in ids)
    return module, text[: module.meta["train"]], text[module.meta["train"] :]


@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_a_folder_is_one_text(folder, monkeypatch, chunk):
    """In the order of the paths, with a line break after each file; hidden files are left out."""
    monkeypatch.setattr(corpora_module, "CHUNK", chunk)
    whole = "".join(BOOKS.values())
    module, train, val = build(folder)
    assert (train, val) == (whole[: int(len(whole) * 0.9)], whole[int(len(whole) * 0.9) :])
    assert module.info["source"].startswith("textfile, 3 files, sha256 ")
    assert build(folder.parent / "books*" / "**/*.txt*")[1:] == (train, val)


@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_the_end_of_each_file_validates(folder, monkeypatch, chunk):
    monkeypatch.setattr(corpora_module, "CHUNK", chunk)

    def end_line(text: str) -> str:
        return text if text.endswith("\n") else text + "\n"

    texts = BOOKS | {"c": BOOKS["c"].removesuffix("\n")}
    cuts = {name: int(len(text) * 0.75) for name, text in texts.items()}
    _, train, val = build(folder, split="each_file", val_fraction=0.25)
    assert train == "".join(end_line(text[: cuts[name]]) for name, text in texts.items())
    assert val == "".join(end_line(text[cuts[name] :]) for name, text in texts.items())
    _, same, part = build(folder, split="each_file", val_fraction=0.25, max_val_chars=300)
    ends = [text[cuts[name] :] for name, text in texts.items()]
    shares = [round(len(end) * 300 / sum(map(len, ends))) for end in ends]
    assert same == train and part == "".join(end_line(e[:n]) for e, n in zip(ends, shares, strict=True))


def test_one_file_is_read_where_it_lies(folder):
    module, train, _ = build(folder / "a.txt", split="each_file")
    assert train == BOOKS["a"][: int(len(BOOKS["a"]) * 0.9)] and not [*folder.parent.glob("cache/*.txt")]
    assert module.info["source"].startswith("textfile, sha256 ")


def test_one_compressed_file(tmp_path):
    with gzip.open(tmp_path / "a.gz", "wt", encoding="utf-8") as file:
        file.write(BOOKS["a"])
    assert "".join(build(tmp_path / "a.gz")[1:]) == BOOKS["a"]


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 5), (2, 9), (9, 9), (7, 99), (50, 60)])
def test_a_stretch_of_characters(tmp_path, monkeypatch, start, stop):
    path = tmp_path / "t.txt"
    path.write_text("aé电😀\r\n" * 4, encoding="utf-8", newline="")
    for chunk in (1, 4, 100):
        monkeypatch.setattr(corpora_module, "CHUNK", chunk)
        assert "".join(read_characters(path, start, stop)) == ("aé电😀\r\n" * 4)[start:stop]


@pytest.mark.parametrize(
    ("name", "content", "path", "said"),
    [
        ("a.txt", b"", "nowhere", "nowhere: no such file, and none that matches"),
        ("a.txt", b"", "*.md", r"\*\.md: no such file, and none that matches"),
        (".a", b"x", "", "a folder without files"),
        ("a.gz", b"no gzip", "a.gz", "a.gz is damaged, or not compressed by gzip"),
        (
            "a.gz",
            gzip.compress(b"x" * 9999, mtime=0)[:-9],
            "a.gz",
            "a.gz is damaged, or not compressed by gzip",
        ),
        (
            "a.gz",
            gzip.compress(b"\xff", mtime=0),
            "a.gz",
            r"a.gz is not UTF-8 text: .*; a glob such as 'FOLDER/\*.txt'",
        ),
        ("a.gz", gzip.compress(b"", mtime=0), "a.gz", r"data\.path=.*a\.gz holds no text"),
    ],
)
def test_wrong_places(tmp_path, name, content, path, said):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=said) as error:
        build(folder / path)
    assert "\n" not in str(error.value)


def test_a_folder_of_too_many_files_is_a_mistake(folder, monkeypatch):
    monkeypatch.setattr(corpora_module, "MOST_FILES", 2)
    with pytest.raises(ValueError, match="holds more than 2 files; name a smaller folder"):
        find_texts(str(folder))


@pytest.mark.parametrize(("val_fraction", "max_val_chars"), [(0.1, 50_000), (0.1, None), (0.4, None)])
def test_stdlib_holds_out_whole_modules_of_all_sizes(tmp_path, val_fraction, max_val_chars):
    settings = {"max_chars": 900_000, "val_fraction": val_fraction, "max_val_chars": max_val_chars}
    written = OmegaConf.to_container(OmegaConf.load(PROJECT / "conf/data/stdlib.yaml"))
    config = StdlibConfig.model_validate({**written, "cache": "", **settings})  # type: ignore[dict-item]
    path, name, train = corpora_module.stdlib(config, tmp_path)
    assert name == f"stdlib of Python {platform.python_version()}"
    text = path.read_text(encoding="utf-8")
    assert train == int(900_000 * (1 - val_fraction))
    assert len(text) - train == (max_val_chars or 900_000 - train)

    modules = [Path(sysconfig.get_path("stdlib")) / f"{name}.py" for name in sys.stdlib_module_names]
    sources = [module.read_text(encoding="utf-8") for module in modules if module.is_file()]
    sources.sort(key=len)
    trained = [source in text[:train] for source in sources]
    # A stretch from the middle of a module that is held out occurs in validation, and never in training
    middles = [source[len(source) // 2 :][: 1 + len(source) // 200] for source in sources]
    held_out = [
        number
        for number, middle in enumerate(middles)
        if middle.strip() and middle in text[train:] and not trained[number]
    ]
    expected = round(len(sources) * val_fraction)
    assert len(held_out) >= 0.9 * expected
    for share in (0.25, 0.5, 0.75):  # of the modules by size: as many are held out below as there should be
        below = sum(number < share * len(sources) for number in held_out)
        assert abs(below - share * expected) <= 0.15 * expected + 2


def test_a_name_with_stars_is_a_name(tmp_path):
    (tmp_path / "a*.txt").write_text("x")
    (tmp_path / "ab.txt").write_text("x")
    assert find_texts(f"{tmp_path}/a*.txt") == [tmp_path / "a*.txt"]
