"""nn.Linear, but on a CPU whose float32 kernels are the faster ones it multiplies bfloat16 by these.

Some processors have instructions for bfloat16 that are slower than those for float32. Products of bfloat16 numbers are exact in
float32, and both kernels sum in float32 and round once, so only the order of the sum, and with it a last bit, may differ. Weights
stay in bfloat16; a few rows of them at a time are widened, which stay in the processor's cache.

Attention (`m0.model.attention`) does the same with queries, keys and values. There PyTorch's bfloat16 kernel also rounds the pattern to
bfloat16 before it multiplies, which float32 leaves out: the more exact of two ways.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m0.errors import InputError

MIN_UPCAST_ROWS = 128
"""With fewer tokens, widening weights costs more than it saves."""
UPCAST_CHUNK_NUMBERS = 3 * 2**20
"""Numbers of the weight that are widened at a time, about: 12 MiB."""
MAX_TIME_RATIO = 0.8
"""Of bfloat16's time; what is faster by less is not worth another last bit."""


class Linear(nn.Linear):
    """nn.Linear, which may multiply bfloat16 numbers in float32 (`linear_in_float32`)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        # Not where x is part of something spread over devices.
        if type(x) is Tensor and self.weight.dtype == x.dtype and should_upcast(x, x.numel() // self.in_features):
            return linear_in_float32(x, self.weight, self.bias)
        return super().forward(x)


def should_upcast(x: Tensor, rows: int) -> bool:
    """Whether numbers like x, of any shape, are multiplied faster in float32 here, `rows` tokens at a time."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and rows >= MIN_UPCAST_ROWS
        and float32_is_faster()
    )


def linear_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b of bfloat16 numbers, computed in float32, in bfloat16. x: (..., in); weight: (out, in)."""
    upcast = x.float()
    result = x.new_empty(*x.shape[:-1], len(weight))
    step = max(64, UPCAST_CHUNK_NUMBERS // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        result[..., rows] = F.linear(upcast, weight[rows].float(), None if bias is None else bias[rows].float())
    return result


def float32_is_faster() -> bool:
    """Whether `linear_in_float32` clearly is, on this processor: measured once a process, in about a tenth of a second."""
    with _measuring:  # threads that come together must not measure beside each other, and then compute in different ways
        return _measure_float32_is_faster()


_measuring = threading.Lock()


@cache
def _measure_float32_is_faster() -> bool:
    x, weight = (torch.ones(rows, 1536, dtype=torch.bfloat16) for rows in (512, 1536))

    def seconds(run: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(4):
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
        return best

    return seconds(lambda: linear_in_float32(x, weight, None)) < MAX_TIME_RATIO * seconds(lambda: F.linear(x, weight))


class QuantizedLinear(nn.Module):
    """What layers in 8 bits have in common (`m0.engine.quantize`)."""

    scales: Tensor
    stays_on_device = False
    """Whether it cannot be moved to another device."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    @property
    def weight(self) -> NoReturn:
        """There is none. Raises InputError."""
        raise InputError("the model's weights are in 8 bits; load it without quantization for what needs plain ones.")

    def _load_from_state_dict(self, *args: Any) -> None:
        raise InputError("weights in 8 bits cannot be loaded; load plain ones, and quantize them then.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """What `to`, `float` and `cuda` call: the layer may move, but keeps its types."""
        device = fn(torch.empty(0, device=self.scales.device)).device
        if device != self.scales.device:
            if self.stays_on_device:
                raise InputError("a layer in 8 bits stays on the CPU; load the model on the other device.")
            super()._apply(lambda part: part.to(device), recurse)
        return self

    def extra_repr(self) -> str:
        """What print shows: inputs, outputs."""
        return f"{self.in_features}, {self.out_features}"


def is_quantized(model: nn.Module) -> bool:
    """Whether any of its layers is in 8 bits."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
