"""Files that are whole at any moment: written beside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once it is complete and on the disk.

    If the process is killed or the disk is full, `path` stays as it was. Several processes may write it.
    """
    beside = Path(f"{path}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
