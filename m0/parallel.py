"""Many processes: joining those that torchrun has started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist


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
