import pytest
import torch

from lstmlab.data.copy_task import copy_batch


def test_a_sequence_is_symbols_blanks_marker_blanks():
    tokens, targets = copy_batch((0,), size=4, symbols=3, length=5, delay=7)
    assert tokens.shape == (4, 5 + 7 + 1 + 5)
    assert torch.equal(tokens[:, :5], targets)
    assert tokens[:, 5:12].eq(3).all() and tokens[:, 12].eq(4).all() and tokens[:, 13:].eq(3).all()
    many = copy_batch((0,), 3000, 3, 5, 0).targets
    assert many.unique().tolist() == [0, 1, 2]
    assert (many.flatten().bincount() / many.numel() - 1 / 3).abs().max() < 0.02


def test_a_range_of_delays_has_both_its_ends():
    widths = [copy_batch((k,), 1, 2, 1, (2, 4)).tokens.shape[1] for k in range(100)]
    assert {width - 3 for width in widths} == {2, 3, 4}
    assert copy_batch((0,), 1, 2, 1, (3, 3)).tokens.shape[1] == 6


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
        "symbols": 2,
        "length": 2,
        "num_tokens": 4,
        "max_delay": 9,
        "test_delays": [3, 20],
    }
    assert module("copy", delay=5, test_delay=0).info["test_delays"] == [0]
    assert module("copy", delay=[5, 9]).info["test_delays"] == [[5, 9]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delay": -1}, "data.delay=-1"),
        ({"delay": [5, 3]}, r"data.delay=\[5, 3\]"),
        ({"delay": [1, 2, 3]}, r"data.delay=\[1, 2, 3\]"),
        ({"delay": "long"}, "data.delay=long"),
        ({"test_delay": []}, r"data.test_delay=\[\]"),
        ({"test_delay": [3, -3]}, r"data.test_delay=\[3, -3\]"),
        ({"symbols": 3, "info": {"symbols": 2}}, "data.symbols=3, but the model knows 2"),
    ],
)
def test_refusals(module, changes, said):
    with pytest.raises(ValueError, match=said):
        module("copy", **changes)
