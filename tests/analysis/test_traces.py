from typing import Any

import pytest
import torch

from conftest import SMALL
from lstmlab.analysis import traces
from lstmlab.analysis.traces import load_model_data, load_validation_rows, trace
from lstmlab.checkpoint import load_model
from lstmlab.runs.train import train

UNSEEN = str.maketrans("<>br", "\ufffd" * 4)  # of the text file
SETS = ["data.train_size=64", "data.val_size=40", "data.test_size=10"]
MODELS = {
    "charlm": (["data=textfile", "data.batch_size=4", "data.sequence_length=20"], "line 12: é 5\nline" * 60),
    "copytask": (["data.val_size=40"], None),
    "sentiment": (["data=reviews", *SETS], "Not bad at all, isn't it?"),
    "seq2seq": (["data=dates", *SETS], "\n".join(f"May {n}, 1{n:0{n % 3 + 1}}" for n in range(70))),
}


@pytest.fixture
def checkpoint(config, text_file, tmp_path):
    """checkpoint("charlm", …): the path of a model that was trained on one batch."""

    def build(name: str, *overrides: str) -> str:
        given = [f"model={name}", *MODELS[name][0], *SMALL, "debug=one_batch", *overrides]
        if name == "charlm":
            given.append(f"data.path={text_file}")
        if name != "copytask":
            given.append(f"data.cache={tmp_path}/cache")
        settings = config(*given)
        train(settings)
        return settings.run_dir + "/checkpoints/last.ckpt"

    return build


def text_for(name: str, model) -> str:
    return MODELS[name][1] or "01" * (model.task.recall // 2)


@pytest.mark.parametrize(
    "overrides",
    [
        ["charlm", "cell=torch", "cell.num_layers=2"],
        ["charlm", "cell=fused"],
        ["charlm", "cell=scratch", "cell.kind=layernorm"],
        ["charlm", "cell=torch", "cell.kind=gru"],
        ["charlm", "cell=fused", "cell.kind=slstm", "cell.num_layers=2"],
        ["copytask", "cell=torch", "cell.kind=rnn"],
        ["copytask", "cell=fused", "cell.kind=mogrifier"],
        ["sentiment", "cell=fused", "cell.bidirectional=true"],
        ["sentiment", "cell=fused", "cell.kind=minlstm", "cell.bidirectional=true"],
        ["seq2seq", "cell=torch", "cell.bidirectional=true", "cell.num_layers=2"],
    ],
    ids=" ".join,
)
def test_the_trace_is_what_the_trained_backend_computes(checkpoint, overrides):
    name = overrides[0]
    path = checkpoint(*overrides)
    own: Any = load_model(path)
    model: Any = load_model(path, "scratch")
    rows = model.read_text(text_for(name, model))
    assert name != "seq2seq" or (len(rows.ids) == 70 > traces.ROWS and len(set(rows.lengths.tolist())) > 2)
    values = trace(model, rows)
    outputs: list[torch.Tensor] = []
    own.traced_cell().register_forward_hook(lambda module, given, result: outputs.append(result[0]))
    with torch.inference_mode():
        lengths = (rows.lengths,) if name in ("sentiment", "seq2seq") else ()
        (own.encode if name == "seq2seq" else own)(rows.ids, *lengths)
    (output,) = outputs  # (B, T, D·H)
    h = torch.cat(list(values["h"][-1]), -1)  # (N, D·H)
    torch.testing.assert_close(h, output[rows.mask], atol=1e-6, rtol=0)
    if name == "charlm":
        with torch.inference_mode():
            logits, _ = own(rows.ids)
            traced = model.projection(model.resize(h))
        torch.testing.assert_close(traced, logits[0], atol=1e-6, rtol=0)


def test_gates_and_states_obey_the_equations(checkpoint):
    model = load_model(checkpoint("charlm", "cell.num_layers=2"), "scratch")
    rows = model.read_text("line 1: é\n" * 120)
    assert len(model.token_texts(rows)) > 2 * traces.WINDOW
    v = trace(model, rows)
    before = torch.cat([torch.zeros_like(v["c"][:, :, :1]), v["c"][:, :, :-1]], 2)
    torch.testing.assert_close(v["c"], v["f"] * before + v["i"] * v["g"])
    torch.testing.assert_close(v["h"], v["o"] * v["c"].tanh())
    assert v["c"].shape == (2, 1, 1200, 8)
    assert trace(model, rows, "c").keys() == {"c"}


@pytest.mark.parametrize("name", MODELS)
def test_validation_data_and_their_tokens(checkpoint, name, text_file):
    model: Any = load_model(checkpoint(name), "scratch")
    rows, note = load_validation_rows(model, {}, 300)
    assert note == ""
    text = model.token_texts(rows)
    assert len(text) == rows.lengths.sum() == rows.mask.sum() >= 300
    if name == "charlm":
        module = load_model_data(model, {})
        assert "".join(text) == text_file.read_text(encoding="utf-8")[5400:5700]
        assert model.training_text(module, 100) == text_file.read_text(encoding="utf-8")[:100]
        assert model.training_text(module, 6000) == text_file.read_text(encoding="utf-8")[:5400]
    else:
        assert sum(token.endswith("\n") for token in text) == len(rows.ids)


def test_another_text_than_that_of_training_is_named(checkpoint, text_file):
    model = load_model(checkpoint("charlm"), "scratch")
    text_file.write_text(text_file.read_text(encoding="utf-8").replace("line", "lime"), encoding="utf-8")
    rows, note = load_validation_rows(model, {}, 300)
    assert "not the text of training" in note and "\ufffd" in model.token_texts(rows)


def test_tokens_of_a_typed_text(checkpoint):
    charlm = load_model(checkpoint("charlm"), "scratch")
    assert charlm.token_texts(charlm.read_text("line\n电 1")) == [*"line\n\ufffd 1"]
    copy = load_model(checkpoint("copytask", "data.length=2", "data.delay=3"), "scratch")
    assert "".join(copy.token_texts(copy.read_text("01"))) == "01···?··\n"
    dates = load_model(checkpoint("seq2seq"), "scratch")
    assert "".join(dates.token_texts(dates.read_text("3 5\n1999"))) == "3 5<eos>\n1999<eos>\n"
    for blank in (" ", "\n", "<br>"):  # which a character model may have read as well
        assert "".join(charlm.token_texts(charlm.read_text(blank))) == blank.translate(UNSEEN)
    reviews = load_model(checkpoint("sentiment"), "scratch")
    for model, empty in ((charlm, ""), (dates, " \n "), (reviews, "<br>"), (copy, "")):
        with pytest.raises(ValueError, match=r"text= (is empty|holds 0 symbols)"):
            model.read_text(empty)
