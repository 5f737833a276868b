"""Files that are whole at any moment: written beside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lstmlab import checkpoint


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is complete and on the disk.

    Whoever is killed in between, or finds the disk full, leaves what stood there before.
    """
    beside = Path(f"{path}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class CheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: with `replacing`, and with `checkpoint.load`.

    Lightning's own writes to the system's temporary folder: on another disk, its renaming is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(exist_ok=True)  # but not the run's folder: who deletes that wants no other
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's own, if the disk is full
            cause = error if isinstance(error, OSError) else error.__context__
            reason = getattr(cause, "strerror", None) or error
            raise OSError(f"{path} could not be written: {reason}") from error

    def load_checkpoint(self, path, map_location=None, weights_only: bool | None = None) -> dict[str, Any]:
        return checkpoint.load(str(path))
