import numpy as np
import torch

from lstmlab.data.rows import Rows, choose_rows


def test_parts_of_rows():
    ids = torch.arange(12).view(3, 4)
    rows = Rows(ids, torch.tensor([2, 3, 4]), torch.tensor([0.0, 1.0, 0.0]))
    head = rows.head(5)
    assert ids[:2, :3].equal(head.ids) and head.lengths.tolist() == [2, 3]
    assert head.labels is not None and head.labels.tolist() == [0, 1]
    assert rows.ids[rows.mask].tolist() == [0, 1, 4, 5, 6, 8, 9, 10, 11]
    long = Rows.dense(ids.view(1, 12))
    assert long.lengths.tolist() == [12] and bool(long.mask.all())
    assert long.head(5).ids.tolist() == [[0, 1, 2, 3, 4]]
    assert long.side_by_side(5).ids.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert long.side_by_side(5).lengths.tolist() == [2] * 5


def test_each_row_ends_in_a_line_break():
    rows = Rows(torch.zeros(3, 3), torch.tensor([2, 1, 3]))
    assert rows.end_lines([*"abcdef"]) == ["a", "b\n", "c\n", "d", "e", "f\n"]


def test_rows_are_chosen_in_an_order_that_never_changes():
    """As many as it takes to hold the steps asked for, or all."""
    lengths = np.array([5, 1, 7, 2, 3])
    order = choose_rows(lengths, 100)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4] and order.tolist() != [0, 1, 2, 3, 4]
    for count in range(1, 19):
        chosen = choose_rows(lengths, count)
        assert chosen.tolist() == order[: len(chosen)].tolist()
        assert lengths[chosen].sum() >= count > lengths[chosen[:-1]].sum()
