"""Low-rank adapters on any linear layer: inject, train, load and save in peft's format, switch by name, merge, unmerge.

LoRA    y = W x + s B A x,            s = alpha / r            (Hu et al. 2022)
rsLoRA  the same with                 s = alpha / sqrt(r)      (Kalajdzievski 2023)
DoRA    y = m (W + s B A) x / ||W + s B A||, norms by output row, held constant in the backward pass  (Liu et al. 2024)

With `lora_bias` the update has a bias of its own: s (B A x + b).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m0.checkpoints.adapters.config import LoRAConfig
from m0.model.linear import Linear
from m0.model.rotary import working_dtype
from m0.model.vision import PatchKernel


class LowRank(nn.Module):
    """One adapter on one linear layer: B A, and where wanted a bias, or for DoRA a magnitude for each output.

    A convolution that covers its whole input counts as linear; its kernel is flattened.
    Kept in float32 even where the model is bfloat16 or float16, as small updates vanish there.
    """

    def __init__(self, layer: nn.Linear | PatchKernel, rank: int, scale: float, config: LoRAConfig) -> None:
        super().__init__()
        rows, columns = layer.weight.flatten(1).shape
        dtype, device = working_dtype(layer.weight.dtype), layer.weight.device
        self.scale = scale
        self.dropout = nn.Dropout(config.dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, columns, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, dtype=dtype, device=device))
        # Drawn on the CPU: the same seed, the same numbers on every device.
        drawn = torch.empty(rank, columns, dtype=dtype, device="cpu")
        with torch.no_grad():
            self.lora_A.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5)))
        self.lora_bias = nn.Parameter(torch.zeros(rows, dtype=dtype, device=device)) if config.lora_bias else None
        norms = layer.weight.detach().flatten(1).to(dtype).norm(dim=1)
        self.magnitude = nn.Parameter(norms) if config.use_dora else None

    def merged_weight(self, weight: Tensor) -> Tensor:
        """W with the adapter folded in, computed in the adapter's type: (outputs, inputs), or a kernel of any shape, -> the same shape."""
        merged = weight.flatten(1).to(self.lora_A.dtype) + self.scale * (self.lora_B @ self.lora_A)
        if self.magnitude is not None:
            merged = merged * (self.magnitude / merged.norm(dim=1))[:, None]
        return merged.to(weight.dtype).view(weight.shape)

    def merged_bias(self, bias: Tensor) -> Tensor:
        """The layer's bias with the adapter's folded in, (outputs,) -> (outputs,)."""
        if self.lora_bias is None:
            return bias
        return (bias.to(self.lora_bias.dtype) + self.scale * self.lora_bias).to(bias.dtype)

    def forward(self, x: Tensor, layer: nn.Linear | PatchKernel, output: Tensor) -> Tensor:
        """The layer's `output` for `x`, with the adapter's share added: (..., inputs), (..., outputs) -> (..., outputs)."""
        dropped = self.dropout(x.to(self.lora_A.dtype))
        update = F.linear(F.linear(dropped, self.lora_A), self.lora_B, self.lora_bias) * self.scale
        if self.magnitude is None:
            return (output + update).to(output.dtype)
        weight = layer.weight.flatten(1).to(update.dtype)
        direction = weight + self.scale * (self.lora_B @ self.lora_A)
        factor = self.magnitude / direction.norm(dim=1).detach()
        # m (W + sBA) x / norm = W x + (factor - 1) W x + factor sBA x; dropout falls on the second and third alone.
        return (output + (factor - 1) * F.linear(dropped, weight) + factor * update).to(output.dtype)


class ModulesByName(nn.Module):
    """Modules by name, as nn.ModuleDict, but any name will do: that one refuses "train", "type" and its other methods."""

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __getitem__(self, name: str) -> nn.Module:
        return cast(nn.Module, self._modules[name])

    def __setitem__(self, name: str, module: nn.Module) -> None:
        self._modules[name] = module

    def __delitem__(self, name: str) -> None:
        del self._modules[name]


class LoRALayer(nn.Module):
    """A layer with named adapters attached, at most one of them active. Keeps the layer's parameter names."""

    weight: Any
    bias: Any

    def _wrap(self, layer: nn.Linear | PatchKernel) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.adapters = ModulesByName()
        self.active: str | None = None
        self.unmerged: Tensor | None = None
        """The weights as they were, while an adapter is merged into them."""
        self.unmerged_bias: Tensor | None = None
        self.train(layer.training)  # a new module trains, with dropout, whatever the rest of the model does

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own output, with the active adapter's share added where none is merged: (..., inputs) -> (..., outputs)."""
        output = super().forward(x)
        if self.active is None or self.unmerged is not None or self.active not in self.adapters:
            return output
        return self.adapters[self.active](x, self, output)

    def adapter(self, name: str) -> LowRank:
        """The low-rank part of an adapter that is attached here, by the adapter\'s name."""
        return cast(LowRank, self.adapters[name])

    def merge(self, name: str) -> None:
        """Fold an adapter into weight and bias."""
        self.unmerged = self.weight.data
        self.weight.data = self.adapter(name).merged_weight(self.weight.data).detach()
        if self.bias is not None:
            self.unmerged_bias = self.bias.data
            self.bias.data = self.adapter(name).merged_bias(self.bias.data).detach()

    def unmerge(self) -> None:
        """Put back what was there before."""
        if self.unmerged is not None:
            self.weight.data, self.unmerged = self.unmerged, None
        if self.unmerged_bias is not None and self.bias is not None:
            self.bias.data, self.unmerged_bias = self.unmerged_bias, None


class LoRALinear(LoRALayer, Linear):
    """A linear layer with adapters."""

    def __init__(self, layer: nn.Linear) -> None:
        Linear.__init__(self, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self._wrap(layer)

    def base_layer(self) -> nn.Linear:
        """The layer alone."""
        plain = Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


class LoRAKernel(LoRALayer, PatchKernel):
    """The kernel of the patches with adapters."""

    def __init__(self, layer: PatchKernel) -> None:
        shape = (layer.in_channels, layer.out_channels, cast(tuple[int, int, int], layer.kernel_size))
        PatchKernel.__init__(self, *shape, stride=shape[2], bias=layer.bias is not None, device="meta")
        self._wrap(layer)

    def base_layer(self) -> PatchKernel:
        """The layer alone."""
        shape = (self.in_channels, self.out_channels, cast(tuple[int, int, int], self.kernel_size))
        plain = PatchKernel(*shape, stride=shape[2], bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain
