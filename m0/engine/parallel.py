"""Many processes: joining those that torchrun has started, sharing work, and one model's layers over several of them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from m0.errors import InputError, M0Error

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for its processes."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that torchrun has started, if it has; each GPU process takes the GPU of its number.

    Gives whether this is the first process, the one that talks and writes; alone, it is.
    """
    if dist.is_initialized() or not all(name in os.environ for name in TORCHRUN_VARIABLES):
        yield not dist.is_initialized() or dist.get_rank() == 0
        return
    gpu = torch.cuda.is_available()
    if gpu:
        number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= count:
            raise InputError(
                f"process {number + 1} of this machine finds {count} GPUs; start as many processes as there are GPUs."
            )
        torch.cuda.set_device(number)
    # Whoever is ready first waits for the others, be it hours; torchrun ends those that wait for one that has died.
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(days=2))
    try:
        yield dist.get_rank() == 0
        dist.barrier()  # nobody ends while another still writes
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


MAX_THREADS = 1024
"""More would exhaust the system."""


def use_cores(threads: int | None = None) -> None:
    """Have PyTorch compute with so many threads; None: as many as OMP_NUM_THREADS says, or else as it would, but no more than
    `usable_cores`, for threads beyond those wait for each other.

    Raises InputError where `threads` is below 1 or above MOST_THREADS.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads is {threads}, but must be at least 1 and at most {MAX_THREADS}.")
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), usable_cores())
    if threads is not None:
        torch.set_num_threads(threads)


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use at a time: those it is bound to, and a container's limit of processor time, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroups of version 2, and of version 1
        try:
            quota, period = " ".join((cgroups / name).read_text(encoding="ascii") for name in files).split()
            if int(quota) > 0 and int(period) > 0:
                cores = min(cores, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return max(1, cores)


def is_split(model: nn.Module) -> bool:
    """Whether weights are DTensors, of which each process holds a part."""
    return any(hasattr(parameter, "to_local") for parameter in model.parameters())


def gather_objects(value: Item) -> list[Item]:
    """Each process's value, in the order of ranks (torch.distributed.all_gather_object); every process must call this."""
    gathered: list[Item | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return [item for item in gathered if item is not None]


def distribute_work(groups: Sequence[Sequence[Item]], work: Callable[[list[Item]], Sequence[Result]]) -> dict[Item, Result]:
    """Each process works on some of the groups; all get all results. Every process must call this with the same groups.

    Args:
        groups: items that should stay in one process, such as the queries of one document, most expensive first.
        work: gives a result for each item of a list.

    Raises what a process raised, in that process, and M0Error in the others.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    # There and back again, so that no process has all the expensive ones: 0 1 2 2 1 0 0 1 2 ...
    rank_order = [*range(world), *reversed(range(world))]
    own_items = [item for number, group in enumerate(groups) if rank_order[number % len(rank_order)] == rank for item in group]
    error: BaseException | None = None
    own_results: list[Result] | None = None
    try:
        own_results = list(work(own_items))
    except Exception as raised:
        error = raised
    gathered = gather_objects(
        (own_results is not None, list(zip(own_items, own_results, strict=True)) if own_results is not None else [])
    )
    if error is not None:
        raise error
    if failed := [number for number, (done, _) in enumerate(gathered) if not done]:
        raise M0Error(f"process {failed[0]} could not do its part.")
    return {item: result for _, part in gathered for item, result in part}
