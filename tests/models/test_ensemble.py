"""Ensembles, through evaluate.py, against the mean of the members' probabilities, each computed alone."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lstmlab.checkpoint import load_checkpoint, load_model, read_config
from lstmlab.data import build_data
from lstmlab.data.sequence_tasks import IGNORED
from lstmlab.models import build_model
from lstmlab.models.ensemble import average, build_ensemble


@pytest.fixture
def write_members(trained, tmp_path):
    """write_members("charlm", {"cell.kind": "gru"}): checkpoints of the task, one for each dict of changed
    settings, with random weights."""

    def write(name: str, *changes: dict[str, Any]) -> list[Path]:
        paths = []
        for number, changed in enumerate(changes):
            content = load_checkpoint(str(trained(name)))
            config = read_config(content, name).replace(changed)
            model = build_model(config, content["hyper_parameters"]["info"])
            torch.manual_seed(number)
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.5)  # so that the members predict different things
            content["hyper_parameters"]["config"] |= config.to_plain()
            paths.append(tmp_path / f"{name}{number}.ckpt")
            torch.save(content | {"state_dict": model.state_dict()}, paths[-1])
        return paths

    return write


@pytest.fixture
def evaluate(command, trained):
    """evaluate(paths, …): the metrics that evaluate.py prints for the ensemble of these checkpoints."""

    def run(paths: list[Path], *more: str) -> dict[str, float]:
        code, out, error = command("evaluate", f"ensemble=[{','.join(map(str, paths))}]", *more)
        assert code == 0, error
        lines = [line.split() for line in out.splitlines() if line.startswith(("val/", "test/"))]
        return {name: float(value) for name, value in (line for line in lines if len(line) == 2)}

    return run


def open_all(paths: list[Path]) -> tuple[list[Any], Any]:
    """The models, and the data module of the first."""
    models = [load_model(str(path)) for path in paths]
    data = build_data(models[0].config.data, models[0].config.seed, models[0].info)
    data.prepare_data()
    data.setup("fit")
    return models, data


def mean_p(logits: list[Tensor]) -> Tensor:
    return torch.stack([one.softmax(-1) for one in logits]).mean(0)


def test_average_is_that_of_probabilities():
    torch.manual_seed(0)
    logits = [5 * torch.randn(4, 3, 7, dtype=torch.float64) for _ in range(3)]
    assert torch.allclose(average(logits).exp(), mean_p(logits), atol=1e-14)
    assert average([one.bfloat16() for one in logits]).dtype == torch.float32
    far = average([torch.tensor([0.0, -1000.0]), torch.tensor([-1000.0, 0.0])])
    assert torch.allclose(far.exp(), torch.tensor([0.5, 0.5]))


@torch.no_grad()
def test_charlm(evaluate, write_members):
    """The states of each member are carried on, and a cold window begins without any."""
    paths = write_members(
        "charlm", {}, {"model.adaptive_cutoffs": [5, 9], "cell.hidden_size": 20}, {"cell.kind": "gru"}
    )
    metrics = evaluate(paths)
    models, data = open_all(paths)
    ids = torch.from_numpy(data.read_ids(data.meta["train"], data.stop - data.meta["train"]))

    def loss(x: Tensor, y: Tensor) -> float:
        p = mean_p([model(x[None])[0][0] for model in models])  # (T, V)
        return -p[range(len(p)), y].log().mean().item()

    cold = [loss(ids[i : i + 256], ids[i + 1 : i + 257]) for i in range(0, len(ids) - 256, 256)]
    assert metrics["val/loss_stateful"] == pytest.approx(loss(ids[:-1], ids[1:]), abs=1e-5)
    assert metrics["val/loss_cold"] == pytest.approx(np.mean(cold), abs=1e-5)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/loss_stateful"]), rel=1e-5)


@torch.no_grad()
def test_copytask(evaluate, write_members):
    paths = write_members("copytask", {}, {"cell.hidden_size": 5, "cell.num_layers": 2})
    metrics = evaluate(paths)
    models, data = open_all(paths)
    nats, right, asked = 0.0, 0, 0
    for batch in data.val_dataloader():
        p, here = mean_p([model(batch.tokens) for model in models]), batch.targets != IGNORED
        nats -= p.gather(2, batch.targets.clamp(min=0)[..., None])[..., 0][here].log().sum().item()
        right, asked = right + int((p.argmax(-1) == batch.targets)[here].sum()), asked + int(here.sum())
    assert metrics["val/loss"] == pytest.approx(nats / asked, abs=1e-5)
    assert metrics["val/symbol_accuracy"] == pytest.approx(right / asked, abs=1e-6)


@torch.no_grad()
def test_sentiment(evaluate, write_members):
    paths = write_members("sentiment", {}, {"model.pooling": "attention"}, {"cell.bidirectional": False})
    metrics = evaluate(paths)
    models, data = open_all(paths)
    losses, right = [], []
    for tokens, lengths, labels in data.val_dataloader():
        p = torch.stack([model(tokens, lengths)[0].sigmoid() for model in models]).mean(0)  # (B,)
        losses += [
            -math.log(x if label else 1 - x) for x, label in zip(p.tolist(), labels.tolist(), strict=True)
        ]
        right += ((p > 0.5) == labels.bool()).tolist()
    assert metrics["val/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["val/accuracy"] == pytest.approx(np.mean(right), abs=1e-6)

    # Of three classes
    several = [build_model(m.config, m.info | {"labels": ["a", "b", "c"]}).double().eval() for m in models]
    together: Any = build_ensemble(dict(zip("abc", several, strict=True)))
    expected = mean_p([model(tokens, lengths)[0] for model in several])
    assert torch.allclose(together.probabilities(together(tokens, lengths)[0]), expected, atol=1e-12)


@torch.no_grad()
def search_by_hand(models: list[Any], source: Tensor, size: int, info: dict) -> list[int]:
    """Beam search without a length penalty over the mean probabilities, for one source (1, S)."""
    lengths, beams = torch.tensor([source.size(1)]), [([info["bos"]], 0.0)]
    for _ in range(info["max_target_length"] - 1):
        longer = [(ids, score) for ids, score in beams if ids[-1] == info["eos"]]
        kept = size - len(longer)
        grown = []
        for ids, score in beams:
            if ids[-1] != info["eos"]:
                p = mean_p([model(source, lengths, torch.tensor([ids]))[0] for model in models])[0, -1]
                p[[info["pad"], info["bos"]]] = 0
                total = p.sum().item()
                grown += [([*ids, i], score + math.log(x / total)) for i, x in enumerate(p.tolist()) if x > 0]
        beams = longer + sorted(grown, key=lambda pair: -pair[1])[:kept]
        if all(ids[-1] == info["eos"] for ids, _ in beams):
            break
    return max(beams, key=lambda pair: pair[1])[0][1:]


@torch.no_grad()
def test_seq2seq(evaluate, write_members):
    """Also beam search, over states of different numbers and sizes."""
    feeding = {"model.input_feeding": True, "cell.num_layers": 2, "cell.hidden_size": 5}
    paths = write_members("seq2seq", {}, feeding, {"cell.kind": "gru"})
    metrics = evaluate(paths, "beam_size=2")
    models, data = open_all(paths)
    info, losses = models[0].info, []
    for batch in data.test_dataloader():
        p = mean_p([model(batch.source, batch.source_lengths, batch.target[:, :-1])[0] for model in models])
        real = torch.arange(1, batch.target.size(1)) < batch.target_lengths[:, None]
        losses += (-p.gather(2, batch.target[:, 1:, None])[..., 0][real].log()).tolist()
    assert metrics["test/loss"] == pytest.approx(np.mean(losses), abs=1e-5)

    models = [model.double() for model in models]
    ensemble: Any = build_ensemble(dict(zip("abc", models, strict=True)))
    sources, lengths = batch.source[:3], batch.source_lengths[:3]
    for size in (1, 3):
        found = ensemble.search(sources, lengths, size, 0.0).tolist()
        for row, n in enumerate(lengths.tolist()):
            expected = search_by_hand(models, sources[row : row + 1, :n], size, info)
            assert [i for i in found[row] if i != info["pad"]] == expected


def test_models_that_do_not_fit_together_are_refused(trained, write_members, command, tmp_path):
    charlm, sentiment, copytask = (trained(name) for name in ("charlm", "sentiment", "copytask"))
    [val] = write_members("sentiment", {"data.val_size": 30})
    [delay] = write_members("copytask", {"data.delay": 9})
    content = load_checkpoint(str(charlm))
    content["hyper_parameters"]["info"]["source"] = "another text"
    torch.save(content, tmp_path / "other.ckpt")
    for paths, said in [
        ([charlm, sentiment], "has model=charlm, "),
        ([charlm, tmp_path / "other.ckpt"], "ensemble= takes models of one source"),
        ([sentiment, val], "has data.val_size=20, "),
        ([copytask, delay], "has data.delay=5, "),
        ([charlm, charlm], "names a model twice"),
        ([charlm, tmp_path / "none.ckpt"], f"ensemble={tmp_path}/none.ckpt: no such file"),
    ]:
        code, _, error = command("evaluate", f"ensemble=[{','.join(map(str, paths))}]")
        assert code == 1 and said in error and error.count("\n") == 1, error


def test_a_model_with_itself_is_that_model(trained, evaluate, command, tmp_path):
    path = trained("copytask")
    again = shutil.copy(path, tmp_path / "again.ckpt")
    together = evaluate([path, again], "data.test_delay=[4,7]")
    alone = command("evaluate", f"ckpt={path}", "data.test_delay=[4,7]")[1]
    lines = dict(line.split() for line in alone.splitlines())
    assert together == pytest.approx({name: float(value) for name, value in lines.items()}, abs=2e-6)
    assert "test/sequence_accuracy_delay7" in together
