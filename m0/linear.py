"""nn.Linear, but on a CPU whose float32 kernels are the faster ones it multiplies bfloat16 by these.

Some processors have instructions for bfloat16 that are slower than those for float32. Products of bfloat16 numbers are exact in
float32, and both kernels sum in float32 and round once, so only the order of the sum, and with it a last bit, may differ. Weights
stay in bfloat16; a few rows of them at a time are widened, which stay in the processor's cache.

Attention (`m0.attention`) does the same with queries, keys and values. There PyTorch's bfloat16 kernel also rounds the pattern to
bfloat16 before it multiplies, which float32 leaves out: the more exact of two ways.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_ROWS = 128
"""With fewer tokens, widening weights costs more than it saves."""
WIDENED = 3 * 2**20
"""Numbers of the weight that are widened at a time, about: 12 MiB."""
CLEARLY = 0.8
"""Of bfloat16's time; what is faster by less is not worth another last bit."""


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        # Not where x is part of something spread over devices.
        if type(x) is Tensor and self.weight.dtype == x.dtype and widening_pays(x, x.numel() // self.in_features):
            return by_float32(x, self.weight, self.bias)
        return super().forward(x)


def widening_pays(x: Tensor, rows: int) -> bool:
    """Whether numbers like x are multiplied faster in float32 here, `rows` tokens at a time."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and rows >= MIN_ROWS
        and float32_is_faster()
    )


def by_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b of bfloat16 numbers, computed in float32, in bfloat16. x: (..., in); weight: (out, in)."""
    wide = x.float()
    result = x.new_empty(*x.shape[:-1], len(weight))
    step = max(64, WIDENED // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        result[..., rows] = F.linear(wide, weight[rows].float(), None if bias is None else bias[rows].float())
    return result


def float32_is_faster() -> bool:
    """Whether `by_float32` clearly is, on this processor: measured once a process, in about a tenth of a second."""
    with _MEASURING:  # threads that come together must not measure beside each other, and then compute in different ways
        return _float32_is_faster()


_MEASURING = threading.Lock()


@cache
def _float32_is_faster() -> bool:
    x, weight = (torch.ones(rows, 1536, dtype=torch.bfloat16) for rows in (512, 1536))

    def seconds(run: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(4):
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
        return best

    return seconds(lambda: by_float32(x, weight, None)) < CLEARLY * seconds(lambda: F.linear(x, weight))
