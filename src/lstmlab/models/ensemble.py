"""Several models of one task as one, which predicts the mean of their probabilities.

`build_ensemble` returns a task like any other. Its logits are log((1/K) Σ_k p_k).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstmlab.data.text import TextBatch
from lstmlab.models.base import Task
from lstmlab.models.charlm import CharLM
from lstmlab.models.copytask import CopyTask
from lstmlab.models.decoding import State, Step
from lstmlab.models.sentiment import Sentiment
from lstmlab.models.seq2seq import Seq2Seq

# What members may differ in: neither what ids mean nor what they are validated on depends on it
OWN_INFO = {"longest", "max_length", "max_target_length"}
OWN_DATA = {"batch_size", "bpe_dropout", "cache", "max_length", "num_workers", "path", "sequence_length"}


def build_ensemble(models: dict[str, Any]) -> Task:
    """One task of models of one task, by the paths of their checkpoints. It has the settings of the first.

    Raises ValueError for models of different tasks, vocabularies or data, and for a task of a user's own.
    """
    (name, first), *others = models.items()
    if type(first) not in ENSEMBLES:
        raise first.unsupported("has no ensembles")
    for path, model in others:
        refuse_mismatch(first, model, name, path)
    ensemble = ENSEMBLES[type(first)](first.config, first.info)
    ensemble.load_state_dict(first.state_dict())
    ensemble.others = nn.ModuleList(model for _, model in others)
    return ensemble.to(first.device).eval()


def refuse_mismatch(first: Task, other: Task, name: str, path: str) -> None:
    """Raise ValueError unless both read and answer the same ids, and neither trained on what the other is
    validated on."""
    pairs = [("model", first.config.model.name, other.config.model.name)]
    a, b = (task.config.data.model_dump() for task in (first, other))
    pairs += [("data", a["name"], b["name"])]
    pairs += [(f"data.{key}", a.get(key), b.get(key)) for key in sorted({*a, *b} - OWN_DATA)]
    for key, of_first, of_other in pairs:
        if of_first != of_other:
            raise ValueError(
                f"ensemble= takes models of one task and data: {name} has {key}={of_first}, "
                f"{path} has {key}={of_other}"
            )
    a, b = first.info, other.info
    for key in sorted({*a, *b} - OWN_INFO):
        if a.get(key) != b.get(key):
            raise ValueError(f"ensemble= takes models of one {key}: {name} and {path} have different ones")


def average(logits: Sequence[Tensor]) -> Tensor:
    """log((1/K) Σ_k softmax(logits_k)) of K tensors (…, V), at least in float32."""
    log_p = torch.stack(
        [one.to(torch.promote_types(one.dtype, torch.float32)) for one in logits]
    ).log_softmax(-1)
    return log_p.logsumexp(0) - math.log(len(logits))


class CopyTaskEnsemble(CopyTask):
    others: Any

    def forward(self, tokens: Tensor) -> Tensor:
        return average([super().forward(tokens), *(other(tokens) for other in self.others)])


class SentimentEnsemble(Sentiment):
    others: Any

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        logits = [super().forward(tokens, lengths)[0], *(other(tokens, lengths)[0] for other in self.others)]
        if logits[0].dim() == 2:
            return average(logits), None
        # The logit of a probability is the difference of two classes' logits
        both = average([torch.stack([F.logsigmoid(-one), F.logsigmoid(one)], -1) for one in logits])  # (B, 2)
        return both[:, 1] - both[:, 0], None


class CharLMEnsemble(CharLM):
    """Its state is a tuple of its members' states."""

    others: Any

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        own, *states = state or [None] * (1 + len(self.others))
        outputs = [super().forward(inputs, own)]
        outputs += [other(inputs, of_other) for other, of_other in zip(self.others, states, strict=True)]
        logits, states = zip(*outputs, strict=True)
        return average(logits), states

    def loss(self, batch: TextBatch, state: Any) -> tuple[Tensor, Any]:
        logits, state = self(batch.inputs, state)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()), state


class Seq2SeqEnsemble(Seq2Seq):
    others: Any

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        logits = [super().forward(source, lengths, target)[0]]
        return average([*logits, *(other(source, lengths, target)[0] for other in self.others)]), None

    def begin(self, source: Tensor, lengths: Tensor) -> tuple[Step, State]:
        """The states of the members, one after the other."""
        begun = [super().begin(source, lengths), *(other.begin(source, lengths) for other in self.others)]
        ends = list(accumulate(len(state) for _, state in begun))

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            parts = [state[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            found = [step(tokens, part) for (step, _), part in zip(begun, parts, strict=True)]
            return average([logits for logits, _ in found]), tuple(m for _, after in found for m in after)

        return step, tuple(member for _, state in begun for member in state)


ENSEMBLES: dict[type, Any] = {
    CharLM: CharLMEnsemble,
    CopyTask: CopyTaskEnsemble,
    Sentiment: SentimentEnsemble,
    Seq2Seq: Seq2SeqEnsemble,
}
