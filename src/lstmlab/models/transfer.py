"""Start from another model: its vocabulary and weights, frozen at first, with lower rates below."""

import re
from typing import Any

import torch
from torch import nn

from lstmlab.schema import TokenizerConfig, TrainConfig

NUMBERED = re.compile(r"_l(\d+)(_reverse)?$")  # a parameter of a recurrent stack
SIZES = (("model", "embedding_size"), ("cell", "kind"), ("cell", "hidden_size"), ("cell", "num_layers"))


def name_layer(name: str) -> str:
    """The layer of a parameter, with its number and direction in a recurrent stack."""
    module, _, parameter = name.rpartition(".")
    numbered = NUMBERED.search(parameter)
    return module + (f" layer {numbered[1]}{' backwards' if numbered[2] else ''}" if numbered else "")


def measure_heights(model: nn.Module) -> dict[str, int]:
    """By name of each parameter: 0 for embeddings, 1 + k for layer k of a stack, one more for the rest."""
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    lowest = {id(parameter) for module in embeddings for parameter in module.parameters()}
    heights = {}
    for name, parameter in model.named_parameters():
        numbered = NUMBERED.search(name)
        heights[name] = 0 if id(parameter) in lowest else 1 + int(numbered[1]) if numbered else -1
    top = 1 + max(heights.values(), default=0)
    return {name: top if height < 0 else height for name, height in heights.items()}


def take_tokenizer(config: TrainConfig, checkpoint: dict[str, Any]) -> str | None:
    """The tokenizer of a checkpoint for data that have one, as a JSON string.

    Raises ValueError if the settings ask for another tokenizer.
    """
    hyper_parameters = checkpoint["hyper_parameters"]
    tokenizer = hyper_parameters["info"].get("tokenizer")
    if tokenizer is None or not isinstance(config.data, TokenizerConfig):
        return None
    there, here = hyper_parameters["config"]["data"], config.data.to_plain()
    differ = [key for key in ("tokenizer", "vocab_size", "lowercase") if there[key] != here[key]]
    if differ:
        asked = " ".join(f"data.{key}={str(here[key]).lower()}" for key in differ)
        needed = " ".join(f"data.{key}={str(there[key]).lower()}" for key in differ)
        raise ValueError(
            f"model.init_from={config.model.init_from} brings its own vocabulary, which {asked} contradicts; "
            f"set {needed}"
        )
    return tokenizer


def take_weights(model: Any, checkpoint: dict[str, Any]) -> str:
    """Copy what fits of a checkpoint into a `Task`, and name it in `model.taken`. Returns what to print.

    A layer is taken as a whole, if each of its parameters has the same name and shape in the checkpoint. An
    embedding also needs the same vocabulary; all but embeddings and recurrent stacks also the same task.

    Raises ValueError if nothing fits.
    """
    path, state = model.config.model.init_from, checkpoint["state_dict"]
    parameters = dict(model.named_parameters())
    layers: dict[str, list[str]] = {}
    for name in parameters:
        layers.setdefault(name_layer(name), []).append(name)
    taken, left = [], []
    for layer, names in layers.items():
        if reason := explain_misfit(model, checkpoint, {name: parameters[name] for name in names}):
            left.append(f"{layer} ({reason})")
        else:
            taken.append(f"{layer} {tuple(parameters[names[0]].shape)}")
            model.taken += names
    if not taken:
        there, here = checkpoint["hyper_parameters"]["config"], model.config.to_plain()
        sizes = [
            f"{group}.{key}={there[group][key]}"
            for group, key in SIZES
            if key in there[group] and there[group][key] != here[group].get(key)
        ]
        advice = f"; it has {' '.join(sizes)}" if sizes else ""
        raise ValueError(f"model.init_from={path} has nothing that fits: {', '.join(left)}{advice}")

    with torch.no_grad():
        for name in model.taken:
            parameters[name].copy_(state[name])
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # a language model does not pad
    tokenizer = checkpoint["hyper_parameters"]["info"].get("tokenizer")
    if tokenizer is not None and tokenizer == model.info.get("tokenizer"):
        taken.append(f"the vocabulary of {model.info['vocab_size']:,} tokens")
    unread = dict.fromkeys(layer for layer in map(name_layer, state) if layer not in layers)
    left += [f"{layer} (only there)" for layer in unread]
    lines = [f"From {path}: {', '.join(taken)}"]
    if left:
        lines.append(f"Left: {', '.join(left)}")
    if (after := model.config.model.unfreeze_after) is not None:
        plan = [
            f"{', '.join(dict.fromkeys(map(name_layer, names)))} for {number * after:g}"
            for number, names in enumerate(list_frozen(model), 1)
        ]
        lines.append(f"Frozen, in epochs: {', '.join(plan) or 'nothing'}")
    return "\n".join(lines)


def explain_misfit(model: Any, checkpoint: dict[str, Any], layer: dict[str, nn.Parameter]) -> str | None:
    """Why the parameters of a layer, by name, cannot be taken from a checkpoint; None if they can."""
    state, there = checkpoint["state_dict"], checkpoint["hyper_parameters"]
    if missing := [name for name in layer if name not in state]:
        return "not there" if len(missing) == len(layer) else f"no {missing[0]} there"
    for name, parameter in layer.items():
        if state[name].shape != parameter.shape:
            return f"{name} is {tuple(state[name].shape)} there, {tuple(parameter.shape)} here"
    if any(NUMBERED.search(name) for name in layer):
        return None
    if any(there["info"].get(key) != model.info.get(key) for key in ("tokenizer", "vocabulary")):
        return "another vocabulary"
    heights = measure_heights(model)
    if all(heights[name] == 0 for name in layer):
        return None
    if there["config"]["model"]["name"] != model.config.model.name:
        return "another task"
    return "other labels" if there["info"].get("labels") != model.info.get("labels") else None


def list_frozen(model: Any) -> list[list[str]]:
    """The names of the parameters that begin frozen: those taken, without the output, from the top down."""
    heights = measure_heights(model)
    top = max(heights.values())
    below = sorted({heights[name] for name in model.taken} - {top}, reverse=True)
    return [[name for name in model.taken if heights[name] == height] for height in below]


def freeze(model: Any, step: int, interval: float) -> None:
    """Freeze what was taken, all but what trains at `step`: each `interval` one layer more, from the top."""
    for number, names in enumerate(list_frozen(model), 1):
        for name in names:
            model.get_parameter(name).requires_grad_(step >= round(number * interval))
