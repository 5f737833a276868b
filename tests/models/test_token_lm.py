"""model=charlm over words, subwords and characters of data=texts, and with adaptive softmax."""

import csv
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from conftest import SMALL, ask
from lstmlab.analysis.sections import report_writing
from lstmlab.analysis.traces import load_validation_rows
from lstmlab.checkpoint import load_model
from lstmlab.data import build_data
from lstmlab.data.reviews import made_up_review
from lstmlab.data.text import TextBatch
from lstmlab.data.tokenization import EOS
from lstmlab.models.charlm import CharLM
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train

ADAPTIVE = ["model.adaptive_cutoffs=[20,100]", "cell.hidden_size=16"]


@pytest.fixture
def given(tmp_path) -> list[str]:
    """Overrides for a small language model of 100 reviews."""
    rng = random.Random(0)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([made_up_review(rng, n % 2 == 1)] for n in range(100))])
    sizes = ["data.batch_size=4", "data.sequence_length=20", "data.vocab_size=300", "trainer.max_steps=4"]
    where = [f"data.path={tmp_path}/reviews.csv", f"data.cache={tmp_path}/cache"]
    return ["model=charlm", "data=texts", "trainer.log_every_n_steps=1", *SMALL, *sizes, *where]


@pytest.mark.parametrize(
    "more", [[], ["data.tokenizer=bpe"], ["data.tokenizer=char", "model.tie_weights=true"], ADAPTIVE]
)
def test_losses_are_those_of_one_pass_over_each_part(config, given, more):
    """In nats per token, whether all scores are computed or not; there are no bits per character."""
    settings = config(*given, *more, "precision=bf16" if more == ADAPTIVE else "precision=fp32")
    metrics = train(settings)
    assert not [name for name in metrics if "bits" in name]
    model: Any = load_model(settings.run_dir)
    module = build_data(settings.data, info=model.info)
    module.prepare_data()
    parts = {"val": (module.meta["train"], module.stop), "test": (module.stop, module.meta["total"])}
    found = evaluate(ask(settings.run_dir, cache=settings.data.cache))
    for part, (start, stop) in parts.items():
        ids = torch.from_numpy(module.read_ids(start, stop - start))
        with torch.no_grad():
            loss = F.cross_entropy(model(ids[None, :-1])[0][0], ids[1:]).item()
        assert found[f"{part}/loss_stateful"] == pytest.approx(loss, abs=1e-5)
        assert found[f"{part}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        rough = 0.05 if more == ADAPTIVE else 1e-5  # trained and tested in bf16
        assert metrics[f"{part}/loss_stateful"] == pytest.approx(loss, abs=rough)


@pytest.fixture
def adaptive(config, given) -> CharLM:
    """With random weights, whose probabilities differ much."""
    settings = config(*given, *ADAPTIVE, "model.dropout=0")
    module = build_data(settings.data)
    module.prepare_data()
    torch.manual_seed(0)
    model = CharLM(settings, module.info).double().eval()
    with torch.no_grad():
        for parameter in model.projection.parameters():
            parameter.normal_(std=2)
    return model


def test_adaptive_softmax_is_a_distribution_of_which_the_loss_is_a_sample(adaptive):
    ids = torch.randint(len(adaptive.codec), (3, 60))
    log_p, _ = adaptive(ids[:, :-1])
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 59).double())
    assert log_p.std() > 1
    expected = -log_p.gather(-1, ids[:, 1:, None]).mean()
    loss, _ = adaptive.loss(TextBatch(ids[:, :-1], ids[:, 1:]), None)
    torch.testing.assert_close(loss, expected)


def test_sampling_of_adaptive_softmax(adaptive):
    """2,000 first tokens compared with p, without the special tokens that are never drawn."""
    log_p = adaptive(torch.tensor([[EOS]]))[0][0, -1]
    log_p[[0, 1, 3]] = -math.inf
    prompts = torch.tensor([[EOS]] * 2000)
    drawn = next(adaptive.sample_ids(prompts, 1)).flatten()
    shares = torch.bincount(drawn, minlength=len(log_p)) / 2000
    torch.testing.assert_close(shares.double(), log_p.softmax(-1), atol=0.04, rtol=0)
    (greedy,) = next(adaptive.sample_ids(prompts[:1], 1, temperature=0))
    assert greedy == log_p.argmax()


def test_commands_with_words(config, given, command, tmp_path):
    settings = config(*given, *ADAPTIVE)
    train(settings)
    ckpt = f"ckpt={settings.run_dir}"
    code, out, error = command("predict", ckpt, "text=The PLOT is", "length=9", "temperature=0")
    assert code == 0 and out.startswith("The PLOT is "), error
    assert command("predict", ckpt, "text=", "length=5")[0] == 0  # from the beginning of a text
    (tmp_path / "in.txt").write_text("the plot\nis\n")
    files = [f"input={tmp_path}/in.txt", f"output={tmp_path}/out.jsonl", "length=5"]
    assert command("predict", ckpt, *files)[0] == 0
    assert Path(tmp_path / "out.jsonl").read_text().count('"continuation": "') == 2


def test_what_analysis_reads(config, given, tmp_path):
    settings = config(*given, "trainer.max_steps=1")
    train(settings)
    model = load_model(settings.run_dir, "scratch")
    rows, _ = load_validation_rows(model, {}, 200)
    tokens = model.token_texts(rows)
    positions = model.text_features(rows, None)["position in text"]
    assert len(tokens) == len(positions) == 200 and tokens[0] == "<eos> "
    expected, position = [], 0
    for token in tokens:
        expected.append(position)
        position = 0 if token.startswith("<eos>") else position + 1
    assert positions.tolist() == expected and 0 in expected[2:]
    written = report_writing(model, rows, "", lambda: None, tmp_path)
    assert written.endswith("Left out: it is measured in characters, and this model writes tokens.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.tie_weights=true", *ADAPTIVE], "model.tie_weights=true cannot share those of the embedding"),
        (["model.adaptive_cutoffs=[100,20]"], "must be numbers of tokens in ascending order"),
        (["model.adaptive_cutoffs=[20,300]"], "[20, 300] must be less than data.vocab_size=300"),
        (["model.adaptive_cutoffs=[99]", "data.tokenizer=char"], "[99] must all be less than "),
        (["model.adaptive_cutoffs=[20,100]"], "cell.hidden_size=8 leaves none for the last"),
        (["data.label=n"], "data.label"),
        (["model=sentiment", "data=texts"], "data=texts does not fit model=sentiment"),
    ],
)
def test_wrong_settings_are_refused(given, command, tmp_path, arguments, message):
    code, _, error = command("train", *given, f"hydra.run.dir={tmp_path}/run", *arguments)
    assert code == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_floors_are_of_characters(command):
    error = command("bench", "suite=floors", "data=texts", "data.path=x.csv")[2]
    assert (
        "suite=floors has nothing for data=texts, only for data=stdlib, shakespeare, textfile, imdb" in error
    )
