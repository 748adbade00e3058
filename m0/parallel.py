"""Many processes: joining those that torchrun has started, sharing work, and one model's layers over several of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from m0.errors import M0Error

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that torchrun has started, if it has; each GPU process takes the GPU of its number.

    Gives whether this is the first process, the one that talks and writes; alone, it is.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield not dist.is_initialized() or dist.get_rank() == 0
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def shared_out(groups: Sequence[Sequence[Item]], work: Callable[[list[Item]], Sequence[Result]]) -> dict[Item, Result]:
    """Do a part of some work in each process; all get all results. Every process must call this with the same groups.

    Args:
        groups: items that should stay in one process, such as the queries of one document, dearest first.
        work: gives a result for each of the items it is handed.

    Raises what a process raised, in that process, and M0Error in the others.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    # There and back again, so that nobody has all the dear ones: 0 1 2 2 1 0 0 1 2 ...
    turns = [*range(world), *reversed(range(world))]
    own = [item for number, group in enumerate(groups) if turns[number % len(turns)] == rank for item in group]
    error: BaseException | None = None
    found: list[Result] | None = None
    try:
        found = list(work(own))
    except Exception as raised:
        error = raised
    gathered: list[list[tuple[Item, Result]] | None] = [None] * world
    dist.all_gather_object(gathered, None if found is None else list(zip(own, found, strict=True)))
    if error is not None:
        raise error
    if failed := [number for number, part in enumerate(gathered) if part is None]:
        raise M0Error(f"process {failed[0]} could not do its part.")
    return {item: result for part in gathered if part is not None for item, result in part}
