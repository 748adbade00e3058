"""The operations between the matrix products (norms, activations, rotary), each a plain function in a module of its own, so that `Reranker.compile` can have
torch.compile fuse it: memory is then read and written once where PyTorch alone does so for every single operation.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m0.errors import InputError
from m0.model.attention import Attend
from m0.model.rotary import Rotation, rotate, working_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019). x: (tokens, size); weight: (size,)."""
    # Normalised in float32, rounded to the model's type, and only then scaled: this order is the reference's.
    normalized = F.rms_norm(x.to(working_dtype(x.dtype)), weight.shape, eps=eps)
    return weight * normalized.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020), each (tokens, size)."""
    return F.silu(gate) * up


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016), element by element; any shape."""
    return x * torch.sigmoid(1.702 * x)


def rotate_heads(x: Tensor, rotation: Rotation) -> Tensor:
    """`m0.model.rotary.rotate` of x, (tokens, heads, head_dim), in the rotation's type, rounded back to x's."""
    # In the rotation's type, and rounded back.
    return rotate(x.to(rotation[0].dtype), rotation).to(x.dtype)


class Fusible(nn.Module):
    """A module whose computation is one plain function, which `fuse` may have compiled."""

    function: ClassVar[Callable[..., Any]]

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled is not compiled."""
        return {name: value for name, value in self.__dict__.items() if name != "function"}


class RMSNorm(Fusible):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)."""

    function = staticmethod(rms_norm)

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, size) -> (tokens, size)."""
        return self.function(x, self.weight, self.eps)


class SwiGLU(Fusible):
    """silu(gate) * up (Shazeer 2020)."""

    function = staticmethod(swiglu)

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two of (tokens, size) -> (tokens, size)."""
        return self.function(gate, up)


class QuickGELU(Fusible):
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""

    function = staticmethod(quick_gelu)

    def forward(self, x: Tensor) -> Tensor:
        """Element by element; any shape."""
        return self.function(x)


class Rotate(Fusible):
    """Turn every head of x (tokens, heads, head_dim) by its token's angles, see `m0.model.rotary`."""

    function = staticmethod(rotate_heads)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(tokens, heads, head_dim) -> the same, by a rotation of two parts, (tokens, head_dim) each."""
        return self.function(x, rotation)


MIN_COMPILED_NUMBERS = 2**21
"""Numbers: with fewer, a GPU is done before Python has found the compiled function that fits."""


def fuse(model: nn.Module) -> None:
    """Give every `Fusible` its function compiled, and let attention prepare kernels (`m0.model.attention.Attend`).

    Raises InputError where torch.compile does not work; then nothing is changed.
    """
    fusible = [module for module in model.modules() if isinstance(module, Fusible)]
    try:
        torch.compile(lambda x: 2 * x.square())(torch.ones(8, device=next(model.parameters()).device))
    except Exception as error:  # each part of the tool chain that may be missing has an error of its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"torch.compile does not work here: {first}") from None
    compiled = {kind: _compiled(kind.function) for kind in {type(module) for module in fusible}}
    for module in fusible:
        module.__dict__["function"] = compiled[type(module)]
    for attend in (module for module in model.modules() if isinstance(module, Attend)):
        attend.prepares = True


def is_fused(model: nn.Module) -> bool:
    """Whether `fuse` has been called on it."""
    return any("function" in module.__dict__ for module in model.modules() if isinstance(module, Fusible))


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function compiled for forward passes; with gradients, and on a GPU with little to do, it runs as it is."""
    compiled: dict[tuple[int, ...], Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() or (args[0].is_cuda and args[0].numel() < MIN_COMPILED_NUMBERS):
            return function(*args)
        width = args[0].shape[1:]
        if width not in compiled:
            # For each width with code of its own: PyTorch takes sizes that vary from call to call for unknown, and with unknown
            # widths code is a little slower. (It also counts the variants of a code object and gives up after a few.)
            separate = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
            compiled[width] = torch.compile(separate)
        return compiled[width](*args)

    return call
