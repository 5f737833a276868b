"""Export a trained model as ONNX, which needs neither Python nor PyTorch, as safetensors or as a page."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.fx.experimental import _config

from lstmlab.atomic import replace_file
from lstmlab.cells.base import Recurrent, State
from lstmlab.cells.scratch import STEPS as EQUATIONS
from lstmlab.cells.stack import Stack
from lstmlab.checkpoint import FORMAT, compute_digest, find_run_folder, load_checkpoint, rebuild_model
from lstmlab.models.base import Graph, Task
from lstmlab.pages.build import build_page
from lstmlab.schema import ExportConfig

# The ONNX operator of a kind, if it has one, and the order of our gates in its weights
OPERATORS = {
    "lstm": ("LSTM", [0, 3, 1, 2]),  # i, o, f, g
    "peephole": ("LSTM", [0, 3, 1, 2]),
    "gru": ("GRU", [1, 0, 2]),  # z, r, n
    "rnn": ("RNN", [0]),
}
OPSET = 20
symbolic_shapes: Any = _config
STEPS = torch.export.Dim("steps")
DIMS = {"B": torch.export.Dim("batch"), "T": STEPS, "S": STEPS}  # the dynamic axes of a `Graph`


def export(config: ExportConfig) -> list[Path]:
    """Write checkpoint `config.ckpt` as `config.format`, with `config.average` the mean of the latest ones.
    Returns the files.

    onnx: one file for each of the task's `graphs`, for any number of rows and steps: model.onnx, or for
    seq2seq encoder.onnx and decoder.onnx (one step). The metadata `config` and `info` hold the configuration
    and the vocabulary as JSON. safetensors: model.safetensors, which `load_checkpoint` reads. html:
    model.html, in which a model of lstm, layernorm, gru or rnn cells runs.

    Writes nothing unless all files can be built. Raises what `load_checkpoint` raises, and ValueError if
    the task has no graph or page, a cell has no JavaScript, or a package is missing.
    """
    checkpoint = load_checkpoint(config.ckpt, config.average)
    model = rebuild_model(checkpoint, config.ckpt)
    folder = Path(config.folder or find_run_folder(config.ckpt) / "export")

    contents = BUILDERS[config.format](model, checkpoint["hyper_parameters"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with replace_file(folder / name) as file:
            file.write(content)
    return [folder / name for name in contents]


def build_safetensors_files(model: Task, hyper_parameters: dict[str, Any]) -> dict[str, bytes]:
    """{file name: content} of the weights and the configuration of `model`."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # no shared memory
    described = json.dumps({"lstmlab_format": FORMAT, "hyper_parameters": hyper_parameters})
    metadata = {"lstmlab": described, "sha256": compute_digest(described, state)}
    return {"model.safetensors": save(state, metadata)}


def build_onnx_files(model: Task, hyper_parameters: dict[str, Any]) -> dict[str, bytes]:
    """{file name: content} of the graphs of `model`, whose cells become `OperatorCell`s or `ScanCell`s."""
    graphs = model.graphs()
    cells = {name: cell for name, cell in model.named_modules() if isinstance(cell, Recurrent)}
    try:
        import onnxscript  # noqa: F401  torch.onnx would fail later, after seconds
    except ModuleNotFoundError as error:
        raise ValueError(f"format=onnx needs pip install -e '.[export]': {error}") from error

    for name, cell in cells.items():
        model.set_submodule(name, OperatorCell(cell) if cell.kind in OPERATORS else ScanCell(cell))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    metadata = {key: json.dumps(value) for key, value in hyper_parameters.items()}
    return {f"{name}.onnx": build_onnx_file(model, graph, metadata) for name, graph in graphs.items()}


def build_onnx_file(model: Task, graph: Graph, metadata: dict[str, str]) -> bytes:
    inputs, axes = zip(*graph.inputs.values(), strict=True)
    shapes = tuple({k: DIMS[axis] for k, axis in enumerate(names) if axis in DIMS} for names in axes)
    # Without the patch PyTorch takes sizes for one that are only equal here, as B and the number of layers.
    with warnings.catch_warnings(), symbolic_shapes.patch(use_duck_shape=False), torch.no_grad():
        # torch.onnx warns about its own code
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            FunctionModule(model, graph.function),
            inputs,
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


class OperatorCell(nn.Module):
    """A cell as one ONNX operator per layer, for any number of steps. Only `torch.onnx.export` can run it."""

    def __init__(self, cell: Recurrent):
        super().__init__()
        self.operator, order = OPERATORS[cell.kind]
        self.hidden_size, self.state_type = cell.hidden_size, cell._state_type
        self.directions = D = cell._num_directions

        def reorder(weight: Tensor) -> Tensor:
            gates = weight.unflatten(0, (-1, cell.hidden_size))  # (gates, H, …)
            return gates[order].flatten(0, 1)

        weights = cell._weights()
        self.layers: Any = nn.ModuleList()
        for k in range(0, len(weights), D):
            W, R, b_W, b_R = (
                torch.stack([reorder(own[n]) for own in weights[k : k + D]]) for n in range(4)
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


class ScanCell(nn.Module):
    """A cell's equations in the ONNX operator Scan, once per layer and direction, for any number of steps."""

    def __init__(self, cell: Any):
        super().__init__()
        self.cell = cell

    def forward(
        self, x: Tensor, state: Sequence[Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        scan_layer = partial(self.cell._scan_layer, steps=self._scan_steps)
        return self.cell._call(partial(Stack._run_layers, self.cell, scan=scan_layer), x, state, lengths)

    def _scan_steps(
        self, x: Tensor, state: Sequence[Tensor], mask: Tensor | None, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """As `Stack._run_steps`."""

        def step(state: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            # The weights are cut up in here: a scan refuses tensors from outside that share memory.
            new, _ = EQUATIONS[self.cell.kind](*weights)(inputs[0], *state)
            if len(inputs) == 2:
                new = [torch.where(inputs[1], n, s) for n, s in zip(new, state, strict=True)]
            return list(new), new[0].clone()

        final, h = scan(step, list(state), [x] if mask is None else [x, mask])
        return h, final


class FunctionModule(nn.Module):
    """A function of a model, wrapped in the module that `torch.onnx.export` requires."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


BUILDERS: dict[str, Callable[[Task, dict[str, Any]], dict[str, bytes]]] = {
    "onnx": build_onnx_files,
    "safetensors": build_safetensors_files,
    "html": build_page,
}
