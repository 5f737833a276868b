"""What is done however a run ends: interrupts, a full disk, too little memory, and loggers to finish."""

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.memory import is_oom_error

from lstmlab import distributed
from lstmlab.help import show_as_typed
from lstmlab.loggers import TrackioLogger


@contextmanager
def handling_interrupts(run_dir: Path) -> Iterator[None]:
    """Turn Ctrl-C into SIGTERM, after which Lightning and LastCheckpoint save and stop between two steps; a
    second Ctrl-C stops at once. The exit code is 128 + the number of the signal."""
    code = 128 + signal.SIGTERM
    command = f"python src/train.py {shlex.quote(f'resume={run_dir}')}"

    def interrupt(*_: Any) -> None:
        nonlocal code
        again, code = code == 128 + signal.SIGINT, 128 + signal.SIGINT
        if again or signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            raise SystemExit(code)
        signal.raise_signal(signal.SIGTERM)

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except SIGTERMException:
        print(show_as_typed(f"\nInterrupted. To resume: {command}"))
        raise SystemExit(code) from None
    except OSError as error:
        if not run_dir.exists():
            raise FileNotFoundError(f"{run_dir} was deleted while the run was writing to it") from error
        raise OSError(f"{error}. Once that is fixed, resume the run: {command}") from error
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)


@contextmanager
def explaining_out_of_memory(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_oom_error(error):
            raise MemoryError(f"out of memory; see {run_dir / 'doctor.md'} for what to change") from error
        raise


@contextmanager
def finishing_loggers(loggers: list[Logger]) -> Iterator[None]:
    """Finish the runs of wandb and trackio: the next job of a sweep would otherwise continue them."""
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger | TrackioLogger) and distributed.rank() == 0:
                logger.experiment.finish()
