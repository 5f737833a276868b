"""Exported pages compute what Python computes, in Chromium, and do what they offer, without a network."""

import base64
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstmlab
from conftest import SMALL
from lstmlab.analysis.interventions import clamp
from lstmlab.checkpoint import load_model
from lstmlab.data.sentiment import clean, encode_reviews
from lstmlab.data.sequence_tasks import IGNORED
from lstmlab.data.tokenization import EOS, encode, load_tokenizer, train_tokenizer
from lstmlab.data.translation import decode_targets, encode_sources
from lstmlab.export import export
from lstmlab.pages.build import build_page, describe_tokenizer
from lstmlab.runs.train import train
from lstmlab.schema import ExportConfig

AWKWARD = [
    "It isn't, y'all’s “quoted” rock'n'roll…  two  spaces\ttab\u00a0nbsp\u0085next\u2028line\u3000wide ",
    "ΟΔΥΣΣΕΥΣ İstanbul ǅ ﬁ ẞ ſ Ⅷ ⓐ x²½ 12,345.67 ١٢٣ 漢字かな 한국어 हिन्दी ไทย e\u0301 🙂👩‍👩‍👧 \U0001d54f",
    "don't I'll we've THEY'RE 's 't \n\n  \r\n indented\n__init__ a_b <eos> <unk> <pad> \ufeffbom \u200b",
    "<br /><b class='x'>bold</b> 1 < 2 &amp; &lt;i&gt; &eacute; &notit; &amp;amp; &#233; &copy &bogus; &",
    "&#x1F642; &#150; &#129; &#0; &#1; &#11; &#13; &#xD800; &#x110000; &#xFFFE; &#65 &#; &NotEqualTilde;",
    "",
    "   ",
    "\n\nHello",
    "a",
]


@pytest.fixture
def opened(tmp_path, browser):
    """opened(checkpoint): the model with weights of the order of 1, the same with the weights that the page
    holds, and the page in the browser."""

    def build(checkpoint: Path):
        path = str(tmp_path / "drawn.ckpt")  # one step leaves biases close to 0
        content = torch.load(checkpoint, weights_only=True)
        torch.manual_seed(0)
        for tensor in content["state_dict"].values():
            tensor.normal_(std=0.3)
        if "bridge.0.weight" in content["state_dict"]:  # translations of several lengths
            content["state_dict"]["projection.bias"][EOS] = 0.6
        torch.save(content, path)
        [file] = export(ExportConfig(ckpt=path, format="html", folder=str(tmp_path / "page")))
        model, rounded = load_model(path), load_model(path)
        round_weights(rounded)
        browser.get(f"file://{file}")
        assert run(browser, "return deviation") < 1e-4
        return model, rounded

    return build


@torch.no_grad()
def round_weights(model) -> None:
    """Each row to the 65,535 multiples of 1/32767 of its largest weight."""
    for parameter in model.parameters():
        step = parameter.abs().amax(-1, keepdim=True) / 32767
        parameter.copy_(torch.where(step > 0, (parameter / step).round() * step, 0))


def run(browser, script: str, *arguments):
    """A typed array comes back as a list."""
    return browser.execute_script(script, *arguments)


def wait(browser, condition: str) -> None:
    for _ in range(1000):
        if run(browser, f"return {condition}"):
            return
        time.sleep(0.01)
    pytest.fail(f"{condition}: {run(browser, 'return document.body.innerText')}")


def finish(browser) -> None:
    """Nothing was asked of a network, nothing complained."""
    assert run(browser, "return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


def close(found: list, rounded: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), rounded, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found), exact, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lstm", ["cell.num_layers=1"]),
        ("layernorm", ["cell.num_layers=2"]),
        ("gru", ["cell=torch", "model.tie_weights=true"]),  # 8 units, 6 in the embedding
        ("rnn", ["cell.num_layers=3"]),
    ],
)
def test_charlm(opened, trained, browser, kind, options):
    model, rounded = opened(trained("charlm", f"cell.kind={kind}", *options))
    ids = torch.randint(1, len(model.vocabulary), (40,))
    found = run(
        browser, "const s = stack.start(); return arguments[0].map(id => [...read(id, s)])", ids.tolist()
    )
    close(found, *(m(ids[None])[0][0].softmax(-1) for m in (rounded, model)))

    act = "$('temperature').value = arguments[0]; $('prompt').value = arguments[1]; restart()"
    run(browser, act, 0, "line 1")
    wait(browser, "document.body.dataset.written?.startsWith(turn + ' ')")
    text = run(browser, "return story.text.join('')")
    assert text == "line 1" + "".join(rounded.sample("line 1", 1000, temperature=0))
    run(browser, act, 1, "line 1")
    wait(browser, "document.body.dataset.written?.startsWith(turn + ' ')")
    drawn = run(browser, "return story.text.join('')")
    assert len(drawn) == 1006 and drawn != text and len(set(drawn)) > 10
    lines = "return [...$('text').children].map(row => row.textContent.replace('\u200b', ''))"
    assert "\n".join(run(browser, lines)).rstrip("\n") == drawn.rstrip("\n")
    run(browser, "point(100)")
    tip = run(browser, "return $('tip').innerText")
    assert "character 101" in tip and tip.count("%") >= 6
    assert run(browser, "return $('problem').hidden")
    run(browser, "meta.check.p[0] += 0.01; begin(predict, () => { throw Error('started') })")
    assert "does not compute what the model computes" in run(browser, "return $('problem').innerText")
    finish(browser)


@torch.no_grad()
def test_every_probability_is_that_of_python(trained, tmp_path):
    """The weights in the page of a model of 2 × 256 units, which is sure of itself: with float16 in place of
    them, probabilities of 10,000 characters are off by up to 0.002."""
    torch.manual_seed(0)
    path = trained("charlm", "cell.hidden_size=256", "cell.num_layers=2", "model.embedding_size=64")
    content = torch.load(path, weights_only=True)
    for name, tensor in content["state_dict"].items():
        if "weight_" in name:
            for gate in tensor.chunk(4):
                torch.nn.init.orthogonal_(gate, 1.5)
        else:
            tensor.normal_(std=1.5 if name == "projection.weight" else 0.5)
    torch.save(content, tmp_path / "sure.ckpt")
    [file] = export(ExportConfig(ckpt=str(tmp_path / "sure.ckpt"), format="html", folder=str(tmp_path)))
    assert file.stat().st_size < 4e6

    page = file.read_text(encoding="utf-8")
    [packed] = re.findall('id="weights">(.*?)</script>', page)
    [meta] = [json.loads(found) for found in re.findall('id="meta">(.*?)</script>', page, re.DOTALL)]
    held = base64.b64decode(packed)
    scales = np.frombuffer(held, "<f4", meta["rows"])
    values = np.frombuffer(held, "<i2", offset=scales.nbytes)
    model, copy = load_model(str(tmp_path / "sure.ckpt")), load_model(str(tmp_path / "sure.ckpt"))
    state = {}
    for name, parameter in copy.named_parameters():
        start, row, *shape = meta["layout"][name]
        rows = values[start : start + parameter.numel()].reshape(-1, shape[-1])
        state[name] = torch.from_numpy(rows * scales[row : row + len(rows), None]).view(shape)
    copy.load_state_dict(state)
    vocabulary: Any = model.vocabulary
    ids = torch.randint(1, len(vocabulary), (10, 1000))
    with torch.inference_mode():
        exact, found = (m(ids)[0].softmax(-1) for m in (model, copy))
    assert exact.amax(-1).mean() > 0.4
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_held_unit_changes_the_writing(opened, trained, browser, tmp_path):
    _, model = opened(trained("charlm", "cell.kind=lstm", "cell.num_layers=1"))
    wait(browser, "document.body.dataset.written?.startsWith(turn + ' ')")
    before = run(browser, "return story.text.join('')")
    run(
        browser,
        "look({unit: 3, member: 'c'}); $('hold').value = 1.5; $('hold').dispatchEvent(new Event('input'))",
    )
    wait(browser, "document.body.dataset.written?.startsWith(turn + ' ')")
    after, p = run(browser, "return [story.text.join(''), story.p.slice(1, 50).map(p => [...p])]")
    assert after != before and after[: len("l")] == before[: len("l")]
    assert run(browser, "return story.states.every(([layer]) => layer.c[3] === 1.5)")
    assert "changes the text from character" in run(browser, "return $('status').textContent")

    predictor = lstmlab.load(str(tmp_path / "drawn.ckpt"))
    predictor.changeable.load_state_dict(model.state_dict())  # rounded
    logits = predictor.run_with_hooks(after[:49], {"layer0.c[3]": clamp(1.5)})
    torch.testing.assert_close(torch.tensor(p), logits[0].softmax(-1), atol=1e-5, rtol=0)
    assert 'set="layer0.c[3]=1.5"' in run(browser, "return $('status').title")

    run(browser, "$('release').click()")
    wait(browser, "document.body.dataset.written?.startsWith(turn + ' ')")
    assert run(browser, "return story.text.join('')") == before
    finish(browser)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        ["model.pooling=max", "data.tokenizer=word", "data.max_length=9"],
        ["model.pooling=attention", "data.tokenizer=bpe", "data.vocab_size=400", "cell.kind=gru"],
        [
            "model.pooling=last",
            "data.tokenizer=char",
            "data.lowercase=false",
            "cell.num_layers=2",
            "cell.kind=layernorm",
        ],
        ["model.pooling=mean", "cell.bidirectional=false", "cell.kind=rnn", "three classes"],
    ],
)
def test_sentiment(opened, browser, trained, config, tmp_path, options):
    if options[-1] == "three classes":
        rows = [f"{('good', 'bad', 'fine')[k % 3]} film {k},{'abc'[k % 3]}" for k in range(60)]
        (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]))
        own = ["model=sentiment", "data=classes", f"data.path={tmp_path}/own.csv", f"data.cache={tmp_path}"]
        settings = config(*own, *SMALL, "trainer.max_steps=1", "trainer.log_every_n_steps=1", *options[:-1])
        train(settings)
        path = Path(settings.run_dir, "checkpoints/best.ckpt")
    else:
        path = trained("sentiment", *options)
    model, rounded = opened(path)
    for text in [*AWKWARD, "Not bad at all, but the film is really boring, isn't it? " * 3]:
        cleaned = clean(text) if model.info["strip_markup"] else text
        ids = encode(load_tokenizer(model.info["tokenizer"]), [cleaned]).flat.tolist()
        assert run(browser, "return encode(read(arguments[0]))", text) == ids
        read = encode_reviews(model.info, [text])
        found = run(browser, "return [...predict(encode(read(arguments[0])))]", text)
        close(found, *(m.probabilities(m(*read)[0])[0] for m in (rounded, model)))

    text = "The film is not bad, boring."
    run(browser, "$('text').value = arguments[0]; update()", text)
    wait(browser, f"document.body.dataset.shown === {json.dumps(text)}")
    without = encode_reviews(model.info, [text, "The film is bad, boring."])
    p = rounded.probabilities(rounded(*without)[0])
    likeliest = p[0].argmax()
    change = p[:, likeliest].logit().detach()
    found = run(browser, "return moved(words.find(w => w.word === 'not'))")
    assert found == pytest.approx(float(change[0] - change[1]), abs=1e-4)
    run(browser, "words[3].span.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    assert "without" in run(browser, "return $('tip').innerText")
    finish(browser)


TASKS = {
    "copy": ["data.delay=12", "cell.kind=lstm"],
    "selective_copy": [
        "data=selective_copy",
        "data.items=3",
        "data.length=9",
        "cell.kind=gru",
        "cell.num_layers=2",
    ],
    "parity": ["data=parity", "data.length=20", "cell.kind=rnn"],
    "flipflop": ["data=flipflop", "data.length=30", "cell.bidirectional=true"],
    "s5": ["data=s5", "data.length=15"],
}


@torch.no_grad()
@pytest.mark.parametrize("name", TASKS)
def test_sequence_tasks(opened, browser, config, name):
    sizes = ["data.val_size=20", "data.test_size=20", "trainer.max_steps=1", "trainer.log_every_n_steps=1"]
    settings = config("model=copytask", *SMALL, *sizes, *TASKS[name])
    train(settings)
    model, rounded = opened(Path(settings.run_dir, "checkpoints/best.ckpt"))
    for _ in range(20):
        assert run(browser, "renew(); return found.ids.length") == model.task.count_steps(
            model.info["longest"]
        )
        assert run(browser, "return found.truth.length") == len(run(browser, "return found.p"))
    tokens = torch.from_numpy(model.task.draw(np.random.default_rng(0), 1, model.info["longest"]))
    shown = [model.task.tokens[i] for i in tokens[0].tolist()]
    typed = (" " if len(shown[0]) > 1 else "").join(shown)
    if model.task.recall:  # the page adds the marker and the blanks
        typed = typed[: typed.index("?")].rstrip("·" if name == "copy" else "")
    run(browser, "$('typed').value = arguments[0]; update(); draw()", typed)
    truth = model.task.solve(tokens.numpy())[0].tolist()
    assert run(browser, "return found.ids") == tokens[0].tolist()
    assert run(browser, "return found.truth") == [None if right == IGNORED else right for right in truth]
    close(
        run(browser, "return found.p.map(p => [...p])"), *(m(tokens)[0].softmax(-1) for m in (rounded, model))
    )
    if model.task.recall:
        asked = tokens[:, [0, 1, 2, -model.task.recall - 1, *[-1] * model.task.recall]]  # after three steps
        p = rounded(asked)[0].softmax(-1)[range(len(truth)), truth]
        torch.testing.assert_close(
            torch.tensor(run(browser, "return found.recalled[2]")), p, atol=1e-5, rtol=0
        )
    with pytest.raises(ValueError, match="text="):
        model.task.parse("x", 1)
    assert "This model reads" in run(browser, "return parse('x')")
    painted = "const { width, height } = $('picture'), ctx = $('picture').getContext('2d');"
    painted += "return new Set(ctx.getImageData(0, 0, width, height).data).size"
    assert run(browser, painted) > 10
    assert "right" in run(browser, "return $('status').textContent")
    finish(browser)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        ["model.attention=general", "cell.num_layers=2"],
        [
            "model.attention=dot",
            "cell.kind=gru",
            "model.tie_weights=none",
            "data.tokenizer=bpe",
            "data.vocab_size=400",
        ],
        [
            "model.attention=additive",
            "model.input_feeding=true",
            "cell.bidirectional=false",
            "cell.kind=layernorm",
        ],
        ["model.attention=none", "cell.kind=rnn"],
    ],
)
def test_seq2seq(opened, browser, trained, options):
    model, rounded = opened(trained("seq2seq", *options))
    text = "22. November 2026 é"
    source, lengths = encode_sources(model.info, [text])
    assert run(browser, "return [...encode(arguments[0]), EOS]", text) == source[0].tolist()
    target = torch.randint(model.info["vocab_size"], (1, 6))
    given = {"source": source[0].tolist(), "target": target[0].tolist()}
    close(
        run(browser, "return [...predict(arguments[0])]", given),
        *(m(source, lengths, target)[0][0, -1].softmax(-1) for m in (rounded, model)),
    )
    for asked, size in [(text, 1), ("1. 1. 1999", 4), ("5 mai 2024", 4), (text, 4)]:
        run(browser, "$('text').value = arguments[0]; $('beam').value = arguments[1]; update()", asked, size)
        wait(browser, f"document.body.dataset.shown === {json.dumps(f'{asked}|{size}')}")
        found = run(browser, "return found.tokens")
        read = encode_sources(model.info, [asked])
        expected = rounded.search(*read, size, model.config.model.length_penalty)
        assert found == [i for i in expected[0].tolist() if i != model.info["pad"]]
        shown = run(browser, "return $('translation').textContent")
        assert shown == decode_targets(model.info, expected.tolist())[0]
    if model.config.model.attention != "none":
        written = torch.tensor([found[:-1]], dtype=torch.long)
        before = torch.nn.functional.pad(written, (1, 0), value=model.info["bos"])
        weights = rounded(source, lengths, before)[1][0]
        found = run(browser, "return found.shares.map(s => [...s])")
        torch.testing.assert_close(torch.tensor(found), weights, atol=1e-5, rtol=0)
    else:
        assert run(browser, "return $('map').hidden")
    run(browser, "$('text').value = arguments[0]; update()", "2 " * 300)
    wait(browser, "$('status').textContent.includes('trained on at most 100')")
    finish(browser)


def test_tokenizers(opened, browser, trained):
    """In one page, with tokenizers that have learnt from the awkward texts."""
    opened(trained("sentiment"))
    for kind, lowercase in itertools.product(("word", "bpe", "char"), (True, False)):
        trained_here = train_tokenizer(AWKWARD * 3, kind, 600, lowercase)
        run(
            browser,
            """Object.assign(tokenizer, arguments[0]);
            for (const map of [known, ranks, merged]) map.clear();
            tokenizer.vocabulary.forEach((token, id) => known.set(token, id));
            tokenizer.merges.forEach((pair, rank) => ranks.set(pair, rank))""",
            describe_tokenizer(trained_here.to_str()),
        )
        for text in AWKWARD:
            ids = encode(trained_here, [text]).flat.tolist()
            assert run(browser, "return encode(arguments[0])", text) == ids, text
            if kind != "word":
                expected = trained_here.decode(ids, skip_special_tokens=False)
                assert run(browser, "return decode(arguments[0])", ids) == expected, text
    for text in AWKWARD:
        assert run(browser, "return clean(arguments[0])", text) == clean(text)
    other = json.loads(train_tokenizer(AWKWARD, "word", 600, True).to_str())
    other["normalizer"] = {"type": "NFC"}
    with pytest.raises(ValueError, match="this is another one"):
        describe_tokenizer(json.dumps(other))


def test_a_kind_of_cell_that_no_page_has_is_refused(command, trained, tmp_path):
    path = trained("charlm", "cell=fused", "cell.kind=peephole")
    code, _, error = command("export", f"ckpt={path}", "format=html", f"folder={tmp_path}/out")
    assert code == 1 and "format=html has no cell.kind=peephole, only lstm, layernorm, gru, rnn" in error
    assert not (tmp_path / "out").exists()


def test_a_parameter_that_no_page_reads_is_refused(trained):
    model = load_model(str(trained("charlm")))
    model.register_parameter("gain", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="does not know the parameter gain of this model=charlm"):
        build_page(model, {})


def test_a_weight_that_is_no_number_is_refused(trained, tmp_path):
    content = torch.load(trained("charlm"), weights_only=True)
    content["state_dict"]["projection.bias"][0] = torch.inf
    torch.save(content, tmp_path / "large.ckpt")
    with pytest.raises(ValueError, match=r"cannot store projection\.bias, which holds infinity or NaN"):
        export(ExportConfig(ckpt=str(tmp_path / "large.ckpt"), format="html", folder=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
