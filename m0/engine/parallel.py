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

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that torchrun has started, if it has; each GPU process takes the GPU of its number.

    Gives whether this is the first process, the one that talks and writes; alone, it is.
    """
    if dist.is_initialized() or not all(name in os.environ for name in TORCHRUN):
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


MOST_THREADS = 1024
"""More would exhaust the system."""


def use_cores(threads: int | None = None) -> None:
    """Have PyTorch compute with so many threads; None: as many as OMP_NUM_THREADS says, or else as it would, but no more than
    `usable_cores`, for threads beyond those wait for each other.

    Raises InputError where `threads` is below 1 or above MOST_THREADS.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads}, but must be at least 1 and at most {MOST_THREADS}.")
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


def agreed(value: Item) -> list[Item]:
    """What each process has to say, in their order; every process must call this."""
    gathered: list[Item | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return [item for item in gathered if item is not None]


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
    parts = agreed((found is not None, list(zip(own, found, strict=True)) if found is not None else []))
    if error is not None:
        raise error
    if failed := [number for number, (done, _) in enumerate(parts) if not done]:
        raise M0Error(f"process {failed[0]} could not do its part.")
    return {item: result for _, part in parts for item, result in part}
