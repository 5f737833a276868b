"""A trained model as a file to ship: ONNX, which needs neither Python nor PyTorch, or safetensors."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lstmlab.cells.base import Recurrent, State
from lstmlab.checkpoint import FORMAT, digest, load_model
from lstmlab.models.attention import Memory

# The operator of each kind, and which of our gates stand first, second … in its weights
OPERATORS = {
    "lstm": ("LSTM", [0, 3, 1, 2]),  # i, o, f, g
    "peephole": ("LSTM", [0, 3, 1, 2]),
    "gru": ("GRU", [1, 0, 2]),  # z, r, n
    "rnn": ("RNN", [0]),
}
OPSET = 20


def export(config: dict[str, Any]) -> list[Path]:
    """Write checkpoint `config["ckpt"]` as `config["format"]`; returns the files.

    ONNX: model.onnx, for any number of rows and steps; of seq2seq encoder.onnx and decoder.onnx, which takes
    one step. Their metadata `config` and `info` hold, as JSON, the configuration and the vocabulary.
    safetensors: model.safetensors, which `checkpoint.load` reads.

    Raises what `checkpoint.load` raises, and ValueError for layernorm cells as ONNX or missing packages.
    """
    model: Any = load_model(config["ckpt"])
    described = {"config": model.config, "info": model.info}
    ckpt = Path(config["ckpt"])
    run = ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent
    folder = Path(config["folder"] or run / "export")
    if config["format"] == "onnx":
        return export_onnx(model, described, folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # none shared
    written = json.dumps({"lstmlab_format": FORMAT, "hyper_parameters": described})
    metadata = {"lstmlab": written, "sha256": digest(written, state)}
    file = folder / "model.safetensors"
    file.write_bytes(save(state, metadata))
    return [file]


def export_onnx(model: Any, described: dict[str, dict], folder: Path) -> list[Path]:
    """The graphs of `model` as files in `folder`."""
    kind = model.config["cell"]["kind"]
    if kind not in OPERATORS:
        raise ValueError(f"format=onnx has no operator for cell.kind={kind}; use format=safetensors")
    try:
        import onnxscript  # noqa: F401  torch.onnx would find out later
    except ModuleNotFoundError as error:
        raise ValueError(f"format=onnx needs pip install -e '.[export]': {error}") from error
    for name, cell in [(name, cell) for name, cell in model.named_modules() if isinstance(cell, Recurrent)]:
        setattr(model, name, OperatorCell(cell))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    files = []
    for name, graph in graphs(model).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            program: Any = torch.onnx.export(
                Call(model, graph.function),
                tuple(graph.inputs.values()),
                input_names=list(graph.inputs),
                output_names=graph.outputs,
                dynamic_shapes=(tuple(AXES[name] for name in graph.inputs),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        program.model.metadata_props.update({key: json.dumps(part) for key, part in described.items()})
        folder.mkdir(parents=True, exist_ok=True)
        program.save(folder / f"{name}.onnx")
        files.append(folder / f"{name}.onnx")
    return files


class OperatorCell(nn.Module):
    """A cell as one ONNX operator a layer, whatever the number of steps; for `torch.onnx.export` alone."""

    def __init__(self, cell: Recurrent):
        super().__init__()
        self.operator, order = OPERATORS[cell.kind]
        self.hidden_size, self.state_type = cell.hidden_size, cell._state_type
        self.directions = D = cell._num_directions

        def ordered(weight: Tensor) -> Tensor:
            gates = weight.unflatten(0, (-1, cell.hidden_size))  # (gates, H, …)
            return gates[order].flatten(0, 1)

        weights = cell._weights()
        self.layers: Any = nn.ModuleList()
        for k in range(0, len(weights), D):
            W, R, b_W, b_R = (
                torch.stack([ordered(own[n]) for own in weights[k : k + D]]) for n in range(4)
            )  # (D, gates · H, …)
            parts = [W, R, torch.cat([b_W, b_R], 1)]
            if cell.kind == "peephole":
                parts.append(torch.stack([torch.cat([i, o, f]) for *_, i, f, o in weights[k : k + D]]))
            self.layers.append(nn.ParameterList(parts))

    def forward(
        self, x: Tensor, state: Sequence[Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        D, H, x = self.directions, self.hidden_size, x.transpose(0, 1)  # (T, B, I)
        T, B, _ = x.shape
        members = len(self.state_type._fields)
        if state is None:
            state = [x.new_zeros(len(self.layers) * D, B, H)] * members
        attributes: dict[str, Any] = {"hidden_size": H}
        if D == 2:
            attributes["direction"] = "bidirectional"
        if self.operator == "GRU":
            attributes["linear_before_reset"] = 1
        finals = []
        for k, (W, R, b, *peepholes) in enumerate(self.layers):
            start = [s[k * D : k * D + D] for s in state]
            x, *final = torch.onnx.ops.symbolic_multi_out(
                self.operator,
                [x, W, R, b, None if lengths is None else lengths.int(), *start, *peepholes],
                attributes,
                dtypes=[x.dtype] * (1 + members),
                shapes=[(T, D, B, H)] + [(D, B, H)] * members,
                version=14,
            )
            x = x.transpose(1, 2).flatten(2)  # (T, D, B, H) → (T, B, D·H)
            finals.append(final)
        return x.transpose(0, 1), self.state_type(*(torch.cat(parts) for parts in zip(*finals, strict=True)))


class Graph(NamedTuple):
    function: Callable[..., Any]
    inputs: dict[str, Tensor]  # an example
    outputs: list[str]


class Call(nn.Module):
    """A function of a model's as the module that `torch.onnx.export` asks for."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


BATCH, STEPS = torch.export.Dim("batch"), torch.export.Dim("steps")
ROWS_AND_STEPS = ("tokens", "source", "values", "keys", "mask")  # (B, T, …) or (B, S, …)
AXES: dict[str, dict] = {name: {0: BATCH, 1: STEPS} for name in ROWS_AND_STEPS}
AXES |= {"h": {1: BATCH}, "c": {1: BATCH}, "lengths": {0: BATCH}, "token": {0: BATCH}, "readout": {0: BATCH}}


def graphs(model: Any) -> dict[str, Graph]:
    """What becomes a file of its own: one graph, of seq2seq two."""
    config = model.config
    name, cell = config["model"]["name"], config["cell"]
    lengths = torch.tensor([5, 3])
    B, T = 2, int(lengths[0])
    if name == "copytask":
        tokens = torch.zeros(B, 2 * model.length + model.info["max_delay"] + 1, dtype=torch.long)
        return {"model": Graph(model, {"tokens": tokens}, ["logits"])}
    tokens = torch.ones(B, T, dtype=torch.long)
    if name == "sentiment":
        outputs = ["logits", "attention"] if model.pooling == "attention" else ["logits"]
        return {"model": Graph(model, {"tokens": tokens, "lengths": lengths}, outputs)}

    recurrent = model.cell if name == "charlm" else model.decoder
    members = recurrent.state_type._fields
    state = {member: torch.zeros(cell["num_layers"], B, cell["hidden_size"]) for member in members}
    after = [f"next_{member}" for member in members]
    if name == "charlm":
        return {
            "model": Graph(
                lambda tokens, *s: model(tokens, s), {"tokens": tokens} | state, ["logits", *after]
            )
        }

    def decode(token: Tensor, readout: Tensor, *rest: Tensor) -> Any:
        memory, state = Memory(*rest[:3]), rest[3:]
        embedded = model.embed(model.target_embedding, token[:, None])  # (B, 1, E)
        readout, weights, state = model.step(embedded, readout, state, memory)
        return model.projection(readout)[:, 0], weights[:, 0], readout, state

    with torch.no_grad():
        memory, _ = model.encode(tokens, lengths)
    step = {"token": tokens[:, 0], "readout": torch.zeros(B, 1, config["model"]["embedding_size"])}
    return {
        "encoder": Graph(model.encode, {"source": tokens, "lengths": lengths}, [*Memory._fields, *members]),
        "decoder": Graph(
            decode, step | memory._asdict() | state, ["logits", "attention", "next_readout", *after]
        ),
    }
