"""What lies between the matrix products, each a plain function in a module of its own, so that `Reranker.compile` can have
torch.compile fuse it: memory is then read and written once where PyTorch alone does so for every single operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m0.errors import InputError
from m0.rotary import Rotation, rotate, working_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    # Normalised in float32, rounded to the model's type, and only then scaled: this order is the reference's.
    wide = x.to(working_dtype(x.dtype))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def turn(x: Tensor, rotation: Rotation) -> Tensor:
    # In the rotation's type, and rounded back.
    return rotate(x.to(rotation[0].dtype), rotation).to(x.dtype)


class Fusible(nn.Module):
    function: ClassVar[Callable[..., Tensor]]


class RMSNorm(Fusible):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)."""

    function = staticmethod(rms_norm)

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.eps)


class SwiGLU(Fusible):
    """silu(gate) * up (Shazeer 2020)."""

    function = staticmethod(swiglu)

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.function(gate, up)


class QuickGELU(Fusible):
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""

    function = staticmethod(quick_gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Rotate(Fusible):
    """Turn every head of x (tokens, heads, head_dim) by its token's angles, see `m0.rotary`."""

    function = staticmethod(turn)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        return self.function(x, rotation)


def fuse(model: nn.Module) -> None:
    """Give every `Fusible` its function compiled. Raises InputError where torch.compile does not work; then nothing is changed."""
    classes = {type(module) for module in _fusible(model)}
    compiled = {kind: torch.compile(kind.function) for kind in classes}
    weight = next(model.parameters())
    if RMSNorm in compiled:
        try:
            compiled[RMSNorm](
                torch.ones(4, 32, dtype=weight.dtype, device=weight.device), torch.ones(32, device=weight.device), 1e-6
            )
        except Exception as error:  # each part of the tool chain that may be missing has an error of its own
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"torch.compile does not work here: {first}") from None
    for module in _fusible(model):
        module.__dict__["function"] = compiled[type(module)]


def _fusible(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, Fusible))
