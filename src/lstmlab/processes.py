"""Several processes that train one model: how they start, find each other, share rows, and end together."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

Batch = TypeVar("Batch", bound=tuple)
GRACE = 20  # seconds that the others get to end, once one has failed
SIGTERM_CODE = 128 + signal.SIGTERM


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows rank, rank + world_size … of each member of a batch."""
    return type(batch)(*(member[rank::world_size] for member in batch))


def sharing() -> Any:
    """The `collate_fn` that leaves of each whole batch this process's rows; None if there is one process."""
    return partial(own_rows, rank=rank(), world_size=world_size()) if world_size() > 1 else None


def all_rows(member: Tensor, dim: int) -> Tensor:
    """A copy with the rows of every process along `dim`: the inverse of `own_rows`."""
    if world_size() == 1:
        return member.clone()
    parts = [torch.empty_like(member, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, member.contiguous())
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def everyone(value: Any) -> list[Any]:
    """Every process's plain `value`, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def anywhere(*flags: bool) -> list[bool]:
    """Each flag, true if it is so in any process."""
    if world_size() == 1:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool().tolist()


def share_of_mean(loss: Tensor, count: int | Tensor) -> Tensor:
    """This process's mean over `count` items, scaled: the mean over processes is then that of all items."""
    if world_size() == 1:
        return loss
    own = torch.as_tensor(count, dtype=loss.dtype, device=loss.device)
    total = own.clone()
    dist.all_reduce(total)
    return loss * (own * world_size() / total)


def join(accelerator: str) -> None:
    """Become one of the processes that the environment describes (as torchrun does); only the first talks."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
        warnings.simplefilter("ignore")


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def work(local_rank: int, config: dict[str, Any], port: int, results: Any) -> None:
    """The body of a process that `launch` started."""
    os.setsid()  # the terminal's Ctrl-C is for the launcher, who passes it on
    launcher = multiprocessing.parent_process()
    if launcher is None or not launcher.is_alive():  # from now on, its end is SIGINT here
        os._exit(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "lstmlab"}
    os.environ |= {"RANK": str(local_rank), "LOCAL_RANK": str(local_rank)}
    os.environ |= {"WORLD_SIZE": str(config["trainer"]["devices"])}

    from lstmlab.config import USER_ERRORS
    from lstmlab.runs import train

    try:
        metrics = train(config)
    except USER_ERRORS as error:
        results.put((type(error), str(error)))
        os._exit(1)  # at once: leaving the group would wait for the others
    if local_rank == 0:
        results.put((None, metrics))
    dist.barrier()
    dist.destroy_process_group()


def launch(config: dict[str, Any]) -> dict[str, float]:
    """`train(config)` in `trainer.devices` processes of this machine; its metrics.

    Raises what a process raised, and ChildProcessError, naming it, if one was killed: the others then end
    too. SIGTERM and Ctrl-C are passed on, and end in SystemExit as they do in a single process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    count = config["trainer"]["devices"]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    context = spawn(work, (config, port, results), nprocs=count, join=False)
    assert context is not None
    code = None

    def stop(number: int, _: Any) -> None:
        nonlocal code
        again, code = code is not None, 128 + number
        for process in context.processes:
            if process.is_alive():
                process.kill() if again else process.terminate()

    main_thread = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)} if main_thread else {}
    try:
        while not context.join(grace_period=GRACE):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if code is not None:
            raise SystemExit(code) from None
        if not results.empty():
            kind, value = results.get()
            if kind is not None:
                raise kind(value) from None
        if isinstance(error, ProcessRaisedException):
            raise
        if error.exit_code == SIGTERM_CODE:
            raise SystemExit(SIGTERM_CODE) from None
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with {error.exit_code}"
        raise ChildProcessError(
            f"process {error.error_index} of {count} (pid {error.error_pid}) {how}, so the run ended; "
            f"to go on: python src/train.py resume={config['run_dir']}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return results.get()[1]
