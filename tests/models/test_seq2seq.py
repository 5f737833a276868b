import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from torch import nn
from torch.nn import functional as F

from conftest import SMALL, Times, ask
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model
from lstmlab.data import build_data
from lstmlab.data.tokenization import BOS, EOS, load_tokenizer
from lstmlab.data.translation import TranslationBatch, encode_sources
from lstmlab.models.seq2seq import Seq2Seq, compute_moses_bleu
from lstmlab.runs.evaluate import evaluate
from lstmlab.runs.train import train

INFO = {"vocab_size": 12, "pad": 0, "bos": 1, "eos": 2, "unk": 3, "max_target_length": 9}
SOURCE_LENGTHS, TARGET_LENGTHS = torch.tensor([7, 2, 5, 1]), torch.tensor([3, 6, 2, 5])
SHORT = ["trainer.max_steps=2", "trainer.log_every_n_steps=1"]
DATES = ["model=seq2seq", "data=dates", "data.train_size=60", "data.val_size=20", "data.test_size=20"]


def make_batch() -> TranslationBatch:
    """Random tokens; at the padding too, where nothing may depend on them."""
    torch.manual_seed(1)
    source, target = torch.randint(3, 12, (4, 7)), torch.randint(3, 12, (4, 6))
    return TranslationBatch(source, SOURCE_LENGTHS, target, TARGET_LENGTHS)


@pytest.fixture
def build(config):
    """build("model.attention=dot", …): a small model in double precision, without dropout."""

    def make(*overrides: str, info: dict = INFO) -> Seq2Seq:
        settings = config("model=seq2seq", *SMALL, "model.embedding_size=6", "model.dropout=0", *overrides)
        torch.manual_seed(1)
        model = Seq2Seq(settings, info).double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)  # so that what is decoded differs from source to source
        return model

    return make


VARIANTS = [
    ["model.attention=additive", "model.input_feeding=true"],
    ["model.attention=dot", "cell.kind=gru", "cell.num_layers=2"],
    ["model.attention=general", "cell=scratch", "cell.kind=peephole", "cell.bidirectional=false"],
    ["model.attention=none", "cell.kind=rnn", "model.input_feeding=true", "model.tie_weights=none"],
    ["model.attention=general", "cell=fused", "cell.num_layers=3"],
    ["model.attention=dot", "cell=fused", "cell.kind=slstm", "model.input_feeding=true"],
    ["model.attention=additive", "cell=scratch", "cell.kind=minlstm", "cell.num_layers=2"],
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: ",".join(v))
def test_a_padded_batch_is_its_sentences_alone(build, overrides):
    model, batch = build(*overrides), make_batch()
    logits, weights = model(batch.source, SOURCE_LENGTHS, batch.target)
    loss = 0.0
    greedy, beam = (model.search(batch.source, SOURCE_LENGTHS, size) for size in (1, 3))
    for b, (s, t) in enumerate(zip(SOURCE_LENGTHS.tolist(), TARGET_LENGTHS.tolist(), strict=True)):
        source, length, target = batch.source[b : b + 1, :s], SOURCE_LENGTHS[b : b + 1], batch.target[b, :t]
        alone, looked = model(source, length, target[None])
        torch.testing.assert_close(logits[b, :t], alone[0])
        torch.testing.assert_close(weights[b, :t, :s], looked[0])
        assert not weights[b, :t, s:].any()
        loss += F.cross_entropy(alone[0, :-1], target[1:], reduction="sum").item()
        for together, size in ((greedy, 1), (beam, 3)):
            found = model.search(source, length, size)[0].tolist()
            assert together[b].tolist()[: len(found)] == found and not together[b, len(found) :].any()
    assert model.loss(batch).item() == pytest.approx(loss / (TARGET_LENGTHS - 1).sum().item(), rel=1e-12)


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: ",".join(v))
def test_padding_does_not_reach_loss_or_gradients(build, overrides):
    model, batch = build(*overrides), make_batch()
    results = []
    for filling in (0, 7):
        steps = torch.arange(7)
        source = batch.source.masked_fill(steps >= SOURCE_LENGTHS[:, None], filling)
        target = batch.target.masked_fill(steps[:6] >= TARGET_LENGTHS[:, None], filling)
        model.zero_grad()
        loss = model.loss(TranslationBatch(source, SOURCE_LENGTHS, target, TARGET_LENGTHS), 0.1)
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("input_feeding", ["true", "false"])
@torch.no_grad()
def test_against_the_equations_step_by_step(build, input_feeding):
    """The class docstring's, with nn.LSTMCell and one token at a time; what dropout reads is doubled."""
    model, batch = build(f"model.input_feeding={input_feeding}"), make_batch()
    assert isinstance(model.dropout, nn.Dropout)
    model.dropout = Times()
    logits, weights = model(batch.source, SOURCE_LENGTHS, batch.target)
    named = model.state_dict()
    E, H, tied = 6, 8, named["target_embedding.weight"]

    def lstm_cell(name: str, suffix: str = "") -> nn.LSTMCell:
        cell = nn.LSTMCell(named[f"{name}.weight_ih_l0"].size(1), H).double()
        cell.load_state_dict(
            {k: named[f"{name}.{k}_l0{suffix}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        )
        return cell

    forward, backward = lstm_cell("encoder"), lstm_cell("encoder", "_reverse")
    decoder = lstm_cell("decoder")
    for b, length in enumerate(SOURCE_LENGTHS.tolist()):
        finals, outputs = [], []
        for cell, order in ((forward, range(length)), (backward, reversed(range(length)))):
            state, hs = (torch.zeros(H).double(),) * 2, {}
            for s in order:
                state = cell(2 * E**0.5 * tied[batch.source[b, s]], state)
                hs[s] = state[0]
            finals.append(state)
            outputs.append(torch.stack([hs[s] for s in range(length)]))
        memory = 2 * torch.cat(outputs, 1)  # (S, 2H)
        h, c = (
            torch.tanh(bridge(torch.cat([final[k] for final in finals])))
            for k, bridge in enumerate(model.bridge)
        )
        state = h, c
        readout = torch.zeros(E).double()
        for t in range(batch.target.size(1)):
            x = 2 * E**0.5 * tied[batch.target[b, t]]
            state = decoder(torch.cat([x, readout]) if input_feeding == "true" else x, state)
            scores = memory @ named["attention.W.weight"].t() @ state[0]
            attended = scores.softmax(0)
            readout = torch.tanh(model.readout(torch.cat([state[0], attended @ memory])))
            torch.testing.assert_close(weights[b, t, :length], attended)
            torch.testing.assert_close(logits[b, t], 2 * tied @ readout + model.projection.bias)


@torch.no_grad()
def test_an_slstm_passes_on_its_memory_c_over_n(build):
    """The decoder begins with n = 1 and m = 0."""
    model, batch = build("cell.kind=slstm"), make_batch()
    _, final = model.encoder(model.embed_ids(batch.source), lengths=SOURCE_LENGTHS)
    _, first = model.encode(batch.source, SOURCE_LENGTHS)
    forward, backward = final.c / final.n
    torch.testing.assert_close(first.c[0], torch.tanh(model.bridge[1](torch.cat([forward, backward], 1))))
    assert first.n.eq(1).all() and first.m.eq(0).all()


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: ",".join(v))
@torch.no_grad()
def test_greedy_search_takes_the_most_probable_token(build, overrides):
    model, batch = build(*overrides), make_batch()
    found = model.search(batch.source, SOURCE_LENGTHS)
    for b in range(4):
        written = [INFO["bos"]]
        while len(written) < INFO["max_target_length"] and written[-1] != INFO["eos"]:
            logits, _ = model(batch.source[b : b + 1], SOURCE_LENGTHS[b : b + 1], torch.tensor([written]))
            logits[0, -1, :2] = -torch.inf
            written.append(int(logits[0, -1].argmax()))
        assert found[b].tolist()[: len(written) - 1] == written[1:]
        assert not found[b, len(written) - 1 :].any()
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: ",".join(v))
@torch.no_grad()
def test_a_wide_beam_finds_the_most_probable_sentence(build, overrides):
    """Of all that are at most 4 tokens of EOS and three others long, by their logits in `forward`."""
    model, batch = build(*overrides, info=INFO | {"vocab_size": 6, "max_target_length": 5}), make_batch()
    found = model.search(batch.source % 6, SOURCE_LENGTHS, 150, length_penalty=0.0)
    sentences = torch.cartesian_prod(*[torch.tensor([2, 3, 4, 5])] * 4)  # (256, 4)
    given = F.pad(sentences[:, :-1], (1, 0), value=INFO["bos"])
    ended = given.eq(INFO["eos"]).cummax(1).values  # from the step after EOS on
    for b in range(4):
        source = (batch.source[b : b + 1] % 6).expand(256, -1)
        logits = model(source, SOURCE_LENGTHS[b].expand(256), given)[0]
        logits[:, :, :2] = -torch.inf
        losses = F.cross_entropy(logits.transpose(1, 2), sentences, reduction="none")
        best = losses.masked_fill(ended, 0).sum(1).argmin()
        expected = sentences[best].masked_fill(ended[best], INFO["pad"])
        assert found[b].tolist() == expected[: found.size(1)].tolist()
        assert not expected[found.size(1) :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree(build, kind):
    """One checkpoint, every backend: the same loss, gradients and translations."""
    batch, results = make_batch(), {}
    for backend in KINDS[kind].backends:
        model = build(f"cell={backend}", f"cell.kind={kind}", "cell.num_layers=2")
        loss = model.loss(batch, 0.1)
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        tokens = model.search(batch.source, SOURCE_LENGTHS, 3)
        results[backend] = (loss, gradients, tokens)
        torch.testing.assert_close(results[backend], results["scratch"])


class Masks(nn.Module):
    """Dropout of one half, whose masks can be given again."""

    def __init__(self):
        super().__init__()
        self.drawn: list[torch.Tensor] = []
        self.again: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.again:
            self.drawn.append(2.0 * torch.randint_like(x, 2))
            return x * self.drawn[-1]
        return x * self.again.pop(0)


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: ",".join(v))
def test_r_drop(build, overrides):
    """Against two readings of the batch with the same masks, token by token, and all gradients."""
    model, batch = build(*overrides), make_batch()
    masks = model.dropout = Masks()
    loss = model.loss(batch, 0.1, r_drop=3.0)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    readings = []
    for half in (0, 1):
        masks.again = [mask.chunk(2)[half] for mask in masks.drawn]
        logits, _ = model(batch.source, SOURCE_LENGTHS, batch.target[:, :-1])
        readings.append(logits.log_softmax(-1))
    assert not masks.again
    entropy, divergence, V = torch.zeros(2).double(), torch.zeros(2).double(), 12
    for b, length in enumerate(TARGET_LENGTHS.tolist()):
        for t in range(length - 1):
            for k, log_p, log_q in ((0, *readings), (1, *reversed(readings))):
                truth = torch.full((V,), 0.1 / V).double()
                truth[batch.target[b, t + 1]] += 0.9
                entropy[k] -= truth @ log_p[b, t]
                divergence[k] += sum(
                    log_p[b, t, v].exp() * (log_p[b, t, v] - log_q[b, t, v]) for v in range(V)
                )
    count = (TARGET_LENGTHS - 1).sum()
    expected = (entropy.sum() / 2 + 3.0 / 2 * divergence.sum()) / count
    assert divergence.min() > 0.1
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(found, gradients)


def test_what_the_loss_is_over(build):
    """Of each target what follows BOS, EOS counted: the classes whose entropy is the baseline."""
    batch = make_batch()
    expected = [
        token for row, n in zip(batch.target, TARGET_LENGTHS, strict=True) for token in row[1:n].tolist()
    ]
    assert build().targets(batch).tolist() == expected


def test_tied_weights(build):
    shared = {
        tie: build(f"model.tie_weights={tie}").state_dict(keep_vars=True) for tie in ("none", "output", "all")
    }
    names = ("source_embedding.weight", "target_embedding.weight", "projection.weight")
    assert [len({id(state[name]) for name in names}) for state in shared.values()] == [3, 2, 1]


# --- whole runs ---


@pytest.fixture
def run(config, tmp_path):
    """run(overrides): the settings and the metrics of a short run on a few dates."""

    def start(*overrides: str) -> tuple[dict, dict[str, float]]:
        settings = config(*DATES, *SMALL, f"data.cache={tmp_path}/cache", *SHORT, *overrides)
        return settings, train(settings)

    return start


def test_it_learns_by_heart(run, config, tmp_path):
    """Every one of 8 dates, after 150 steps on them."""
    settings, _ = run(
        "data.train_size=8",
        "data.batch_size=8",
        "cell.hidden_size=64",
        "model.tie_weights=output",
        "model.dropout=0",
        "optimizer.lr=1e-2",
        "trainer.max_epochs=150",
        "trainer.max_steps=150",
        "trainer.val_check_interval=150",
        "scheduler.warmup_steps=10",
        "callbacks.examples=null",
    )
    model = load_model(settings.run_dir + "/checkpoints/best.ckpt")
    assert isinstance(model, Seq2Seq)
    module = build_data(settings.data)
    module.setup("fit")
    sources, targets = module.read()["train"]
    for beam_size in (1, 4):
        assert model.translate(*encode_sources(model.info, sources), beam_size, 1.0) == targets

    def rows() -> list[str]:
        axes = model.draw_attention(*encode_sources(model.info, sources[:1]), 4).axes[0]
        return [label.get_text() for label in axes.get_yticklabels()]

    assert rows() == [*targets[0], "<eos>"]
    with torch.no_grad():
        model.projection.bias[model.info["eos"]] += 20  # the best hypothesis now ends before the others
    assert rows() == ["<eos>"]


def test_the_first_loss_of_a_training(run):
    """With smoothed labels, of weights that stay as they are, pair by pair."""
    frozen = ["optimizer=sgd", "optimizer.lr=1e-30", "model.dropout=0", "data.batch_size=8", "seed=3"]
    settings, _ = run(*frozen, "model.label_smoothing=0.3", "trainer.max_steps=1")
    model = load_model(settings.run_dir + "/checkpoints/last.ckpt")
    module = build_data(settings.data, 3)
    module.setup("fit")
    batch, losses = next(iter(module.train_dataloader())), []
    for source, n, target, length in zip(*batch, strict=True):
        with torch.no_grad():
            log_p = model(source[None, :n], n[None], target[None, : length - 1])[0][0].log_softmax(-1)
        losses += [
            -(0.7 * log_p[t, token] + 0.3 * log_p[t].mean()).item()
            for t, token in enumerate(target[1:length])
        ]
    with Path(settings.run_dir, "metrics.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["train/loss"]) == pytest.approx(np.mean(losses), abs=1e-5)


def test_how_validation_and_test_search(run, monkeypatch):
    asked, original = [], Seq2Seq.translate

    def translate(self, source, lengths, *how):
        asked.append(how)
        return original(self, source, lengths, *how)

    monkeypatch.setattr(Seq2Seq, "translate", translate)
    run("model.beam_size=3", "model.length_penalty=0.5", "callbacks.examples=null", "trainer.max_steps=1")
    assert asked == [(1, 1.0), (3, 0.5), (1, 1.0)]  # the last one for what is printed at the end


def test_metrics_of_the_test_set(run, capsys):
    """Against sacrebleu on the texts of the data set itself."""
    size = ["data.train_size=1000", "data.test_size=200", "data.batch_size=50", "model.embedding_size=32"]
    settings, trained = run(
        *size,
        "trainer.max_steps=180",
        "optimizer.lr=1e-2",
        "cell=fused",
        "cell.hidden_size=64",
        "model.dropout=0",
    )
    assert "case:mixed|eff:no|tok:13a" in capsys.readouterr().out
    ckpt = settings.run_dir + "/checkpoints/best.ckpt"
    model = load_model(ckpt)
    assert isinstance(model, Seq2Seq)
    module = build_data(settings.data)
    module.setup("fit")
    options = ask(ckpt, "scratch", cache=settings.data.cache)
    greedy = evaluate(options.replace({"beam_size": 1}))
    for part, beam_size, metrics in (("val", 1, trained), ("test", 1, greedy), ("test", 5, trained)):
        sources, targets = module.read()[part]
        predictions = model.translate(*encode_sources(model.info, sources), beam_size, 1.0)
        bleu = sacrebleu.corpus_bleu(predictions, [targets]).score
        assert metrics[f"{part}/sacrebleu"] == pytest.approx(bleu, abs=1e-3) and bleu > 1
        same = sum(p == t for p, t in zip(predictions, targets, strict=True))
        assert metrics[f"{part}/exact_match"] == pytest.approx(same / len(targets))
    assert "test/bleu_moses" not in metrics  # the target is no language
    assert greedy["test/sacrebleu"] != metrics["test/sacrebleu"]
    again = evaluate(options)
    for name in ("val/loss", "val/sacrebleu", "test/loss", "test/perplexity", "test/sacrebleu"):
        assert again[name] == pytest.approx(metrics[name], rel=1e-4)


def test_a_model_in_lower_case_says_so(run, capsys):
    run("data.lowercase=true")
    assert "test/sacrebleu nrefs:1|case:lc" in capsys.readouterr().out


def test_bleu_of_papers_on_multi30k():
    """Against the definition of BLEU, on texts that are tokenised by hand as Moses does it."""
    truths = [
        "Der Mann im blau-weißen T-Shirt hält „Kids' Food“ hoch.",
        "Eine Frau (in Blau) läuft ,schnell', e.s.e. – ja!",
        "Nummer 10.",  # a number keeps the point
    ]
    tokens = [
        "der mann im blau-weißen t-shirt hält &quot; kids &apos; food &quot; hoch .",
        "eine frau ( in blau ) läuft , schnell &apos; , e.s.e. - ja !",
        "nummer 10.",
    ]
    predictions = ['Der Mann im Blau-Weißen T-Shirt hält "Kids" hoch.', *truths[1:]]
    first = "der mann im blau-weißen t-shirt hält &quot; kids &quot; hoch ."

    def count(text: str, n: int) -> Counter:
        words = text.split()
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    pairs = list(zip([first, *tokens[1:]], tokens, strict=True))
    log_precision = 0.0
    for n in range(1, 5):
        right = sum((count(guess, n) & count(truth, n)).total() for guess, truth in pairs)
        log_precision += math.log(right / sum(count(guess, n).total() for guess, _ in pairs)) / 4
    lengths = [sum(len(text.split()) for text in texts) for texts in zip(*pairs, strict=True)]
    assert lengths[0] < lengths[1]
    bleu = 100 * math.exp(1 - lengths[1] / lengths[0] + log_precision)
    scored = compute_moses_bleu(predictions, truths, "de")
    assert scored is not None
    score, signature = scored
    assert score == pytest.approx(bleu, abs=1e-9)
    assert "tok:none|smooth:none" in signature and "sacremoses" in signature and "for de" in signature
    assert compute_moses_bleu(predictions, truths, "target") is None
    assert compute_moses_bleu(predictions, truths, "zh") is None
    nothing = compute_moses_bleu(["ein"], ["ein hund läuft ."], "de")
    assert nothing is not None and nothing[0] == 0  # no smoothing


def test_monitors_and_what_they_need(run, config):
    best = ["model.monitor=val/sacrebleu", "model.monitor_mode=max"]
    _, metrics = run(*best, "scheduler=plateau")
    assert "val/sacrebleu" in metrics
    _, metrics = run("model.translate_val=false")
    assert "val/sacrebleu" not in metrics and "test/sacrebleu" in metrics
    with pytest.raises(ValueError, match=r"needs model\.translate_val=true"):
        config(*DATES, *best, "model.translate_val=false")


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda v: ",".join(v))
def test_mixed_precision(run, overrides):
    _, metrics = run(*overrides, "precision=bf16", "callbacks.examples=null")
    assert metrics["test/perplexity"] < 1000


@pytest.mark.parametrize("overrides", [[], ["precision=bf16", "model.input_feeding=true"]])
def test_a_run_with_r_drop(run, overrides):
    """The first step differs from that without by the divergence alone; the validation has no dropout."""
    first = []
    for r_drop in (1e-9, 2.0):
        settings, metrics = run(*overrides, f"model.r_drop={r_drop}", "trainer.max_steps=1")
        with Path(settings.run_dir, "metrics.csv").open(newline="") as file:
            first.append(float(next(csv.DictReader(file))["train/loss"]))
        assert metrics["test/perplexity"] < 1000
    assert first[1] > first[0] + 1e-3


def test_a_checkpoint_translates_on_its_own(run, command, tmp_path):
    settings, _ = run()
    folder = Path(settings.run_dir)
    assert "| source | prediction | truth |" in (folder / "examples.md").read_text(encoding="utf-8")
    assert (folder / "examples.png").stat().st_size > 1000
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    ckpt, picture = f"ckpt={folder}/checkpoints/best.ckpt", tmp_path / "map.png"
    code, out, _ = command("predict", ckpt, "text=22. November 2026", f"attention_map={picture}")
    assert code == 0 and out.endswith("\n") and picture.stat().st_size > 1000
    for text in ("电影 ☃", "2026年11月22日 $x$", "null", "Isn't it, Zoë?"):
        code, _, error = command("predict", ckpt, f"text={text}", "beam_size=2", f"attention_map={picture}")
        assert code == 0, error
    code, out, _ = command("predict", ckpt, "text=1.2.2003\n\n4.5.2006", "beam_size=1")
    assert code == 0 and out.count("\n") == 3 and out.splitlines()[1] == ""
    for text, said in (("", "text= is empty"), (" ", "text= is empty"), ("dog " * 10_000, "40000 tokens")):
        code, _, error = command("predict", ckpt, f"text={text}")
        assert code == 1 and said in error and error.count("\n") == 1
    code, _, error = command("predict", ckpt, "text=1.2.2003", f"attention_map={tmp_path}/map.xyz")
    assert code == 1 and "xyz" in error and error.count("\n") == 1


def test_many_lines_with_a_length_penalty(trained, command, tmp_path, monkeypatch):
    """More than are translated at once, by a model with random weights: translations of any length."""
    content = torch.load(trained("seq2seq"), weights_only=True)
    torch.manual_seed(0)
    for tensor in content["state_dict"].values():
        tensor.normal_()
    content["state_dict"]["projection.bias"][content["hyper_parameters"]["info"]["eos"]] = 4.0
    torch.save(content, tmp_path / "x.ckpt")
    lines = [f"{day}.2.2{day:03}" for day in range(1, 67)]
    model, found = load_model(f"{tmp_path}/x.ckpt"), []
    assert isinstance(model, Seq2Seq)
    drawn, original = [], Seq2Seq.draw_attention

    def draw_attention(self, source, lengths, *how):
        drawn.append((len(source), *how))
        return original(self, source, lengths, *how)

    monkeypatch.setattr(Seq2Seq, "draw_attention", draw_attention)
    for penalty in (0.0, 2.0):
        how = ["beam_size=4", f"length_penalty={penalty}", f"attention_map={tmp_path}/map.png"]
        code, out, _ = command("predict", f"ckpt={tmp_path}/x.ckpt", "text=" + "\n".join(lines), *how)
        assert code == 0
        found.append(out.removesuffix("\n").split("\n"))
        assert found[-1] == model.translate(*encode_sources(model.info, lines), 4, penalty)
    assert sum(map(len, found[0])) < sum(map(len, found[1]))
    assert drawn == [(1, 4, 0.0), (1, 4, 2.0)]  # of the first line


def test_without_attention_there_is_no_picture(run, command):
    settings, _ = run("model.attention=none")
    folder = Path(settings.run_dir)
    assert not (folder / "examples.png").exists()
    code, _, error = command(
        "predict", f"ckpt={folder}/checkpoints/best.ckpt", "text=1.2.2003", "attention_map=map.png"
    )
    assert code == 1 and "model.attention=none" in error


def test_multi30k_from_files_of_the_hub(config, tmp_path, command, capsys):
    pairs = [("A man's red shirt.", "Ein rotes Hemd, „so“."), ("Two Girls.", "Zwei Mädchen.")]
    for split, copies in {"train": 20, "val": 3, "test": 3}.items():
        rows = [json.dumps({"en": f"{en} {i}", "de": f"{de} {i}"}) for i in range(copies) for en, de in pairs]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    settings = config(
        "model=seq2seq",
        *SMALL,
        f"data.path={tmp_path}",
        f"data.cache={tmp_path}/cache",
        "data.vocab_size=300",
        "data.batch_size=4",  # sorted by length: the last ones have more tokens
        "model.label_smoothing=0.1",  # of training alone
        *SHORT,
    )
    metrics = train(settings)
    assert {"test/sacrebleu", "test/bleu_moses"} <= metrics.keys()
    assert "sacremoses" in capsys.readouterr().out
    model = load_model(settings.run_dir + "/checkpoints/best.ckpt")
    module = build_data(settings.data)
    module.setup("fit")
    for part in ("val", "test"):
        losses = []
        for row in range(6):
            source, n, target, _ = module.datasets[part][np.array([row])]
            with torch.no_grad():
                log_p = model(source, n, target[:, :-1])[0][0].log_softmax(-1)
            losses += [-log_p[t, token].item() for t, token in enumerate(target[0, 1:])]
        assert metrics[f"{part}/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
        assert metrics[f"{part}/perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").unlink()
    ckpt = f"ckpt={settings.run_dir}/checkpoints/best.ckpt"
    for text in ("A man's red shirt.", "电影", "ä" * 40):
        code, _, error = command("predict", ckpt, f"text={text}")
        assert code == 0, error
    # Another test set, without the data of training
    (tmp_path / "other.tsv").write_text("de\ten\nEin Mädchen.\tTwo girls\nEin Hund läuft.\tA dog runs.\n")
    code, out, error = command("evaluate", ckpt, f"data.test={tmp_path}/other.tsv")
    assert code == 0 and "val/" not in out, error
    source, n = encode_sources(model.info, ["Two girls", "A dog runs."])
    losses = []
    for row, text in enumerate(["Ein Mädchen.", "Ein Hund läuft."]):
        target = torch.tensor([[BOS, *load_tokenizer(model.info["tokenizer"]).encode(text).ids, EOS]])
        with torch.no_grad():
            log_p = model(source[[row], : n[row]], n[[row]], target[:, :-1])[0][0].log_softmax(-1)
        losses += [-log_p[t, token].item() for t, token in enumerate(target[0, 1:])]
    found = dict(line.split() for line in out.splitlines() if line.startswith("test/") and "|" not in line)
    assert float(found["test/loss"]) == pytest.approx(np.mean(losses), abs=2e-6)
    assert {"test/sacrebleu", "test/bleu_moses"} <= found.keys()
    code, _, error = command("evaluate", ckpt, f"data.test={tmp_path}/none.tsv")
    assert code == 1 and "none.tsv: no such file" in error and error.count("\n") == 1
    (tmp_path / "other.tsv").write_text("de\ten\n\tTwo girls\n")
    code, _, error = command("evaluate", ckpt, f"data.test={tmp_path}/other.tsv")
    assert code == 1 and "row 1 of test" in error and "has an empty de" in error
