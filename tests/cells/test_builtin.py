import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lstmlab.cells import build_cell

TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@pytest.mark.parametrize("kind", TORCH)
def test_it_is_torchs_own_module_and_gives_bit_for_bit_its_numbers(kind):
    cell = build_cell("torch", 3, 5, kind=kind, num_layers=2, bidirectional=True)
    assert isinstance(cell, TORCH[kind])
    plain = TORCH[kind](3, 5, 2, bidirectional=True, batch_first=True)
    plain.load_state_dict(cell.state_dict())
    x = torch.randn(2, 4, 3)
    assert torch.equal(cell(x)[0], plain(x)[0])
    lengths = torch.tensor([2, 4])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    unpacked, _ = nn.utils.rnn.pad_packed_sequence(plain(packed)[0], True)
    assert torch.equal(cell(x, None, lengths)[0], unpacked)


@pytest.mark.parametrize("kind", TORCH)
def test_copies_compute_the_same(kind):
    cell = build_cell("torch", 3, 5, kind=kind)
    x = torch.randn(2, 4, 3)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert_close(other(x), cell(x))


def test_dropout_with_one_layer_is_silent_and_without_effect():
    cell = build_cell("torch", 3, 5, dropout=0.5)
    x = torch.randn(2, 4, 3)
    assert torch.equal(cell(x)[0], cell.eval()(x)[0])
