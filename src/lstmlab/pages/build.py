"""One HTML file in which a model runs: weights of 16 bits, the recurrence in JavaScript, no network."""

import base64
import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstmlab.data.sentiment import LABELS
from lstmlab.data.tokenization import KINDS as KINDS_OF_TOKENS
from lstmlab.data.tokenization import load_tokenizer, train_tokenizer
from lstmlab.models.base import Task
from lstmlab.pages import assemble_page

KINDS = ("lstm", "layernorm", "gru", "rnn")  # those of STEPS in runtime.js
# The parameters that the pages read; the cells of other kinds and options have more
KNOWN = re.compile(
    r"(cell|encoder|decoder)\.((weight|bias)_(ih|hh)|gain)_l\d+(_reverse)?"
    r"|((source_|target_)?embedding|projection|resize|score\.[02]|bridge\.\d|attention\.[WUw]|readout)\.(weight|bias)"
)
EXAMPLES = {"dates": "22. November 2026", "multi30k": "Two dogs are running through the grass."}
REVIEW = "The acting is wonderful, but the story could hardly be more predictable."
CHECKED = 20  # the probabilities that a page compares with those of Python when it is opened


def build_page(model: Task, hyper_parameters: dict[str, Any]) -> dict[str, bytes]:
    """{file name: content} of the page of `model`, with weights as `pack_weights` rounds them.

    Raises ValueError for what a page cannot do: another task, kind of cell, tokenizer or parameter.
    """
    cell = model.config.cell
    if model.page is None:
        raise model.unsupported("has no page for format=html")
    if cell.kind not in KINDS:
        raise ValueError(f"format=html has no cell.kind={cell.kind}, only {', '.join(KINDS)}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if unknown := sorted(name for name in parameters if not KNOWN.fullmatch(name)):
        raise ValueError(
            f"format=html does not know the parameter {unknown[0]} of this model={model.config.model.name}"
        )
    describe, scripts = PARTS[model.page]
    layout, rows, packed = pack_weights(parameters)
    meta = {
        "subtitle": f"{cell.kind}, {cell.num_layers} × {cell.hidden_size} units · {model.config.data.name}",
        "kind": cell.kind,
        "layout": layout,
        "rows": rows,
        **describe(model),
    }
    page = assemble_page(model.page, ["runtime.js", *scripts], meta, {"weights": packed})
    return {"model.html": page.encode()}


def pack_weights(parameters: Mapping[str, Tensor]) -> tuple[dict[str, list[int]], int, str]:
    """Each row of a matrix, and each vector, as one float32 and 16-bit multiples of it.

    Returns {name: [first value, first row, *shape]}, the number of rows, and in base64 the float32 of all
    rows and then all values. A tensor with two names is stored once.
    """
    layout: dict[str, list[int]] = {}
    places: dict[int, list[int]] = {}
    scales: list[np.ndarray] = []
    values: list[np.ndarray] = []
    size = rows = 0
    for name, tensor in parameters.items():
        if id(tensor) not in places:
            numbers = tensor.detach().float().numpy().reshape(-1, tensor.shape[-1])
            if not np.isfinite(numbers).all():
                raise ValueError(f"format=html cannot store {name}, which holds infinity or NaN")
            scale = np.abs(numbers).max(1, keepdims=True) / np.float32(32767)
            whole = np.rint(numbers / np.where(scale > 0, scale, 1))
            places[id(tensor)] = [size, rows]
            scales.append(scale.astype("<f4"))
            values.append(whole.astype("<i2"))
            size, rows = size + numbers.size, rows + len(numbers)
        layout[name] = [*places[id(tensor)], *tensor.shape]
    packed = b"".join(part.tobytes() for part in scales + values)
    return layout, rows, base64.b64encode(packed).decode()


def build_check(given: Any, p: Tensor) -> dict[str, Any]:
    """The input of the check, and the most probable of the probabilities p (V,) that it must give."""
    top = p.topk(min(CHECKED, len(p)))
    return {"input": given, "ids": top.indices.tolist(), "p": top.values.tolist()}


@torch.inference_mode()
def describe_charlm(model: Any) -> dict[str, Any]:
    if "tokenizer" in model.info:
        raise ValueError("format=html has a page for a model=charlm of characters, not for one of tokens")
    vocabulary = model.vocabulary
    ids = [1 + 7 * k % (len(vocabulary) - 1) for k in range(32)]
    logits, _ = model(torch.tensor([ids]))
    prompts = [*(["def "] if model.config.data.name == "stdlib" else []), "The ", vocabulary[1]]
    return {
        "title": "A network that writes",
        "vocabulary": list(vocabulary),
        "prompt": next(prompt for prompt in prompts if set(prompt) <= set(vocabulary[1:])),
        "check": build_check(ids, logits[0, -1].softmax(-1)),
    }


@torch.inference_mode()
def describe_sentiment(model: Any) -> dict[str, Any]:
    info = model.info
    ids = [k * k % info["vocab_size"] for k in range(2, 2 + min(30, info["max_length"]))]
    logits, _ = model(torch.tensor([ids]), torch.tensor([len(ids)]))
    film = model.labels == LABELS
    return {
        "title": "What does it think of a film?" if film else f"Which of {len(model.labels)} classes?",
        "example": REVIEW if film else "",
        "labels": model.labels,
        "pooling": model.pooling,
        "maxLength": info["max_length"],
        "stripMarkup": info.get("strip_markup", True),
        "tokenizer": describe_tokenizer(info["tokenizer"]),
        "check": build_check(ids, model.probabilities(logits)[0]),
    }


@torch.inference_mode()
def describe_copytask(model: Any) -> dict[str, Any]:
    task, info = model.task, model.info
    ids = task.draw(np.random.default_rng(0), 1, info["longest"])
    return {
        "title": "How long does it remember?" if task.recall else "Can it keep track?",
        "task": info["task"],
        "options": info["options"],
        "tokens": task.tokens,
        "answers": task.answers,
        "recall": task.recall,
        "longest": info["longest"],
        "check": build_check(ids[0].tolist(), model(torch.from_numpy(ids))[0, -1].softmax(-1)),
    }


@torch.inference_mode()
def describe_seq2seq(model: Any) -> dict[str, Any]:
    info, settings = model.info, model.config.model
    source = [k * k % info["vocab_size"] for k in range(2, 2 + min(20, info["max_length"]))]
    target = [info["bos"], *source[:6]]
    logits, _ = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([target]))
    return {
        "title": "A network that translates",
        "example": EXAMPLES.get(model.config.data.name, ""),
        "attention": settings.attention,
        "inputFeeding": settings.input_feeding,
        "beamSize": settings.beam_size,
        "lengthPenalty": settings.length_penalty,
        "maxLength": info["max_length"],
        "maxTarget": info["max_target_length"] - 1,  # without BOS
        "tokenizer": describe_tokenizer(info["tokenizer"]),
        "check": build_check({"source": source, "target": target}, logits[0, -1].softmax(-1)),
    }


def describe_tokenizer(text: str) -> dict[str, Any]:
    """A tokenizer's JSON string for tokens.js, which knows those of `train_tokenizer` alone."""
    saved = json.loads(load_tokenizer(text).to_str())
    vocabulary, merges = saved["model"].pop("vocab"), saved["model"].pop("merges", [])
    for kind, lowercase in itertools.product(KINDS_OF_TOKENS, (False, True)):
        ours = json.loads(train_tokenizer([], kind, 300, lowercase).to_str())
        del ours["model"]["vocab"]
        ours["model"].pop("merges", None)
        if saved == ours:
            return {
                "kind": kind,
                "lowercase": lowercase,
                "vocabulary": sorted(vocabulary, key=vocabulary.get),
                "merges": [" ".join(pair) for pair in merges],
            }
    raise ValueError(
        "format=html knows the tokenizers that this project trains, word, bpe and char; this is another one"
    )


# What the script of each task's page needs, and the scripts beside runtime.js
PARTS: dict[str, tuple[Callable[[Any], dict[str, Any]], list[str]]] = {
    "charlm.html": (describe_charlm, ["text.js"]),
    "copytask.html": (describe_copytask, []),
    "sentiment.html": (describe_sentiment, ["tokens.js"]),
    "seq2seq.html": (describe_seq2seq, ["tokens.js"]),
}
