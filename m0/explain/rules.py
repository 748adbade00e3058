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

from m0.interp.taps import HookHandles, attach_hook, find_taps
from m0.model.decoder import MLP
from m0.model.fused import RMSNorm
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import working_dtype
from m0.model.vision import VisionMLP


def halve_derivative(x: Tensor) -> Tensor:
    """The value x, of any shape, with half of its derivative."""
    return 0.5 * x + 0.5 * x.detach()


def replace_derivative(value: Tensor, derivative: Tensor) -> Tensor:
    """One value with the derivative of another; any shape, the same for both."""
    return value.detach() + (derivative - derivative.detach())


@contextmanager
def attnlrp_rules(model: RerankerModel) -> Iterator[None]:
    """AttnLRP's rules (Achtibat et al. 2024) in decoder and vision tower, but for the pattern's half, which goes with its recording."""
    with _apply_rules(model, frozen=False):
        yield


@contextmanager
def frozen_rules(model: RerankerModel) -> Iterator[None]:
    """Norm scales, queries, keys and gates are constants (Ali et al. 2022, and the same for gates)."""
    with _apply_rules(model, frozen=True):
        yield


@contextmanager
def _apply_rules(model: RerankerModel, frozen: bool) -> Iterator[None]:
    handles = HookHandles()
    try:
        for module in model.modules():
            if isinstance(module, RMSNorm):
                handles.add_forward_hook(module, _rms_norm_rule)
            elif isinstance(module, nn.LayerNorm):
                handles.add_forward_hook(module, _layer_norm_rule)
            elif isinstance(module, nn.GELU):
                handles.add_forward_hook(module, _gelu_rule)
            elif isinstance(module, MLP):
                _add_gate_rule(module, handles, frozen)
            elif isinstance(module, VisionMLP):
                _add_quick_gelu_rule(module, handles)
        looking = ("*.attention.rotated_query", "*.attention.rotated_key")
        for tap in find_taps(model.config, looking):
            attach_hook(model, tap, lambda x, _: x.detach() if frozen else halve_derivative(x), handles)
        if not frozen:
            for tap in find_taps(model.config, "*.attention.value"):
                attach_hook(model, tap, lambda x, _: halve_derivative(x), handles)
        yield
    finally:
        handles.remove()


def _rms_norm_rule(module: RMSNorm, args: tuple[Tensor], output: Tensor) -> Tensor:
    wide = args[0].to(working_dtype(args[0].dtype))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.eps).detach()
    return replace_derivative(output, module.weight * (wide * scale).to(output.dtype))


def _layer_norm_rule(module: nn.LayerNorm, args: tuple[Tensor], output: Tensor) -> Tensor:
    x = args[0]
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + module.eps).detach()
    return replace_derivative(output, centred * scale * module.weight + module.bias)


def _gelu_rule(module: nn.GELU, args: tuple[Tensor], output: Tensor) -> Tensor:
    x = args[0]
    share = 0.5 * (1 + torch.erf(x * 0.5**0.5))  # GELU(x) = x * this
    return replace_derivative(output, x * share.detach())


def _add_gate_rule(module: MLP, handles: HookHandles, frozen: bool) -> None:
    recorded: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args, output: recorded.__setitem__(name, output)

    def product(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        gate, up = recorded.pop("gate"), recorded.pop("up")
        if frozen:
            return (replace_derivative(args[0], F.silu(gate).detach() * up),)
        return (replace_derivative(args[0], halve_derivative(gate * torch.sigmoid(gate).detach()) * halve_derivative(up)),)

    handles.add_forward_hook(module.gate_proj, keep("gate"))
    handles.add_forward_hook(module.up_proj, keep("up"))
    handles.add_pre_hook(module.down_proj, product)


def _add_quick_gelu_rule(module: VisionMLP, handles: HookHandles) -> None:
    recorded: list[Tensor] = []

    def activation(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden = recorded.pop()
        return (replace_derivative(args[0], hidden * torch.sigmoid(1.702 * hidden).detach()),)

    handles.add_forward_hook(module.fc1, lambda _, args, output: recorded.append(output))
    handles.add_pre_hook(module.fc2, activation)
