import numpy as np
import pytest
import torch

from lstmlab.data.batching import (
    CHUNK,
    Ragged,
    TrainingLoader,
    bucketed,
    cut,
)


def ragged(sequences):
    return Ragged(np.array([i for s in sequences for i in s], np.int32), np.cumsum([0, *map(len, sequences)]))


SEQUENCES = [[1], [2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12, 13, 14, 15]]


def test_pad():
    tokens, lengths = ragged(SEQUENCES).pad(np.array([2, 0, 1]))
    assert tokens.tolist() == [[5, 6, 0], [1, 0, 0], [2, 3, 4]]
    assert lengths.tolist() == [2, 1, 3]
    assert tokens.dtype == lengths.dtype == torch.int64


def test_pad_keeps_a_long_sequence_s_first_quarter_and_its_end():
    tokens, lengths = ragged(SEQUENCES).pad(np.array([3, 1]), max_length=8)
    assert tokens.tolist() == [[7, 8, 10, 11, 12, 13, 14, 15], [2, 3, 4, 0, 0, 0, 0, 0]]
    assert lengths.tolist() == [8, 3]
    tokens, lengths = ragged(SEQUENCES).pad(np.array([3]), max_length=1)
    assert tokens.tolist() == [[15]] and lengths.tolist() == [1]


def test_take():
    taken = ragged(SEQUENCES).take(np.array([2, 0, 2]))
    assert taken.flat.tolist() == [5, 6, 1, 5, 6] and taken.lengths.tolist() == [2, 1, 2]


def test_bucketed_takes_each_row_once_and_pads_little():
    lengths = np.random.default_rng(0).integers(1, 500, 10_007)
    batches = bucketed(lengths, 32, seed=0, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(10_007))
    assert len(batches) == -(-10_007 // 32) and max(map(len, batches)) == 32
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert lengths.sum() / padded > 1 - 2 / CHUNK


def test_bucketed_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 50, 300)

    def order(seed, epoch):
        return np.concatenate(bucketed(lengths, 8, seed, epoch)).tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4


class Squares(torch.utils.data.Dataset):
    def __getitem__(self, item):
        return torch.tensor([item, item**2])


def plan(epoch):
    return [100 * epoch + i for i in range(7)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [3, 7, 10])
def test_a_loader_goes_on_exactly(workers, done):
    def loader():
        return TrainingLoader(Squares(), plan, 7, workers)

    first = loader()
    steps = (int(batch[0]) for _ in range(3) for batch in first)
    assert [next(steps) for _ in range(done)] == [*plan(0), *plan(1)][:done]
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = [int(batch[0]) for _ in range(3) for batch in second]
    assert rest[:7] == [*plan(0), *plan(1), *plan(2)][done : done + 7]


def test_a_pass_that_is_broken_off_is_over():
    loader = TrainingLoader(Squares(), plan, 7, num_workers=0)
    assert [int(next(iter(loader))[0]) for _ in range(3)] == [0, 100, 200]


@pytest.mark.parametrize(("rows", "sizes"), [(17, [1, 16]), (32, [16, 16]), (3, [3])])
def test_every_row_is_in_one_batch(module, rows, sizes):
    """Also where the last one is short, in training and in the test."""
    built = module("reviews", train_size=rows, val_size=2, test_size=rows, batch_size=16)
    for loader in (built.train_dataloader(), built.test_dataloader()):
        batches = list(loader)
        assert sorted(len(batch.labels) for batch in batches) == sizes and len(loader) == len(sizes)


def test_the_test_set_is_drawn_before_the_validation_set(module):
    """More of the one leaves the other as it is."""
    few, many = (module("reviews", train_size=10, val_size=n, test_size=20).read() for n in (10, 20))
    assert few["test"] == many["test"] and few["val"] == tuple(column[:10] for column in many["val"])


def test_cut():
    pairs = {"a": 1, "b": 2, "c": 3, "d": 4}
    assert cut(pairs, {"test": 1, "train": 2}) == {"test": (["a"], [1]), "train": (["b", "c"], [2, 3])}
