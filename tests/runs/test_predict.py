import csv
import io
import json
import random
import re
import sys
from typing import Any

import pytest
import torch

import lstmlab
from lstmlab.config import PROJECT
from lstmlab.data.sentiment import encode_reviews
from lstmlab.runs.predict import answer_all
from lstmlab.schema import PredictConfig

TEXTS = ["Not bad, isn't it?", "a", "boring " * 30, "电影", "", 'a "fine" plot,\tall in all']


@pytest.fixture
def sentiment(trained):
    return str(trained("sentiment").parent.parent)


def expected_answers(ckpt: str, texts: list[str]) -> list[float]:
    """p(positive) of each text, read alone."""
    model = lstmlab.load(ckpt).model
    found = []
    for text in texts:
        with torch.no_grad():
            logits, _ = model(*encode_reviews(model.info, [text]))
        found.append(logits.sigmoid().item())
    return found


def test_answers_do_not_depend_on_what_is_read_with_them(sentiment):
    texts = TEXTS * 40
    random.Random(0).shuffle(texts)
    answers = lstmlab.load(sentiment).predict(texts)
    expected = expected_answers(sentiment, texts)
    assert [answer["p(positive)"] for answer in answers] == pytest.approx(expected, abs=1e-6)
    for answer, p in zip(answers, expected, strict=True):
        assert answer["prediction"] == ("positive" if p > 0.5 else "negative")
        assert answer["p(negative)"] + p == pytest.approx(1, abs=1e-6)
    assert lstmlab.load(sentiment).predict([]) == []


def test_translations_and_samples(trained):
    seq2seq = lstmlab.load(str(trained("seq2seq")))
    texts = ["5 May 2001", "", "1 janvier 1999"]
    options = PredictConfig.model_construct(beam_size=2, length_penalty=0.5, attention_map=None)
    alone = ["".join(seq2seq.model.respond(text, options)) if text else "" for text in texts]
    assert seq2seq.translate(texts, beam_size=2, length_penalty=0.5) == alone
    charlm: Any = lstmlab.load(str(trained("charlm")))
    sampled = charlm.sample("line", length=20, seed=3)
    assert sampled == "".join(charlm.model.sample("line", 20, 0.8, None, 3)) and len(sampled) == 20


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_a_file_of_texts(sentiment, command, tmp_path, name):
    """Whatever it is read from, the answers come in order, beside all columns of the input."""
    texts = [text for text in TEXTS if name != "a.txt" or "\n" not in text]
    rows = [{"id": f"00{number}", "text": text} for number, text in enumerate(texts)]
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        if name == "a.txt":
            file.write("\n".join(texts) + "\n")
        elif name == "a.jsonl":
            file.write("\n".join(map(json.dumps, rows)))
        else:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="," if name == "a.csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    expected = expected_answers(sentiment, texts)
    labels = ["positive" if p > 0.5 else "negative" for p in expected]
    for output in ("o.csv", "o.tsv", "o.jsonl", "o.txt"):
        code, out, error = command(
            "predict",
            f"ckpt={sentiment}",
            f"input={tmp_path}/{name}",
            f"output={tmp_path}/{output}",
            "threads=1",
        )
        assert code == 0 and out == f"{tmp_path}/{output}: 6 answers\n", error
        content = (tmp_path / output).read_text(encoding="utf-8")
        if output == "o.txt":
            assert content.splitlines() == labels
            continue
        if output == "o.jsonl":
            found = [json.loads(line) for line in content.splitlines()]
        else:
            found = [*csv.DictReader(io.StringIO(content), delimiter="," if output == "o.csv" else "\t")]
        assert [row["text"] for row in found] == texts and [row["prediction"] for row in found] == labels
        assert [float(row["p(positive)"]) for row in found] == pytest.approx(expected, abs=1e-6)
        assert name == "a.txt" or [row["id"] for row in found] == [row["id"] for row in rows]


def test_the_column_of_the_texts(sentiment, trained, command, tmp_path):
    (tmp_path / "a.csv").write_text("review,other\ngood,bad\n")
    (tmp_path / "one.csv").write_text("anything\ngood\n")
    files = f"output={tmp_path}/o.jsonl", f"ckpt={sentiment}"
    code, _, error = command("predict", *files, f"input={tmp_path}/a.csv")
    assert code == 1 and error.endswith(
        "a.csv has the columns review, other; name one of them with column=\n"
    )
    for name, column in (("a.csv", "column=other"), ("one.csv", "column=null")):
        assert command("predict", *files, f"input={tmp_path}/{name}", column)[0] == 0
    [row] = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert row["anything"] == "good"
    code, _, error = command("predict", *files, f"input={tmp_path}/a.csv", "column=third")
    assert code == 1 and "has the columns review, other; name one" in error
    code, _, _ = command("predict", f"ckpt={trained('seq2seq')}", f"input={tmp_path}/one.csv", files[0])
    assert code == 0 and "translation" in (tmp_path / "o.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a text, text=TEXT, or a file of texts, input=FILE output=FILE"),
        (["text=a", "input=a.csv"], "give a text, text=TEXT, or a file of texts"),
        (["input=a.csv"], "input=FILE and output=FILE go together"),
        (["text=a", "output=a.csv"], "input=FILE and output=FILE go together"),
        (["input=no.csv", "output=o.csv"], "input=no.csv: no such file"),
        (["input=a.csv", "output=o.xlsx"], "output=o.xlsx must end in .csv, .tsv, .jsonl, .txt"),
        (["input=a.csv", "output=a.csv"], "output=a.csv is the file of input=; name another"),
        (["input=a.doc", "output=o.csv"], "input=a.doc must end in .txt, .csv, .tsv"),
        (
            ["input=a.jsonl", "output=o.csv"],
            "row 2 of input=a.jsonl has 5 for its text, which must be a text",
        ),
        (["input=latin1.csv", "output=o.csv"], "line 2 of latin1.csv is not UTF-8 text"),
        (["text=a", "threads=0"], "threads=0: input should be greater than 0"),
        (["text=a", "beam_size=3"], "beam_size= has no effect on model=sentiment"),
    ],
)
def test_wrong_files(sentiment, command, tmp_path, arguments, said):
    for name in ("a.csv", "a.doc"):
        (tmp_path / name).write_text("text\ngood\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    (tmp_path / "latin1.csv").write_bytes(b"text\n\xe9\n")
    code, _, error = command("predict", f"ckpt={sentiment}", *arguments)
    assert code == 1 and said in error and error.count("\n") == 1
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("task", ["sentiment", "seq2seq"])
def test_each_line_of_standard_input_is_answered(trained, command, monkeypatch, task):
    ckpt, lines = str(trained(task)), ["5 May 2001", "", "a fine film"]
    alone = [command("predict", f"ckpt={ckpt}", f"text={line}")[1] if line else "\n" for line in lines]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, _ = command("predict", f"ckpt={ckpt}", "text=-")
    assert code == 0 and out == "".join(alone)


def test_the_example_of_the_readme_runs(sentiment, trained, capsys):
    document = (PROJECT / "src/lstmlab/models/README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    runs = {"SENTIMENT_RUN": sentiment, "SEQ2SEQ_RUN": trained("seq2seq"), "CHARLM_RUN": trained("charlm")}
    for name, run in runs.items():
        example = example.replace(name, str(run)).replace("def ", "line")
    exec(example, {})
    printed = capsys.readouterr().out.splitlines()
    assert re.match(r"(positive|negative) 0\.\d+$", printed[-3])


def test_progress_is_told(sentiment):
    done: list[int] = []
    answer_all(lstmlab.load(sentiment).model, ["a"] * 130, PredictConfig.model_construct(), done.append)
    assert done == [64, 128, 130]


def test_a_task_without_answers_says_so(trained):
    with pytest.raises(ValueError, match="model=copytask has no answer to a list of texts"):
        lstmlab.load(str(trained("copytask"))).predict(["01"])
