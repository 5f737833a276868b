"""Answers of a trained model: to a list of texts, in Python, and to a file of them."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lstmlab.analysis.interventions import Cache, Change, intervene
from lstmlab.atomic import replace_file
from lstmlab.checkpoint import load_model
from lstmlab.data.sources import READERS, Columns, read_text
from lstmlab.models.base import Task
from lstmlab.progress import Progress
from lstmlab.schema import PredictConfig

TOGETHER = 64  # texts that are read side by side
FORMATS = (".csv", ".tsv", ".jsonl", ".txt")


class Predictor:
    """A trained model, as `lstmlab.load` opens it; `model` is the LightningModule itself."""

    def __init__(self, ckpt: str, backend: str | None = None, accelerator: Literal["cpu", "gpu"] = "cpu"):
        self.model = load_model(ckpt, backend, accelerator)
        self._ckpt = ckpt, accelerator

    @cached_property
    def changeable(self) -> Task:
        """The same model with scratch cells, which can be changed while they run."""
        return load_model(self._ckpt[0], "scratch", self._ckpt[1])

    def run_with_hooks(self, text: str, changes: Mapping[str, Change]) -> Tensor:
        """What the model computes while it reads a text, with these changes; see `analysis.interventions`.

        Language model: logits (1, T, V). Classifier: logits (1, C), of two classes (1,). Copy task: logits
        (1, K, answers). Translation: the tokens (1, T) of greedy search.
        """
        return self.run_with_cache(text, changes)[0]

    def run_with_cache(self, text: str, changes: Mapping[str, Change] | None = None) -> tuple[Tensor, Cache]:
        """The same, and the values (1, T, H) of every point."""
        rows = self.changeable.read_text(text)
        with torch.inference_mode(), intervene(self.changeable, changes or {}, record=True) as cache:
            output = self.changeable.run(rows)
        return output, cache

    def predict(self, texts: list[str], changes: Mapping[str, Change] | None = None) -> list[dict[str, Any]]:
        """Of each text `prediction`, its label, and `p(LABEL)` for each class."""
        return self._answer(texts, PredictConfig.model_construct(), changes)

    def translate(
        self,
        texts: list[str],
        beam_size: int = 5,
        length_penalty: float = 1.0,
        changes: Mapping[str, Change] | None = None,
    ) -> list[str]:
        """The translations of texts."""
        options = PredictConfig.model_construct(beam_size=beam_size, length_penalty=length_penalty)
        return [answer["translation"] for answer in self._answer(texts, options, changes)]

    def sample(
        self,
        prompt: str,
        length: int = 500,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
        changes: Mapping[str, Change] | None = None,
    ) -> str:
        """What a language model writes after a prompt: `length` characters, or at most so many tokens."""
        options = PredictConfig.model_construct(
            length=length, temperature=temperature, top_k=top_k, seed=seed
        )
        [answer] = self._answer([prompt], options, changes)
        return answer["continuation"]

    def _answer(
        self, texts: list[str], options: PredictConfig, changes: Mapping[str, Change] | None
    ) -> list[dict[str, Any]]:
        if not changes:
            return answer_all(self.model, texts, options)
        with intervene(self.changeable, changes):
            return answer_all(self.changeable, texts, options)


def answer_all(
    model: Task, texts: list[str], options: PredictConfig, done: Callable[[int], Any] = lambda count: None
) -> list[dict[str, Any]]:
    """The model's answers to texts, those of similar length together; `done` hears how many there are."""
    answers: list[dict[str, Any]] = [{}] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(texts), TOGETHER):
        rows = order[start : start + TOGETHER]
        for row, answer in zip(rows, model.answer([texts[row] for row in rows], options), strict=True):
            answers[row] = answer
        done(start + len(rows))
    return answers


def predict_file(model: Task, config: PredictConfig) -> int:
    """Write the answers to the texts of `config.input` to `config.output`; returns their number.

    Raises OSError or ValueError, in one sentence, for a file that cannot be read or written.
    """
    source, target = Path(str(config.input)).expanduser(), Path(str(config.output)).expanduser()
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"output={config.output} must end in {', '.join(FORMATS)}")
    if not source.is_file():
        raise FileNotFoundError(f"input={config.input}: no such file")
    if target.exists() and target.samefile(source):
        raise ValueError(f"output={config.output} is the file of input=; name another")
    table, texts = read_input(source, model, config.column)
    with closing(Progress("texts")) as progress:
        answers = answer_all(model, texts, config, lambda count: progress.show(count, len(texts)))
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    with replace_file(target) as file:
        file.write(format_rows(rows, answers, target.suffix.lower()).encode())
    return len(answers)


def read_input(path: Path, model: Task, column: str | None) -> tuple[Columns, list[str]]:
    """All columns of a file, and the texts in one of them: `column`, or that which was trained on."""
    if path.suffix.lower() in READERS:
        table = READERS[path.suffix.lower()](path)
    elif path.suffix.lower() == ".txt":
        table = {"text": read_text(path).splitlines()}
    else:
        raise ValueError(f"input={path} must end in .txt, {', '.join(READERS)}")
    data = model.config.data
    wanted = [column] if column else [getattr(data, "text", None), getattr(data, "source", None), "text"]
    name = next((name for name in wanted if name in table), None)
    if name is None and column is None and len(table) == 1:
        [name] = table
    if name is None:
        raise ValueError(f"input={path} has the columns {', '.join(table)}; name one of them with column=")
    for row, text in enumerate(table[name], 1):
        if not isinstance(text, str):
            raise ValueError(f"row {row} of input={path} has {text!r} for its {name}, which must be a text")
    return table, table[name]


def format_rows(rows: list[dict[str, Any]], answers: list[dict[str, Any]], suffix: str) -> str:
    """The content of a file of this suffix. Text has one line per answer, with its first value alone."""
    if suffix == ".txt":
        return "".join(" ".join(str(next(iter(answer.values()))).splitlines()) + "\n" for answer in answers)
    complete = [row | answer for row, answer in zip(rows, answers, strict=True)]
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in complete)
    file = io.StringIO()
    names = list(complete[0]) if complete else []
    writer = csv.DictWriter(file, names, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(complete)
    return file.getvalue()
