"""What is attributed sums to what is explained, and each part is what a direct product of gates says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lstmlab.analysis.attribution import attribute_memory, attribute_prediction
from lstmlab.analysis.interventions import intervene
from lstmlab.analysis.traces import load_validation_rows
from lstmlab.cells import KINDS
from lstmlab.checkpoint import load_model

# From the gates of each kind, each (T, H): what a step writes, and the share of the old memory that it keeps
WRITTEN: dict[str, Callable] = {
    **dict.fromkeys(("lstm", "peephole", "layernorm", "mogrifier", "slstm"), lambda i, f, g, o: (i * g, f)),
    "gru": lambda r, z, n: ((1 - z) * n, z),
    "mingru": lambda z, g: (z * g, 1 - z),
    "minlstm": lambda i, f, g: (i * g, f),
}


def test_each_kind_with_a_gate_is_tested():
    assert WRITTEN.keys() == KINDS.keys() - {"rnn"}


def load(ckpt: Any) -> Any:
    """In float64, with weights large enough that each step matters."""
    model: Any = load_model(str(ckpt), "scratch").double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def read(model: Any, text: str) -> tuple[torch.Tensor, dict]:
    with torch.no_grad(), intervene(model, {}, record=True) as cache:
        output = model.run(model.read_text(text))
    return output, cache


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_memory_is_the_sum_of_what_was_written(trained, kind):
    model = load(trained("charlm", f"cell.kind={kind}", "cell.num_layers=2"))
    _, cache = read(model, "line 12")
    memory = f"layer1.{'c' if 'c' in KINDS[kind].state._fields else 'h'}"
    for step in (0, 3, -1):
        found = attribute_memory(model, cache, memory, step)
        assert_close(found.sum(0), cache[memory][0, step], rtol=0, atol=1e-12)
        assert not found[step % 7 + 1 :].any()
    gates = {gate: cache[f"layer1.{gate}"][0] for gate in KINDS[kind].gates}
    written, kept = WRITTEN[kind](**gates)
    for step in range(7):
        assert_close(found[step], written[step] * kept[step + 1 :].prod(0), rtol=0, atol=1e-12)
    assert_close(attribute_memory(model, cache, f"{memory}[2,0]"), found[:, [2, 0]])


def test_the_other_direction_writes_from_the_end(trained):
    model = load(trained("sentiment", "cell.bidirectional=true"))
    _, cache = read(model, "a fine film, not bad")
    found = attribute_memory(model, cache, "layer0.reverse.c", 2)
    assert_close(found.sum(0), cache["layer0.reverse.c"][0, 2], rtol=0, atol=1e-12)
    assert not found[:2].any() and found[2:].all()


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_logit_is_the_sum_of_what_the_characters_add(trained, kind):
    model = load(trained("charlm", f"cell.kind={kind}", "cell.num_layers=2"))
    logits, _ = read(model, "line 12")
    for step in (-1, 3):
        parts, bias = attribute_prediction(model, "line 12", "n", step)
        logit = logits[0, step, model.vocabulary.index("n")].item()
        assert parts.sum().item() + bias == pytest.approx(logit, abs=1e-10)
        assert bias == pytest.approx(model.projection.bias[model.vocabulary.index("n")].item(), abs=1e-10)
        assert not parts[step % 7 + 1 :].any()


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_class_is_the_sum_of_what_the_words_add(trained, pooling, bidirectional):
    how = [f"model.pooling={pooling}", f"cell.bidirectional={bidirectional}"]
    model = load(trained("sentiment", *how))
    [logit], _ = read(model, "a fine film, not bad")
    parts, bias = attribute_prediction(model, "a fine film, not bad", "positive")
    assert parts.sum().item() + bias == pytest.approx(logit.item(), abs=1e-10)
    assert bias == pytest.approx(model.projection.bias.item(), abs=1e-10)
    other, minus = attribute_prediction(model, "a fine film, not bad", "negative")
    assert_close(other, -parts)
    assert minus == -bias


def test_it_ranks_the_words_much_as_integrated_gradients_do(trained):
    """Sundararajan et al. 2017. Those also go through the gates, so that the two agree in part only."""
    captum = pytest.importorskip("captum.attr", reason="captum is not installed (pip install -e '.[dev]')")
    quick = ["data.train_size=2000", "trainer.max_steps=120", "optimizer.lr=1e-2"]
    larger = ["model.pooling=mean", "cell.hidden_size=16", "model.embedding_size=16"]
    ckpt = trained("sentiment", *quick, *larger).with_name("last.ckpt")
    model: Any = load_model(str(ckpt), "scratch").double()
    rows, _ = load_validation_rows(model, {}, 400)
    attribute = captum.LayerIntegratedGradients(
        lambda ids: model(ids, torch.full((len(ids),), ids.size(1)))[0], model.embedding
    ).attribute
    found = []
    for text in "".join(model.token_texts(rows)).splitlines():
        ids = model.read_text(text).ids
        theirs = attribute(ids, baselines=torch.zeros_like(ids), n_steps=30).sum(-1)[0]
        ours, _ = attribute_prediction(model, text, "positive")
        ranks = torch.stack([theirs.detach(), ours]).argsort().argsort().double()
        found.append(torch.corrcoef(ranks)[0, 1].item())
    assert len(found) > 9 and sum(found) / len(found) > 0.4, found


def test_refusals(trained):
    rnn = load(trained("charlm", "cell.kind=rnn"))
    with pytest.raises(ValueError, match="kind=rnn has no gate that keeps its memory"):
        attribute_memory(rnn, read(rnn, "line")[1], "layer0.h")
    with pytest.raises(ValueError, match="kind=rnn has no gate that keeps its memory"):
        attribute_prediction(rnn, "line", "e")
    lstm = load(trained("charlm"))
    with pytest.raises(ValueError, match=r"'layer0.f' is not the memory of kind=lstm, which is layer0.c"):
        attribute_memory(lstm, read(lstm, "line")[1], "layer0.f")
    with pytest.raises(ValueError, match="target='电' is none of"):
        attribute_prediction(lstm, "line", "电")
    with pytest.raises(ValueError, match="model=copytask has no prediction to attribute"):
        attribute_prediction(load(trained("copytask")), "01" * 5, "1")
    translator = load(trained("seq2seq"))
    with pytest.raises(ValueError, match="'attention' is not the memory of a cell"):
        attribute_memory(translator, read(translator, "2 May 2012")[1], "attention")
    with pytest.raises(ValueError, match=r"model\.pooling=attention"):
        attribute_prediction(load(trained("sentiment", "model.pooling=attention")), "a film", "positive")
