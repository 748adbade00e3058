"""Weights that lie in a mapped file need not stay in memory while others are used.

On Linux the pages of a mapped file can be given back to the system, which keeps them in its cache for as long as it likes and hands
them out again when they are next read. Tower and decoder take turns, so the memory of a process need hold only the larger one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PAGEMAP = Path("/proc/self/pagemap")
"""Of each page of this process eight bytes, among them these two bits (Linux's documentation, admin-guide/mm/pagemap)."""
PRESENT, FILE_BACKED = np.uint64(1 << 63), np.uint64(1 << 61)
MADV_DONTNEED = 4
"""The advice to `madvise`, which mmap has for whole mappings of its own only."""


def release_pages(weights: Iterable[Tensor]) -> int:
    """Give back the memory of those weights, or parts of them, that are as a mapped file has them; the number of bytes asked for.

    More may go: where the system keeps a file in huge pages of 2 MiB, all of such a page goes with the first part of it.
    What was changed after it was mapped is a page of its own, no longer of the file, and stays. So does everything where the system
    does not say which pages these are. Nothing is lost, and values do not change.
    """
    released_bytes, madvise = 0, getattr(ctypes.CDLL(None), "madvise", None) if os.name == "posix" else None
    if madvise is None:
        return 0
    try:
        with PAGEMAP.open("rb", buffering=0) as table:
            for weight in weights:
                if type(weight.data) is not Tensor or weight.device.type != "cpu" or not weight.is_contiguous():
                    continue
                first, end = -(-weight.data_ptr() // PAGESIZE), (weight.data_ptr() + weight.nbytes) // PAGESIZE
                if first >= end:
                    continue
                table.seek(8 * first)
                for start, stop in _clean_page_runs(np.frombuffer(table.read(8 * (end - first)), dtype=np.uint64)):
                    place, size = (first + start) * PAGESIZE, (stop - start) * PAGESIZE
                    if madvise(ctypes.c_void_p(place), ctypes.c_size_t(size), MADV_DONTNEED) == 0:
                        released_bytes += size
    except OSError:
        pass  # no such table, or not for us
    return released_bytes


def _clean_page_runs(entries: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring pages that are in memory and as their file has them: the first one's number, and that after the last."""
    both = PRESENT | FILE_BACKED
    clean = np.concatenate([[False], (entries & both) == both, [False]])
    bounds = np.flatnonzero(clean[1:] != clean[:-1]).tolist()
    return zip(bounds[::2], bounds[1::2], strict=True)
