"""Who wrote what is in a memory, and what a prediction owes to each token: exact bookkeeping.

A memory m that is kept by a gate, m' = r ⊙ m + w, is a sum over what each step wrote (w), times how much of
it the gates have let through since then (∏ r):

    c_T = (∏ f_τ) ⊙ c_0 + Σ_s (∏_{s<τ≤T} f_τ) ⊙ i_s ⊙ g_s        LSTM kinds: r = f, w = i ⊙ g
    h_T = (∏ z_τ) ⊙ h_0 + Σ_s (∏_{s<τ≤T} z_τ) ⊙ (1 − z_s) ⊙ n_s  GRU: r = z, w = (1 − z) ⊙ n
    h_T: r = 1 − z, w = z ⊙ g for the minGRU, and r = f, w = i ⊙ g for the minLSTM

This says where the number came from. It is not cause, since i, f and g themselves depend on earlier steps:
for that, hold a unit and see what changes (`interventions`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstmlab.analysis.gates import find_retained, kept_by, memory_of
from lstmlab.analysis.interventions import Cache, find_point, intervene, list_points
from lstmlab.cells import KINDS
from lstmlab.models.base import Task


def attribute_memory(model: Task, cache: Cache, point: str, step: int = -1) -> Tensor:
    """What each step put into a memory and is still there at `step`.

    model: with scratch cells; cache: of a run over one text, without a change of its memory.
    point: a cell state, `layer1.c` or `layer1.c[174]`; of a kind that has none, its h.
    Returns (T, units): they sum to the memory at `step`, which began at 0. Steps that were read later have 0.

    Raises ValueError for a point that is not a memory that a gate keeps, such as the h of an RNN.
    """
    place, units = find_point(point, list_points(model))
    if place.symbol == "attention":
        raise ValueError(f"{point!r} is not the memory of a cell")
    array = point.partition("[")[0].strip()
    layer, kind = array.rpartition(".")[0], place.module.kind
    if place.symbol != memory_of(kind):
        raise ValueError(f"{point!r} is not the memory of kind={kind}, which is {layer}.{memory_of(kind)}")
    memory = cache[array][0]  # (T, H)
    weights = torch.zeros_like(memory)
    weights[step] = 1
    reverse = layer.endswith("reverse")
    return _sum_back(weights, memory, _retained(cache, layer, kind), reverse)[:, units]


def attribute_prediction(model: Task, text: str, target: str, step: int = -1) -> tuple[Tensor, float]:
    """What each token of `text` adds to the logit of `target`, through the memory of the top layer.

    model: charlm (target: the character that may follow `step`) or sentiment (a class), with scratch cells.
    Returns (T,) and the bias: their sum is the logit. An output h = o ⊙ tanh(c) is taken as c times the
    factor o ⊙ tanh(c)/c, that of an sLSTM as c times o/n, and layers below the top one as given. Of two
    classes, the logit is that of the second; for the first it has the other sign.

    Raises ValueError for another task, an unknown target, and for pooling by attention, whose weights are no
    part of a sum.
    """
    cell, rows = model.traced_cell(), model.read_text(text)
    answers, two = _answers(model)
    if target not in answers:
        raise ValueError(f"target={target!r} is none of {', '.join(map(repr, answers))}")
    index, outputs = answers.index(target), []
    memory_name = memory_of(cell.kind)

    def cut(module: Any, arguments: Any, result: Any) -> Any:
        """Make the outputs leaves, so that the gradient is what reads them, not what made them."""
        output, state = result
        output = output.detach().requires_grad_()
        last, H = state.h.detach().clone(), output.size(2) // cell._num_directions
        last[-cell._num_directions] = output[:, -1, :H]
        if cell.bidirectional:
            last[-1] = output[:, 0, H:]
        outputs.append(output)
        return output, type(state)(last, *state[1:])

    handle = cell.register_forward_hook(cut)
    try:
        with torch.enable_grad(), intervene(model, {}, record=True) as cache:
            logits = model.run(rows)
    finally:
        handle.remove()
    values = logits[0, step] if model.writes_text else logits[0]
    logit = values if two else values[index]
    [read] = torch.autograd.grad(logit, outputs)  # (1, T, D·H)
    total = torch.zeros(outputs[0].size(1), dtype=read.dtype, device=read.device)
    for d, of_direction in enumerate(read[0].chunk(cell._num_directions, 1)):
        layer = f"layer{cell.num_layers - 1}" + (".reverse" if d else "")
        memory, h = cache[f"{layer}.{memory_name}"][0].detach(), cache[f"{layer}.h"][0].detach()
        limit = cache[f"{layer}.o"][0].detach() if memory_name == "c" else torch.ones_like(h)
        if cell.kind == "slstm":
            limit = limit / cache[f"{layer}.n"][0].detach()
        factor = torch.where(memory == 0, limit, h / memory)  # tanh(c)/c is 1 at 0
        retained = _retained(cache, layer, cell.kind).detach()
        total += _sum_back(of_direction * factor, memory, retained, reverse=d == 1).sum(1)
    sign = -1 if two and index == 0 else 1
    return sign * total, sign * float(logit.detach() - total.sum())


def _retained(cache: Cache, layer: str, kind: str) -> Tensor:
    """The share (T, H) of the old memory that each step keeps."""
    return find_retained(kept_by(kind), {gate: cache[f"{layer}.{gate}"][0] for gate in KINDS[kind].gates})


def _answers(model: Task) -> tuple[Sequence[str], bool]:
    """The names of the model's logits, and whether one logit stands for two classes."""
    if (vocabulary := getattr(model, "vocabulary", None)) is not None:
        return list(vocabulary), False
    labels = getattr(model, "labels", None)
    if labels is None:
        raise model.unsupported("has no prediction to attribute: only characters and classes have names")
    if model.pooling == "attention":
        raise ValueError("model.pooling=attention weighs the steps by what they hold, which is no sum")
    return labels, len(labels) == 2


def _sum_back(weights: Tensor, memory: Tensor, retained: Tensor, reverse: bool) -> Tensor:
    """Σ_t weights_t ⊙ memory_t, split by the step that wrote it: each (T, H) → (T, H).

    memory_t = retained_t ⊙ memory_{t−1} + written_t, from 0 on.
    """
    if reverse:
        return _sum_back(weights.flip(0), memory.flip(0), retained.flip(0), False).flip(0)
    before = torch.cat([torch.zeros_like(memory[:1]), memory[:-1]])
    written = memory - retained * before
    wanted, found = torch.zeros_like(memory[0]), torch.empty_like(memory)
    for t in reversed(range(len(memory))):
        wanted = wanted + weights[t]
        found[t] = wanted * written[t]
        wanted = wanted * retained[t]
    return found
