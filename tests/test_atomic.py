import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lstmlab.atomic import replace_file
from lstmlab.checkpoint import CheckpointIO


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "checkpoints/last.ckpt"
    CheckpointIO().save_checkpoint({"weights": torch.zeros(10)}, path)
    for size in (0, 1000, 100_000):
        with (
            limit_file_size(size),
            pytest.raises(OSError, match=r"last.ckpt could not be written: File too large"),
        ):
            CheckpointIO().save_checkpoint({"weights": torch.ones(100_000)}, path)
        assert torch.load(path, weights_only=True)["weights"].sum() == 0
        assert list(path.parent.iterdir()) == [path]


def test_only_the_checkpoints_folder_is_created(tmp_path):
    with pytest.raises(OSError, match="No such file or directory"):
        CheckpointIO().save_checkpoint({}, tmp_path / "deleted/checkpoints/last.ckpt")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not be written: File exists"):
        CheckpointIO().save_checkpoint({}, tmp_path / "file/last.ckpt")


def test_a_file_is_replaced_once_it_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    with replace_file(path) as file:
        file.write(b"whole")
        assert path.read_text() == "before"
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
