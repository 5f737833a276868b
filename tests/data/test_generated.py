from typing import Any

import pytest
import torch

from lstmlab.data.generated import GeneratedDataset
from lstmlab.data.sequence_tasks import IGNORED, TASKS, Copy

OPTIONS = {"copy": {"symbols": 3, "length": 4}, "selective_copy": {"symbols": 3, "items": 4}}


def test_a_sequence_of_the_copy_task_is_symbols_blanks_marker_blanks():
    data = GeneratedDataset(Copy(symbols=3, length=5))
    tokens, targets = data[(0,), 4, 7]
    assert tokens.shape == (4, 5 + 7 + 1 + 5)
    assert torch.equal(tokens[:, :5], targets)
    assert tokens[:, 5:12].eq(3).all() and tokens[:, 12].eq(4).all() and tokens[:, 13:].eq(3).all()
    many = data[(0,), 3000, 0].targets
    assert many.unique().tolist() == [0, 1, 2]
    assert (many.flatten().bincount() / many.numel() - 1 / 3).abs().max() < 0.02


def test_a_range_of_sizes_has_both_its_ends():
    data = GeneratedDataset(Copy(symbols=2, length=1))
    widths = [data[(k,), 1, (2, 4)].tokens.shape[1] for k in range(100)]
    assert {width - 3 for width in widths} == {2, 3, 4}
    assert data[(0,), 1, (3, 3)].tokens.shape[1] == 6


def answer_by_hand(name: str, tokens: list[str]) -> list[Any]:
    """The answers at the last steps, by a plain loop over the names of the tokens of one row."""
    if name in ("copy", "selective_copy"):
        return [token for token in tokens if token.isdigit()]
    found: list[Any] = []
    ones, bit, places = 0, "", "12345"
    for token in tokens:
        if name == "parity":
            ones += token == "1"
            found.append("01"[ones % 2])
        elif name == "flipflop":
            bit = token[1] if token.startswith("w") else bit
            found.append(bit if token == "r" else None)
        else:
            places = places[1] + places[0] + places[2:] if token == "s" else places[1:] + places[0]
            found.append(places)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_the_answers_are_those_of_a_plain_loop(name):
    task = TASKS[name](**OPTIONS.get(name, {}))
    tokens, targets = GeneratedDataset(task)[(3, 1), 20, 30]
    assert tokens.shape[1] == task.count_steps(30) and targets.shape == (20, task.recall or 30)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        expected = answer_by_hand(name, [task.tokens[i] for i in row])
        assert [None if i == IGNORED else task.answers[i] for i in answers] == expected
        spoken = " ".join(task.tokens[i] for i in row[: len(row) - (task.recall or -1) - 1])
        if name == "copy":
            spoken = " ".join(expected)
        assert task.parse(spoken, 30).tolist() == [row]
    assert all(len(f) == tokens.numel() for f in task.features(tokens.numpy()).values())


def test_the_places_of_selective_copy_are_any():
    tokens, _ = GeneratedDataset(TASKS["selective_copy"](2, 3))[(0,), 4000, 6]
    places = (tokens[:, :6] < 2).float().mean(0)
    assert (places - 0.5).abs().max() < 0.03
    rows, _ = GeneratedDataset(TASKS["selective_copy"](2, 3))[(0,), 50, 3]
    assert (rows[:, :3] < 2).all()


def test_s5_reaches_all_orders():
    _, targets = GeneratedDataset(TASKS["s5"]())[(0,), 100, 100]
    assert len(targets.unique()) == 120


def test_a_flip_flop_writes_first_and_reads_last_and_seldom_else():
    tokens, targets = GeneratedDataset(TASKS["flipflop"]())[(0,), 500, 40]
    assert (tokens[:, 0] < 2).all() and (tokens[:, -1] == 4).all()
    assert (targets != IGNORED).float().mean() == pytest.approx(0.1 * 38 / 40 + 1 / 40, abs=0.01)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("parity", "0120", "text= holds '2', but this model reads 0, 1"),
        ("parity", " ", "text= is empty"),
        ("flipflop", "i0 w1 r", "must begin with w0 or w1"),
        ("flipflop", "w0r", "text= holds 'w0r', but this model reads w0, w1, i0, i1, r"),
        ("s5", "srt", "text= holds 't', but this model reads s, r"),
        ("selective_copy", "0·1·2", "text= holds 3 symbols, but this model remembers 4"),
        ("selective_copy", "0·1?2", "text= holds '\\?'"),
    ],
)
def test_what_cannot_be_read_is_refused(name, text, said):
    with pytest.raises(ValueError, match=said):
        TASKS[name](**OPTIONS.get(name, {})).parse(text, 10)


def batches(loader):
    return [(batch.tokens.shape[1], batch.targets.tolist()) for batch in loader]


def test_training_batches_never_come_again_and_resume(module):
    def new(**changes):
        return module("copy", batch_size=4, train_batches=6, delay=[0, 30], **changes).train_dataloader()

    loader = new()
    two_epochs = batches(loader) + batches(loader)
    assert len({str(batch) for batch in two_epochs}) == 12
    assert len({width for width, _ in two_epochs}) > 5
    again = new(num_workers=2)
    assert batches(again) == two_epochs[:6]
    assert batches(new(seed=1)) != two_epochs[:6]

    started = new()
    iterator = iter(started)
    for _ in range(4):
        next(iterator)
    resumed = new()
    resumed.load_state_dict(started.state_dict())
    assert batches(resumed) + batches(resumed) == two_epochs[4:]


def test_validation_and_test_never_change(module):
    one, other = (module("copy", seed=seed, val_size=10, test_size=11, batch_size=4) for seed in (0, 1))
    assert batches(one.val_dataloader()) == batches(other.val_dataloader())
    assert batches(one.test_dataloader()) == batches(other.test_dataloader())
    assert [len(targets) for _, targets in batches(one.test_dataloader())] == [4, 4, 3]
    assert batches(one.val_dataloader())[0] != batches(one.test_dataloader())[0]


def test_no_training_batch_is_one_of_validation_or_test(module):
    """Whatever the seed."""
    held_out = module("copy", batch_size=4, val_size=20, test_size=20)
    known = batches(held_out.val_dataloader()) + batches(held_out.test_dataloader())
    for seed in range(4):
        trained = module("copy", seed=seed, batch_size=4, train_batches=5).train_dataloader()
        assert not [batch for batch in batches(trained) + batches(trained) if batch in known]


def test_test_delays(module):
    built = module("copy", delay=[5, 9], test_delay=[3, 20], test_size=6, batch_size=4, length=2)
    assert [width for width, _ in batches(built.test_dataloader())] == [8, 8, 25, 25]
    assert built.info == {
        "task": "copy",
        "options": {"symbols": 2, "length": 2},
        "longest": 9,
        "tested": [3, 20],
    }
    assert module("copy", delay=5, test_delay=0).info["tested"] == [0]
    assert module("copy", delay=[5, 9]).info["tested"] == [[5, 9]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delay": -1}, "data.delay=-1"),
        ({"delay": [5, 3]}, r"data.delay=\[5, 3\]"),
        ({"delay": [1, 2, 3]}, r"data.delay=\[1, 2, 3\]"),
        ({"delay": "long"}, "data.delay=long"),
        ({"test_delay": []}, r"data.test_delay=\[\]"),
        ({"test_delay": [3, -3]}, r"data.test_delay=\[3, -3\]"),
        (
            {"symbols": 3, "info": {"options": {"symbols": 2, "length": 10}}},
            "data.symbols=3, but the model was trained with {'symbols': 2, 'length': 10}",
        ),
    ],
)
def test_refusals(module, changes, said):
    with pytest.raises(ValueError, match=said):
        module("copy", **changes)
