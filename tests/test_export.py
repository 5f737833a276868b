"""Exported files compute what the model computes, for other numbers of rows and steps than at export."""

import json
import resource

import numpy as np
import onnxruntime
import pytest
import torch

from cell_reference import random_state
from lstmlab import checkpoint
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.export import export
from lstmlab.schema import ExportConfig

SIZES = [(1, 1), (3, 17), (7, 4)]  # rows, steps


@pytest.fixture
def exported(tmp_path, trained):
    """exported("charlm", …): the model with weights of the order of 1, and a function that runs one of its
    exported files."""

    def build(name: str, *overrides: str):
        path = str(tmp_path / "drawn.ckpt")  # one step leaves peepholes and biases close to 0
        content = torch.load(trained(name, *overrides), weights_only=True)
        torch.manual_seed(0)
        for tensor in content["state_dict"].values():
            tensor.normal_(std=0.7)
        torch.save(content, path)
        files = export(ExportConfig(ckpt=path, format="onnx", folder=str(tmp_path / "onnx")))
        sessions = {file.stem: onnxruntime.InferenceSession(file) for file in files}

        def run(graph: str, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            session = sessions[graph]
            names = [output.name for output in session.get_outputs()]
            assert {i.name for i in session.get_inputs()} == inputs.keys()
            outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

        for session in sessions.values():
            described = session.get_modelmeta().custom_metadata_map
            assert {k: json.loads(described[k]) for k in ("config", "info")} == content["hyper_parameters"]
        return load_model(path), run

    return build


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def lengths(B: int, T: int) -> torch.Tensor:
    """Unsorted lengths; one row is full."""
    return torch.randint(1, T + 1, (B,)).index_fill(0, torch.tensor([B // 2]), T)


@torch.no_grad()
def test_charlm_as_onnx(exported):
    model, run = exported("charlm", "cell=scratch", "cell.kind=gru", "cell.num_layers=3")
    for B, T in SIZES:
        ids = torch.randint(len(model.vocabulary), (B, T))
        h = torch.randn(3, B, 8)
        logits, after = model(ids, (h,))
        close(run("model", tokens=ids, h=h), {"logits": logits, "next_h": after.h})


@torch.no_grad()
@pytest.mark.parametrize(
    ("backend", "kind", "pooling"),
    [
        ("torch", "lstm", "last"),
        ("fused", "peephole", "attention"),
        ("fused", "minlstm", "last"),
    ],
)
def test_sentiment_as_onnx(exported, backend, kind, pooling):
    cell = [f"cell={backend}", f"cell.kind={kind}", "cell.num_layers=2"]
    model, run = exported("sentiment", *cell, f"model.pooling={pooling}")
    for B, T in SIZES:
        ids, n = torch.randint(model.info["vocab_size"], (B, T)), lengths(B, T)
        logits, weights = model(ids, n)
        expected = {"logits": logits} | ({} if weights is None else {"attention": weights})
        close(run("model", tokens=ids, lengths=n), expected)


@torch.no_grad()
def test_copytask_as_onnx(exported):
    model, run = exported("copytask", "cell=fused", "cell.kind=rnn")
    for B, T in [(1, 21), (3, 70)]:
        ids = torch.randint(4, (B, T))
        close(run("model", tokens=ids), {"logits": model(ids)})


@torch.no_grad()
def test_seq2seq_as_onnx_one_step_at_a_time(exported):
    """Encoder and decoder, fed with a given target, give the logits of the whole model."""
    model, run = exported("seq2seq", "model.input_feeding=true", "cell.num_layers=2")
    for B, T in SIZES:
        source, n = torch.randint(model.info["vocab_size"], (B, T)), lengths(B, T)
        target = torch.randint(model.info["vocab_size"], (B, 5))
        logits, weights = model(source, n, target)
        encoded = run("encoder", source=source, lengths=n)
        memory, state = model.encode(source, n)
        close(encoded, memory._asdict() | state._asdict())
        readout = torch.zeros(B, 1, 6)
        for t in range(5):
            found = run("decoder", token=target[:, t], readout=readout, **encoded)
            attended = {"logits": logits[:, t], "attention": weights[:, t]}
            close({name: found[name] for name in attended}, attended)
            readout = found["next_readout"]
            encoded |= {k.removeprefix("next_"): found[k] for k in found if k in ("next_h", "next_c")}


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "backend", "layers", "more"),
    [
        ("slstm", "fused", 2, []),
        ("mingru", "scratch", 1, []),
        ("mogrifier", "fused", 1, ["cell.rank=2", "cell.rounds=3"]),
    ],
)
def test_kinds_without_an_operator_as_onnx(exported, kind, backend, layers, more):
    cell = [f"cell={backend}", f"cell.kind={kind}", f"cell.num_layers={layers}", *more]
    model, run = exported("charlm", *cell)
    for B, T in SIZES:
        ids = torch.randint(len(model.vocabulary), (B, T))
        state = random_state(kind, layers, B, 8)
        names = KINDS[kind].state._fields
        logits, after = model(ids, state)
        expected = {"logits": logits} | {f"next_{name}": s for name, s in after._asdict().items()}
        close(run("model", tokens=ids, **dict(zip(names, state, strict=True))), expected)


def test_a_full_disk_keeps_the_earlier_export(command, trained, tmp_path):
    arguments = [f"ckpt={trained('copytask')}", "format=safetensors", f"folder={tmp_path}"]
    assert command("export", *arguments)[0] == 0
    whole = (tmp_path / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        code, _, error = command("export", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and "File too large" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", ["charlm", "copytask", "sentiment", "seq2seq"])
def test_safetensors_open_like_the_checkpoint(command, trained, name):
    path = trained(name, *(["cell=fused", "cell.kind=layernorm"] if name == "charlm" else []))
    code, out, error = command("export", f"ckpt={path}", "format=safetensors")
    assert code == 0, error
    file = path.parents[1] / "export/model.safetensors"
    assert out.strip() == str(file)
    one, other = checkpoint.load_checkpoint(str(path)), checkpoint.load_checkpoint(str(file))
    assert one["hyper_parameters"] == other["hyper_parameters"]
    assert all(np.array_equal(tensor, other["state_dict"][k]) for k, tensor in one["state_dict"].items())
    load_model(str(file))
