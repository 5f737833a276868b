import hashlib
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lstmlab.data import build_data
from lstmlab.data import text as text_module
from lstmlab.data.corpora import Corpus
from lstmlab.data.text import UNKNOWN, encode
from lstmlab.schema import ShakespeareConfig, StdlibConfig, TextFileConfig

SIZES: dict[str, Any] = {"batch_size": 3, "sequence_length": 10, "val_fraction": 0.1, "max_val_chars": None}


def build(tmp_path, text, info=None, **changes):
    file = tmp_path / "some.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = {
        "name": "textfile",
        "path": str(file),
        "split": "whole",
        "cache": str(tmp_path / "cache"),
        **SIZES,
        **changes,
    }
    module = build_data(TextFileConfig.model_validate(settings), info=info)
    module.prepare_data()
    module.setup("fit")
    return module


def decode(module, ids):
    return "".join(module.info["vocabulary"][i] for i in ids)


def test_the_windows_are_contiguous_streams_of_the_text(tmp_path, text_file):
    text = text_file.read_text(encoding="utf-8")
    module = build(tmp_path, text)
    batches = list(module.train_dataloader())
    inputs = torch.cat([batch.inputs for batch in batches], 1)  # (B, per stream)
    targets = torch.cat([batch.targets for batch in batches], 1)
    per_stream = (5400 - 1) // 3
    assert inputs.shape == targets.shape == (3, per_stream)
    for row in range(3):
        start = row * per_stream
        assert decode(module, inputs[row]) == text[start : start + per_stream]
        assert decode(module, targets[row]) == text[start + 1 : start + 1 + per_stream]


def test_validation_reads_the_last_part(tmp_path, text_file):
    text = text_file.read_text(encoding="utf-8")
    module = build(tmp_path, text)
    stateful, cold = (list(loader) for loader in module.val_dataloader())
    assert decode(module, torch.cat([b.targets for b in stateful], 1)[0]) == text[5401:]
    windows = torch.cat([batch.inputs for batch in cold])
    assert windows.shape == (2, 256)
    assert decode(module, windows[1]) == text[5400 + 256 : 5400 + 512]
    limited = build(tmp_path, text, max_val_chars=300)
    stateful, _ = limited.val_dataloader()
    assert decode(module, torch.cat([b.targets for b in stateful], 1)[0]) == text[5401:5700]


@pytest.mark.parametrize(("kinds", "dtype"), [(255, "uint8"), (256, "uint16"), (70_000, "uint32")])
def test_a_vocabulary_of_any_size(tmp_path, kinds, dtype):
    """With UNKNOWN it has one character more; all that is read are the text's own characters."""
    characters = [chr(i) for i in range(0x10000, 0x10000 + kinds)]
    text = "".join(characters) * (2 if kinds > 1000 else 12)
    module = build(tmp_path, text, val_fraction=0.25)
    assert module.info["vocabulary"] == UNKNOWN + "".join(characters)
    assert module.meta["dtype"] == dtype
    train = module.meta["train"]
    streams = torch.cat([batch.inputs for batch in module.train_dataloader()], 1)
    assert decode(module, streams[2]) == text[2 * streams.size(1) : 3 * streams.size(1)]
    stateful, cold = (next(iter(loader)) for loader in module.val_dataloader())
    assert decode(module, stateful.inputs[0]) == text[train : train + stateful.inputs.size(1)]
    assert decode(module, cold.inputs[0]) == text[train : train + 256]
    assert decode(module, cold.targets[1]) == text[train + 257 : train + 513]


@pytest.mark.parametrize(("characters", "windows"), [(257, 1), (512, 1), (513, 2), (64 * 256 + 1, 64)])
def test_as_many_cold_windows_as_there_is_room_for(tmp_path, text_file, characters, windows):
    text = text_file.read_text(encoding="utf-8") * 6
    module = build(tmp_path, text, val_fraction=0.5, max_val_chars=characters)
    (batch,) = module.val_dataloader()[1]
    assert batch.targets.shape == (windows, 256)
    assert decode(module, batch.targets.flatten()) == text[18_001 : 18_001 + 256 * windows]


def test_texts_that_are_just_long_enough(tmp_path):
    sizes = {"batch_size": 4, "sequence_length": 100, "val_fraction": 0.5}
    assert len(build(tmp_path, "ab" * 401, **sizes).train_set) == 1  # 401 characters, 400 to predict
    with pytest.raises(ValueError, match="has 400 characters to train on"):
        build(tmp_path, "ab" * 400, **sizes)
    few = {"batch_size": 1, "sequence_length": 10, "val_fraction": 0.5}
    assert len(build(tmp_path, "ab" * 257, **few).val_sets[1]) == 1
    with pytest.raises(
        ValueError, match="leaves 256 of 512 characters for validation, which needs more than"
    ):
        build(tmp_path, "ab" * 256, **few)


def test_a_text_may_hold_the_sign_for_what_is_unknown(tmp_path):
    module = build(tmp_path, f"b{UNKNOWN}a" * 1000)
    assert module.info["vocabulary"] == UNKNOWN + "ab"
    assert module.train_set[0].inputs[0, :6].tolist() == [2, 0, 1, 2, 0, 1]


def test_a_character_that_training_never_saw_is_unknown(tmp_path):
    text = "ab" * 350 + "z" * 100 + "ab" * 300
    module = build(tmp_path, text, val_fraction=0.4)
    assert module.info["vocabulary"] == UNKNOWN + "abz"
    module = build(tmp_path, "ab" * 450 + "电" * 600, val_fraction=0.4)
    assert module.info["vocabulary"] == UNKNOWN + "ab"
    assert (next(iter(module.val_dataloader()[1])).inputs == 0).all()


def test_a_checkpoints_vocabulary_is_kept(tmp_path, text_file):
    """Also if the text lies in the cache, encoded with its own, or with that of another checkpoint."""
    text = text_file.read_text(encoding="utf-8")
    own = build(tmp_path, text).info["vocabulary"]
    for vocabulary in (UNKNOWN + "nile", UNKNOWN + "lien", own):
        module = build(tmp_path, text, info={"vocabulary": vocabulary})
        assert module.info["vocabulary"] == vocabulary
        expected = "".join(c if c in vocabulary else UNKNOWN for c in text[:10])
        assert decode(module, module.train_set[0].inputs[0]) == expected
    assert build(tmp_path, text).info["vocabulary"] == own


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_nothing(tmp_path, monkeypatch, chunk):
    """Characters of one to four bytes, split anywhere."""
    text = "aé电😀\r\n" * 50
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr(text_module, "CHUNK", chunk)
    encoded, meta = encode(Corpus(path, ""), 0.1, tmp_path)
    ids = np.fromfile(encoded, meta["dtype"])
    assert "".join(meta["vocabulary"][i] for i in ids) == text
    assert (meta["train"], meta["total"]) == (270, 300)


def test_encoding_is_done_once_for_a_content(tmp_path, text_file):
    encoded, meta = encode(Corpus(text_file, ""), 0.1, tmp_path)
    before = encoded.stat().st_mtime_ns
    assert encode(Corpus(text_file, ""), 0.1, tmp_path) == (encoded, meta)
    assert encoded.stat().st_mtime_ns == before
    other, cut = encode(Corpus(text_file, ""), 0.5, tmp_path)  # of which fewer characters train
    assert (cut["train"], cut["total"]) == (3000, 6000)
    text_file.write_text(text_file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert encode(Corpus(text_file, ""), 0.1, tmp_path)[0] not in (encoded, other)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (b"", {}, "is empty"),
        (b"abc\xff" * 500, {}, "is not UTF-8 text"),
        ("ab" * 15, {}, "has 27 characters to train on, fewer than data.batch_size=3"),
        ("ab" * 500, {}, "leaves 100 of 1000 characters for validation"),
    ],
)
def test_unsuitable_texts_are_refused(tmp_path, text, changes, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, text, **changes)


def test_stdlib_is_the_same_every_time(tmp_path):
    settings = {"name": "stdlib", "max_chars": 100_000, "cache": str(tmp_path), **SIZES}
    metas = []
    for _ in range(2):
        module = build_data(StdlibConfig.model_validate(settings))
        module.prepare_data()
        metas.append(module.meta)
        if len(metas) == 1:
            for file in tmp_path.iterdir():
                file.unlink()
    assert metas[0] == metas[1]
    assert metas[0]["total"] == 100_000
    folder = Path(sysconfig.get_path("stdlib"))
    modules = [path.stem for path in folder.glob("*.py") if path.stem in sys.stdlib_module_names]
    modules.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())  # not by their names
    sources = [(folder / f"{name}.py").read_text(encoding="utf-8") for name in modules[:5]]
    first = decode(module, np.fromfile(module.encoded, metas[1]["dtype"])[:200])
    assert first in [source[:200] for source in sources]  # the first that is not held out
    version = ".".join(map(str, sys.version_info[:3]))
    assert version in module.info["source"] and metas[0]["sha256"][:12] in module.info["source"]


def test_shakespeare_is_checked(tmp_path, real_data):
    source: dict[str, Any] = {
        "path": str(real_data / "shakespeare"),
        "hub": "nobody/nothing",
        "revision": "main",
    }
    settings = ShakespeareConfig(name="shakespeare", cache=str(tmp_path), **source, **SIZES)
    module = build_data(settings)
    module.prepare_data()
    assert (module.meta["train"], module.meta["total"]) == (1_003_854, 1_115_394)
    assert len(module.info["vocabulary"]) == 66
    (tmp_path / "input.txt").write_text("First Citizen:\nNo.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not Tiny Shakespeare"):
        build_data(settings.replace({"path": str(tmp_path)})).prepare_data()


def test_an_unreachable_hub_names_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source: dict[str, Any] = {"path": None, "hub": "nobody/nothing", "revision": "main"}
    settings = ShakespeareConfig(name="shakespeare", cache=str(tmp_path), **source, **SIZES)
    with pytest.raises(ConnectionError, match=r"nobody/nothing at main.*data\.path=FOLDER.*data=stdlib"):
        build_data(settings).prepare_data()
