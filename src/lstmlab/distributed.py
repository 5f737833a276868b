"""Several processes that train one model: rank, world size, and what they exchange."""

import os
import sys
import warnings
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Batch = TypeVar("Batch", bound=tuple)


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def take_own_rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows rank, rank + world_size, … of each member of a batch."""
    return type(batch)(*(member[rank::world_size] for member in batch))


def own_rows_collate() -> Any:
    """A `collate_fn` that keeps this process's rows of a whole batch; None if there is one process."""
    return partial(take_own_rows, rank=rank(), world_size=world_size()) if world_size() > 1 else None


def gather_rows(member: Tensor, dim: int) -> Tensor:
    """A copy with the rows of all processes along `dim`: the inverse of `take_own_rows`."""
    if world_size() == 1:
        return member.clone()
    parts = [torch.empty_like(member, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, member.contiguous())
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def gather_objects(value: Any) -> list[Any]:
    """The plain `value` of every process, by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(*flags: bool) -> list[bool]:
    """Each flag, true if it is true in any process."""
    if world_size() == 1:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool().tolist()


def scale_to_global_mean(loss: Tensor, count: int | Tensor) -> Tensor:
    """Scale a mean over this process's `count` items so that the mean over processes is that of all items."""
    if world_size() == 1:
        return loss
    own = torch.as_tensor(count, dtype=loss.dtype, device=loss.device)
    total = own.clone()
    dist.all_reduce(total)
    return loss * (own * world_size() / total)


def join_process_group(accelerator: str) -> None:
    """Join the processes that the environment describes, as torchrun does. Only the first one prints."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  stays open until the process ends
        warnings.simplefilter("ignore")


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
