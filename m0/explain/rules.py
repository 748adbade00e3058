"""Rules for relevance: changed derivatives with unchanged values, laid over the one model by hooks.

Gradient x input is a sum over inputs that equals the output where every operation is linear. Where one is not, a rule says what
its derivative is taken to be:

AttnLRP (Achtibat et al. 2024), in the form of modified gradients:
    normalisation       its scale is a constant
    activation f(x)     f(x) / x is a constant
    product a b         each factor gets half (query with key, pattern with value, gate with up)
    softmax             its true derivative; what it adds or takes away stands in the ledger as "softmax remainder"

Frozen: norm scales, query, key and gate are constants, so that patterns are too. Nothing is left over but the biases.

Values are kept to rounding: y + (f - f.detach()) has the value of y and the derivative of f.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m0.interp.taps import Handles, attach, find_taps
from m0.model.decoder import MLP
from m0.model.fused import RMSNorm
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import working_dtype
from m0.model.vision import VisionMLP


def half(x: Tensor) -> Tensor:
    """The value x, of any shape, with half of its derivative."""
    return 0.5 * x + 0.5 * x.detach()


def keep_value(value: Tensor, derivative: Tensor) -> Tensor:
    """One value with the derivative of another; any shape, the same for both."""
    return value.detach() + (derivative - derivative.detach())


@contextmanager
def attn_lrp(model: RerankerModel) -> Iterator[None]:
    """AttnLRP's rules (Achtibat et al. 2024) in decoder and vision tower, but for the pattern's half, which goes with its recording."""
    with _rules(model, frozen=False):
        yield


@contextmanager
def frozen(model: RerankerModel) -> Iterator[None]:
    """Norm scales, queries, keys and gates are constants (Ali et al. 2022, and the same for gates)."""
    with _rules(model, frozen=True):
        yield


@contextmanager
def _rules(model: RerankerModel, frozen: bool) -> Iterator[None]:
    handles = Handles()
    try:
        for module in model.modules():
            if isinstance(module, RMSNorm):
                handles.after(module, _rms_norm)
            elif isinstance(module, nn.LayerNorm):
                handles.after(module, _layer_norm)
            elif isinstance(module, nn.GELU):
                handles.after(module, _gelu)
            elif isinstance(module, MLP):
                _gate(module, handles, frozen)
            elif isinstance(module, VisionMLP):
                _quick_gelu(module, handles)
        looking = ("*.attention.rotated_query", "*.attention.rotated_key")
        for tap in find_taps(model.config, looking):
            attach(model, tap, lambda x, _: x.detach() if frozen else half(x), handles)
        if not frozen:
            for tap in find_taps(model.config, "*.attention.value"):
                attach(model, tap, lambda x, _: half(x), handles)
        yield
    finally:
        handles.remove()


def _rms_norm(module: RMSNorm, args: tuple[Tensor], output: Tensor) -> Tensor:
    wide = args[0].to(working_dtype(args[0].dtype))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.eps).detach()
    return keep_value(output, module.weight * (wide * scale).to(output.dtype))


def _layer_norm(module: nn.LayerNorm, args: tuple[Tensor], output: Tensor) -> Tensor:
    x = args[0]
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + module.eps).detach()
    return keep_value(output, centred * scale * module.weight + module.bias)


def _gelu(module: nn.GELU, args: tuple[Tensor], output: Tensor) -> Tensor:
    x = args[0]
    share = 0.5 * (1 + torch.erf(x * 0.5**0.5))  # GELU(x) = x * this
    return keep_value(output, x * share.detach())


def _gate(module: MLP, handles: Handles, frozen: bool) -> None:
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args, output: kept.__setitem__(name, output)

    def product(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        gate, up = kept.pop("gate"), kept.pop("up")
        if frozen:
            return (keep_value(args[0], F.silu(gate).detach() * up),)
        return (keep_value(args[0], half(gate * torch.sigmoid(gate).detach()) * half(up)),)

    handles.after(module.gate_proj, keep("gate"))
    handles.after(module.up_proj, keep("up"))
    handles.before(module.down_proj, product)


def _quick_gelu(module: VisionMLP, handles: Handles) -> None:
    kept: list[Tensor] = []

    def activation(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden = kept.pop()
        return (keep_value(args[0], hidden * torch.sigmoid(1.702 * hidden).detach()),)

    handles.after(module.fc1, lambda _, args, output: kept.append(output))
    handles.before(module.fc2, activation)
