"""model.init_from: what is taken, what is left, and when it begins to train."""

import csv
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SMALL, ask, compose_train
from lstmlab.callbacks.throughput import Throughput
from lstmlab.checkpoint import load_checkpoint, load_model
from lstmlab.data.reviews import made_up_review
from lstmlab.data.tokenization import PAD
from lstmlab.models import build_model
from lstmlab.models.transfer import take_weights
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train
from same_end import assert_same_end, resume

STILL = ["optimizer=sgd", "optimizer.lr=1e-30", "optimizer.weight_decay=0"]
STEPS = ["trainer.max_epochs=3", "trainer.limit_train_batches=3", "scheduler=constant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With reviews.csv, and the runs of language models of these reviews: word, and large, of 2 layers."""
    folder = tmp_path_factory.mktemp("transfer")
    rng = random.Random(0)
    rows = [(made_up_review(rng, n % 2 == 1), n % 2) for n in range(120)]
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    for name, more in {"word": ["cell.num_layers=1"], "two": ["data.tokenizer=bpe"]}.items():
        given = ["model=charlm", "data=texts", "data.batch_size=4", "data.sequence_length=20", *more]
        given += ["trainer.max_steps=3", f"run_dir={folder}/{name}", *common(folder)]
        train(compose_train(*given))
    return folder


def common(folder: Path) -> list[str]:
    sizes = ["data.vocab_size=300", "model.embedding_size=6", "trainer.log_every_n_steps=1"]
    return [*SMALL, *sizes, f"data.path={folder}/reviews.csv", f"data.cache={folder}/cache"]


@pytest.fixture
def classify(folder, config):
    """classify("cell.num_layers=2", …): the settings of a classifier that starts from the model of words."""

    def settings(*overrides: str, origin: str = "word"):
        given = ["model=sentiment", "data=classes", "data.batch_size=8", *common(folder)]
        return config(*given, f"model.init_from={folder / origin}", *overrides)

    return settings


def last(settings) -> dict[str, Any]:
    return load_checkpoint(f"{settings.run_dir}/checkpoints/last.ckpt")


def test_a_classifier_takes_vocabulary_embedding_and_cell(folder, classify, command, tmp_path):
    """It then needs the language model no more."""
    origin = Path(shutil.copytree(folder / "word", tmp_path / "moved, [word]"))
    arguments = [f"model.init_from={origin}", "trainer.max_steps=1", *STILL]
    given = ["model=sentiment", "data=classes", *common(folder), f"hydra.run.dir={tmp_path}/run", *arguments]
    code, out, error = command("train", *given)
    assert code == 0, error
    assert f"From {origin}: embedding (" in out and ", 6), cell layer 0 (32, 6), the vocabulary of " in out
    assert "Left: cell layer 0 backwards (not there), projection (projection.weight is (" in out

    language, found = (load_checkpoint(str(run)) for run in (origin, tmp_path / "run"))
    infos = [checkpoint["hyper_parameters"]["info"] for checkpoint in (language, found)]
    assert infos[0]["tokenizer"] == infos[1]["tokenizer"]
    there, here = language["state_dict"], found["state_dict"]
    assert torch.equal(here["embedding.weight"][1:], there["embedding.weight"][1:])
    assert not here["embedding.weight"][PAD].any() and there["embedding.weight"][PAD].any()
    taken = [name for name in there if name.startswith("cell.")]
    assert len(taken) == 4 and all(torch.equal(here[name], there[name]) for name in taken)
    assert not torch.equal(here["cell.weight_hh_l0_reverse"], there["cell.weight_hh_l0"])

    shutil.rmtree(origin)
    assert command("predict", f"ckpt={tmp_path}/run", "text=not bad")[0] == 0
    assert "val/accuracy" in evaluate(ask(f"{tmp_path}/run", cache=f"{folder}/cache"))


def test_what_is_left(folder, classify):
    """A layer is taken whole or not at all, an embedding with its vocabulary, an output with its task."""
    words = load_checkpoint(str(folder / "word"))["hyper_parameters"]["info"]
    info = words | {"max_length": 9, "labels": ["0", "1"]}
    reports = []
    for origin, more in [("word", "num_layers=2"), ("two", "bidirectional=false"), ("two", "num_layers=2")]:
        model = build_model(classify(f"cell.{more}", origin=origin), info)
        before = {name: p.clone() for name, p in model.named_parameters()}
        reports.append(take_weights(model, load_checkpoint(str(folder / origin))))
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (name not in model.taken), name
    assert "cell layer 1 (not there)" in reports[0] and "cell layer 0 (32, 6)" in reports[0]
    assert "embedding (another vocabulary)" in reports[1] and "cell layer 1 (only there)" in reports[1]
    # Its recurrent weights would fit
    assert "cell layer 1 (cell.weight_ih_l1 is (32, 8) there, (32, 16) here)" in reports[2]


def test_a_language_model_takes_all_of_another(folder, config):
    given = ["model=charlm", "data=texts", "data.batch_size=4", "data.sequence_length=20", *common(folder)]
    settings = config(*given, "cell.num_layers=1", f"model.init_from={folder}/word", "trainer.max_steps=1")
    train(settings.replace({"optimizer": {"_target_": "torch.optim.SGD", "lr": 1e-30}}))
    there, here = load_checkpoint(str(folder / "word")), last(settings)
    assert here["state_dict"].keys() == there["state_dict"].keys() == set(here["taken"])
    for name, tensor in there["state_dict"].items():
        assert torch.equal(here["state_dict"][name], tensor), name


def test_characters_are_taken_as_they_are_or_not_at_all(config, small, text_file, capsys):
    """A character means the same in both models only if their vocabularies are the same."""
    first = config(*small, "trainer.max_steps=1")
    train(first)
    second = config(*small, "trainer.max_steps=1", f"model.init_from={first.run_dir}")
    train(second)
    assert last(second)["taken"] == list(load_model(second.run_dir).state_dict())
    text_file.write_text(text_file.read_text(encoding="utf-8").replace("é", "è"), encoding="utf-8")
    third = second.replace({"run_dir": f"{second.run_dir}-other"})
    train(third)
    assert {name.partition(".")[0] for name in last(third)["taken"]} == {"cell"}
    assert "embedding (another vocabulary), projection (another vocabulary)" in capsys.readouterr().out


WRONG = [
    (["model.init_from=/no/such/run"], "model.init_from=/no/such/run: no such file"),
    (["model.init_from={folder}"], "model.init_from={folder}: a folder without checkpoints/best.ckpt"),
    (["model.init_from={folder}/reviews.csv"], "model.init_from={folder}/reviews.csv is not a checkpoint"),
    (
        ["model.init_from={folder}/word", "cell.hidden_size=9", "model.embedding_size=5"],
        "has nothing that fits: embedding (embedding.weight is (",
    ),
    (
        ["model.init_from={folder}/word", "cell.kind=gru", "model.embedding_size=5"],
        "; it has model.embedding_size=6 cell.kind=lstm\n",
    ),
    (
        ["model.init_from={folder}/two", "data.lowercase=false"],
        "brings its own vocabulary, which data.tokenizer=word data.lowercase=false contradicts; "
        "set data.tokenizer=bpe data.lowercase=true",
    ),
    (["model.unfreeze_after=1"], "model.unfreeze_after=1 freezes what model.init_from=CKPT takes"),
    (["model.layer_rate_decay=0"], "model.layer_rate_decay=0: input should be greater than 0"),
    (
        ["model.init_from={folder}/word", "model.unfreeze_after=1", "trainer=ddp", "trainer.devices=2"],
        "model.unfreeze_after=1 needs a single process",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_settings_are_refused(folder, command, tmp_path, arguments, message):
    arguments = [argument.format(folder=folder) for argument in arguments]
    given = ["model=sentiment", "data=classes", *common(folder), f"hydra.run.dir={tmp_path}/run"]
    code, _, error = command("train", *given, *arguments)
    assert code == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert message.format(folder=folder) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop", "muon"])
def test_layers_train_one_after_the_other(classify, monkeypatch, optimizer):
    """Until then nothing moves them: no gradient, no decay, no momentum. Steps 1, 2, …; 3 an epoch."""
    given = ["model.unfreeze_after=0.7", "model.adversarial=1", "optimizer.weight_decay=0.1"]
    settings = classify(f"optimizer={optimizer}", *given, *STEPS)
    seen: list[dict] = []

    def look(callback, trainer, model, *others) -> None:
        original(callback, trainer, model, *others)
        seen.append({name: parameter.clone() for name, parameter in model.named_parameters()})
        held = [name for name, p in model.named_parameters() if p in trainer.optimizers[0].state]
        states.append(held)

    states: list[list[str]] = []
    original = Throughput.on_train_batch_end
    monkeypatch.setattr(Throughput, "on_train_batch_end", look)
    train(settings)
    first = {
        "embedding.weight": 5,
        "cell.weight_hh_l0": 3,
        "cell.bias_ih_l0": 3,
    }  # round(2 × 2.1), round(2.1)
    origin = load_checkpoint(str(settings.model.init_from))["state_dict"]
    for name, parameter in seen[0].items():
        begins = first.get(name, 3 if name.endswith("_l0") else 1)
        moved = [not torch.equal(now[name], parameter) for now in seen]
        assert moved.index(True) == begins - 1 + (begins == 1), name
        assert all(moved[begins - 1 + (begins == 1) :])
        if begins > 1:
            assert torch.equal(parameter[1:], origin[name][1:])
        stateless = [step for step, held in enumerate(states, 1) if name not in held]
        assert stateless == list(range(1, begins)) or optimizer == "sgd"


def test_lower_layers_have_lower_rates(classify, monkeypatch):
    """Of two layers and the output: a step of SGD, without and with a factor of 1/2."""
    steps = {}
    for decay in (1.0, 0.5):
        settings = classify(
            "cell.num_layers=2", *STILL, *STEPS, "optimizer.lr=0.1", f"model.layer_rate_decay={decay}",
            "trainer.max_steps=1", "model.dropout=0", "cell.dropout=0", "clipping=none",
        )  # fmt: skip
        before: dict[str, torch.Tensor] = {}
        original = Throughput.on_train_start

        def note(self, trainer, model, before=before, original=original) -> None:
            before |= {name: parameter.clone() for name, parameter in model.named_parameters()}
            original(self, trainer, model)

        with monkeypatch.context() as patch:
            patch.setattr(Throughput, "on_train_start", note)
            train(settings)
        after = last(settings)["state_dict"]
        steps[decay] = {name: after[name] - value for name, value in before.items()}
    for name, step in steps[1.0].items():
        height = 0 if name == "embedding.weight" else 3 if name.startswith("proj") else 1 + int("_l1" in name)
        assert step.any()
        torch.testing.assert_close(steps[0.5][name], step * 0.5 ** (3 - height), atol=1e-7, rtol=1e-4)


def test_an_interrupted_run_ends_the_same(folder, classify, monkeypatch, tmp_path):
    """With layers that begin to train while it is stopped, and without the language model."""
    shutil.copytree(folder / "word", tmp_path / "word")
    given = [f"model.init_from={tmp_path}/word", "model.unfreeze_after=0.5", "model.layer_rate_decay=0.5"]
    given += ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=3", "trainer.val_check_interval=5"]
    whole, interrupted = classify(*given), classify(*given)
    train(whole)
    original = Throughput.on_train_batch_end
    for count in (5, 7, 9):  # after that many batches more
        left = [count]

        def interrupt(*arguments, left=left) -> None:
            left[0] -= 1
            if left[0] == 0:
                monkeypatch.setattr(Throughput, "on_train_batch_end", original)
                signal.raise_signal(signal.SIGTERM)
            original(*arguments)

        monkeypatch.setattr(Throughput, "on_train_batch_end", interrupt)
        with pytest.raises(SystemExit):
            train(interrupted) if count == 5 else resume(interrupted)
        shutil.rmtree(tmp_path / "word", ignore_errors=True)
    resume(interrupted)
    assert_same_end(interrupted, whole)
    assert last(interrupted)["taken"] == last(whole)["taken"] != []
    assert load_model(interrupted.run_dir).config.model.init_from == f"{tmp_path}/word"
