"""The training step of a character model under torch.compile, against the same step without it."""

import time
from collections.abc import Callable

import torch
from torch._dynamo.utils import counters

from lstmlab.benchmarks.timing import Section, TimingRow, time_in_turn
from lstmlab.data.text import TextBatch
from lstmlab.models.charlm import CharLM
from lstmlab.runs.train import keep_freed_memory
from lstmlab.schema import TrainConfig

VOCABULARY = "\0" + "".join(map(chr, range(32, 127)))
LENGTHS = (2, 17, 100, 256)  # of further steps that the same graph has to take


def measure_compiled_step(config: TrainConfig, rounds: int) -> Section:
    """Time the step of `model=charlm` with the settings of the run, compiled as one graph for all lengths."""
    keep_freed_memory()
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(config.seed)
    model = CharLM(config, {"vocabulary": VOCABULARY})
    B, T = config.data.batch_size, config.data.sequence_length

    def train_step(loss: Callable, T: int = T) -> None:
        batch = TextBatch(*torch.randint(1, len(VOCABULARY), (2, B, T)))
        model.zero_grad()
        loss(batch, None)[0].backward()

    compiled = torch.compile(model.loss, fullgraph=True, dynamic=True)
    start = time.perf_counter()
    train_step(compiled)
    seconds = time.perf_counter() - start

    for other in LENGTHS:
        train_step(compiled, other)
    graphs = counters["stats"]["unique_graphs"]

    contenders = {"eager": lambda: train_step(model.loss), "torch.compile": lambda: train_step(compiled)}
    cell = config.cell
    size = f"cell={cell.backend}, {cell.num_layers} × {cell.hidden_size}, B {B}, T {T}"
    lengths = ", ".join(map(str, (T, *LENGTHS)))
    title = f"A compiled step of charlm: {seconds:.1f} s to compile, graphs for T = {lengths}: {graphs}"
    return Section(title, "torch.compile", [TimingRow(size, time_in_turn(contenders, rounds))])
