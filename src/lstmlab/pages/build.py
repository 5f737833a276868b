"""One HTML file in which a model runs: weights as float16, the recurrence in JavaScript, no network."""

import base64
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstmlab.data.sentiment import LABELS
from lstmlab.data.tokenization import KINDS as KINDS_OF_TOKENS
from lstmlab.data.tokenization import load_tokenizer, train_tokenizer
from lstmlab.models.base import Task

KINDS = ("lstm", "gru", "rnn")  # those of STEPS in runtime.js
# The parameters that the pages read; the cells of other kinds and options have more
KNOWN = re.compile(
    r"(cell|encoder|decoder)\.(weight|bias)_(ih|hh)_l\d+(_reverse)?"
    r"|((source_|target_)?embedding|projection|resize|score\.[02]|bridge\.\d|attention\.[WUw]|readout)\.(weight|bias)"
)
EXAMPLES = {"dates": "22. November 2026", "multi30k": "Two dogs are running through the grass."}
REVIEW = "The acting is wonderful, but the story could hardly be more predictable."
CHECKED = 20  # the probabilities that a page compares with those of Python when it is opened


def build_page(model: Task, hyper_parameters: dict[str, Any]) -> dict[str, bytes]:
    """{file name: content} of the page of `model`, whose weights are rounded to float16.

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
    layout, packed = pack_weights(parameters)
    meta = {
        "subtitle": f"{cell.kind}, {cell.num_layers} × {cell.hidden_size} units · {model.config.data.name}",
        "kind": cell.kind,
        "layout": layout,
        **PARTS[model.page](model),
    }
    scripts = ["runtime.js", "shared.js", *(["tokens.js"] if "tokenizer" in meta else [])]
    markup, _, script = read_file(model.page).partition("<script>")
    page = read_file("page.html")
    for mark, content in {
        "/* STYLE */": read_file("style.css"),
        "<!-- TASK -->": markup,
        "/* SCRIPTS */": "\n".join([*map(read_file, scripts), script.removesuffix("</script>\n")]),
        "<!-- META -->": json.dumps(meta, separators=(",", ":")).replace("<", "\\u003c"),
        "<!-- WEIGHTS -->": packed,
    }.items():
        page = page.replace(mark, content, 1)
    return {"model.html": page.encode()}


def read_file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def pack_weights(parameters: dict[str, Any]) -> tuple[dict[str, list[int]], str]:
    """Round the parameters to float16, in place. {name: [offset, *shape]} and all values in base64; a tensor
    with two names is stored once."""
    layout: dict[str, list[int]] = {}
    offsets: dict[int, int] = {}
    parts: list[bytes] = []
    size = 0
    with torch.no_grad():
        for name, tensor in parameters.items():
            if id(tensor) not in offsets:
                half = tensor.half()
                if not half.isfinite().all():
                    raise ValueError(
                        f"format=html stores float16, and {name} holds values beyond ±65504 or NaN"
                    )
                tensor.copy_(half)
                offsets[id(tensor)] = size
                parts.append(half.numpy().astype("<f2").tobytes())
                size += tensor.numel()
            layout[name] = [offsets[id(tensor)], *tensor.shape]
    return layout, base64.b64encode(b"".join(parts)).decode()


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


PARTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "charlm.html": describe_charlm,
    "copytask.html": describe_copytask,
    "sentiment.html": describe_sentiment,
    "seq2seq.html": describe_seq2seq,
}
