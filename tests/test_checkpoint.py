"""Which files open as checkpoints, and which are refused; --fuzz 10000 tries more damage."""

import io
import json
import random
import resource
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from lstmlab import checkpoint
from lstmlab.export import export
from lstmlab.schema import ExportConfig


def equal(one, other) -> bool:
    """Of the same types and values all the way down; tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.fixture
def whole(trained, tmp_path) -> Path:
    return Path(shutil.copy(trained("charlm"), tmp_path / "whole.ckpt"))


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, whole):
    path, trace = tmp_path / "x.ckpt", tmp_path / "trace"
    content = torch.load(whole, weights_only=True)
    torch.save(content | {"more": Trap(trace)}, path)
    with pytest.raises(ValueError, match="could run code"):
        checkpoint.load_checkpoint(str(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # without weights_only the code runs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "was not written by lstmlab"),
        ({"state_dict": {}, "hyper_parameters": {"lr": 1}}, "was not written by lstmlab"),
        ({"state_dict": [], "hyper_parameters": {}}, "was not written by lstmlab"),
        ({"state_dict": {}, "hyper_parameters": {"config": {}}}, "was not written by lstmlab"),
        ({"state_dict": {}, "hyper_parameters": {"info": {}}}, "was not written by lstmlab"),
        ([1, 2], "was not written by lstmlab"),
        (torch.zeros(3), "was not written by lstmlab"),
        ({"lstmlab_format": None}, "by an older lstmlab: it has no format number"),
        ({"lstmlab_format": 0.5}, "by an older lstmlab"),
        (
            {"lstmlab_format": checkpoint.FORMAT + 1},
            f"by a newer lstmlab: its format is {checkpoint.FORMAT + 1}",
        ),
    ],
)
def test_other_programs_and_versions_are_refused(tmp_path, whole, content, message):
    if isinstance(content, dict) and "lstmlab_format" in content:
        content = torch.load(whole, weights_only=True) | content
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load_checkpoint(str(tmp_path / "x.ckpt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["cell"].pop("init"), "another version of lstmlab: cell.init"),
        (lambda c: c["cell"].update(depth=3), "another version of lstmlab: cell.depth=3: no such key"),
        (lambda c: c["model"].update(name="lm"), "another version of lstmlab: model"),
        (lambda c: c["cell"].update(hidden_size=16), "its weights do not fit its configuration"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, whole, change, message):
    content = torch.load(whole, weights_only=True)
    change(content["hyper_parameters"]["config"])
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load_model(str(tmp_path / "x.ckpt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["scratch", "torch", None])
def test_a_loaded_model_is_in_evaluation_mode(trained, backend):
    """With the cells of any backend, also if it was trained with cell.recompute=true."""
    path = trained("charlm", "cell=fused", "cell.recompute=true")
    model = checkpoint.load_model(str(path), backend)
    assert not any(module.training for module in model.modules())
    assert model.config.cell.backend == (backend or "fused")
    assert model.config.cell.recompute == (backend is None)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (lambda config, info: config["cell"].update(hidden_size=10**9), []),
        (lambda config, info: config["cell"].update(hidden_size=30_000), []),
        (lambda config, info: config["cell"].update(num_layers=10**9), []),
        (lambda config, info: config["model"].update(embedding_size=10**9), []),
        (
            lambda config, info: config["model"].update(embedding_size=10**6),
            ["embedding.weight", "cell.weight_ih_l0"],
        ),
        (lambda config, info: info.update(vocabulary=5), []),
    ],
)
def test_invented_sizes_allocate_no_memory(tmp_path, whole, change, keys):
    """Also if the tensors claim to be that large by repeating one number."""
    content = torch.load(whole, weights_only=True)
    change(content["hyper_parameters"]["config"], content["hyper_parameters"]["info"])
    for key in keys:
        rows = content["state_dict"][key].size(0)
        content["state_dict"][key] = torch.zeros(1).expand(rows, 10**6)
    torch.save(content, tmp_path / "x.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="its weights do not fit its configuration"):
        checkpoint.load_model(str(tmp_path / "x.ckpt"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def rezip(path: Path, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def with_entry(path: Path, rename) -> bytes:
    """The archive with one more entry, whose name is `rename` of the name of the first tensor."""
    buffer = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(buffer, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns about the duplicate name
            archive.writestr(rename(name), archive.read(name))
    return buffer.getvalue()


def as_directory(path: Path) -> bytes:
    """With the bit set that marks the first tensor as a directory: torch.load would not read it."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2", content.rindex(b"data/0") - 60)
    content[entry + 38] ^= 0x10
    return bytes(content)


def legacy(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.load(path, weights_only=True), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: b"", "is empty"),
        (lambda path: b"no checkpoint", "is not a checkpoint"),
        (legacy, "is not a checkpoint"),  # torch.load would read it, but it has no checksum
        (lambda path: b"legacy" + path.read_bytes(), "is not a checkpoint"),
        (lambda path: path.read_bytes()[:100], "is damaged, truncated or"),
        (lambda path: path.read_bytes()[:-1], "is damaged, truncated or"),
        (lambda path: path.read_bytes().replace(b"xavier", b"chrono", 1), "is damaged"),
        (as_directory, "is damaged"),
        (lambda path: rezip(path, zipfile.ZIP_DEFLATED), "is damaged"),  # could be a zip bomb
        (lambda path: with_entry(path, lambda name: name), "is damaged"),
        (lambda path: with_entry(path, lambda name: name.upper()), "is damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, whole, make, message):
    path = tmp_path / "x.ckpt"
    path.write_bytes(make(whole))
    with pytest.raises(ValueError, match=message):
        checkpoint.load_checkpoint(str(path))


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("letter.txt", "Dear Sir")
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint.load_checkpoint(str(tmp_path / "x.ckpt"))
    with pytest.raises(FileNotFoundError, match="a folder"):
        checkpoint.load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("altered", ["shape", "dtype", "name"])
def test_the_checksum_covers_shapes_types_and_names(tmp_path, whole, altered):
    """The numbers are unchanged, but form another matrix."""
    (file,) = export(ExportConfig(ckpt=str(whole), format="safetensors", folder=str(tmp_path)))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    described = header.pop("cell.weight_hh_l0")
    rows, columns = described["shape"]
    assert rows != columns and described["dtype"] == "F32"
    described |= {"shape": {"shape": [columns, rows]}, "dtype": {"dtype": "I32"}}.get(altered, {})
    header["cell.weight_hh_l00" if altered == "name" else "cell.weight_hh_l0"] = described
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + content[end:])
    with pytest.raises(ValueError, match="fails its checksum"):
        checkpoint.load_checkpoint(str(file))


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_random_damage_is_always_noticed(tmp_path, whole, pytestconfig, kind):
    """Truncated or with one bit flipped: refused, or (if only a time stamp changed) read as it was."""
    if kind == "safetensors":
        (whole,) = export(ExportConfig(ckpt=str(whole), format=kind, folder=str(tmp_path)))
    expected, content, rng = checkpoint.load_checkpoint(str(whole)), whole.read_bytes(), random.Random(0)
    path = tmp_path / f"x.{kind}"
    refused = 0
    for number in range(pytestconfig.getoption("--fuzz")):
        damaged = bytearray(content)
        if number % 4 == 0:
            del damaged[rng.randrange(len(content)) :]
        elif number % 4 == 1:  # the archive's directory, a small part of the file
            at = rng.randrange(5000)
            damaged[at if kind == "safetensors" else -1 - at] ^= 1 << rng.randrange(8)
        else:
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = checkpoint.load_checkpoint(str(path))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert equal(found, expected), number
    print(f"{refused} refused, {number + 1 - refused} read as they were")
