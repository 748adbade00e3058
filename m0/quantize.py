"""Linear layers in 8 bits, for less memory and, on x86 CPUs with VNNI and on GPUs with float8, more speed.

Weights become whole numbers from -127 to 127 times one scale for each output (Jacob et al. 2018). With "int8" so do the layer's
inputs, each token by its own scale as it comes (dynamic quantization), and products are summed exactly in 32 bits. A few columns of
the inputs are far larger than the rest and would leave these no digits: the largest are multiplied apart, and the others brought
nearer to each other, the weights' the other way (SmoothQuant, Xiao et al. 2023), by what some prompts have shown. With
"int8-weights" inputs stay as they are: closer to the unrounded model, half the memory, but no faster. With "float8" weights and
inputs are numbers of 4 exponent and 3 mantissa bits (e4m3, Micikevicius et al. 2022), each output and each token again with a scale
of its own.

Scores change: docs/performance.md says by how much. What needs plain weights or gradients (adapters, training, saving,
gradient-based explanations) is refused, and an "int8" model stays on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from hashlib import blake2b
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m0.errors import InputError
from m0.linear import Linear
from m0.model import RerankerModel

Quantization = Literal["int8", "int8-weights", "float8"]
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int8-weights", "float8")
LIMIT, FLOAT8_LIMIT = 127, 448
FLOAT8_MULTIPLE = 16
"""The float8 kernel takes so many columns at a time."""
ZERO = 128
"""The kernel takes inputs from 0 to 255."""
OUTLIERS = 16
"""Inputs of a layer, the largest in what was shown, that are multiplied apart and unrounded (LLM.int8, Dettmers et al. 2022)."""
ROWS = 128
"""Tokens at a time where there are groups, for their sums to stay in the cache."""
EVENNESS = 0.5
"""SmoothQuant's alpha: how much of the inputs' unevenness goes to the weights."""


class QuantizedLinear(nn.Module):
    """What the layers below have in common."""

    scales: Tensor
    bound = False
    """Whether it cannot leave its device."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    @property
    def weight(self) -> NoReturn:
        raise InputError("the model's weights are in 8 bits; load it without quantization for what needs plain ones.")

    def _load_from_state_dict(self, *args: Any) -> None:
        raise InputError("weights in 8 bits cannot be loaded; load plain ones, and quantize them then.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """What `to`, `float` and `cuda` call: the layer may move, but keeps its types."""
        device = fn(torch.empty(0, device=self.scales.device)).device
        if device != self.scales.device:
            if self.bound:
                raise InputError("a layer in 8 bits stays on the CPU; load the model on the other device.")
            super()._apply(lambda part: part.to(device), recurse)
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Float8Linear(QuantizedLinear):
    """y = x W^T + b with W and x in float8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(1e-12) / FLOAT8_LIMIT  # (outputs,)
        self.register_buffer("scales", scales[None])
        self.register_buffer("rounded", (weight / scales[:, None]).to(torch.float8_e4m3fn))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)"""
        rows = x.reshape(-1, self.in_features).float()
        steps = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / FLOAT8_LIMIT  # one for each token
        product = torch._scaled_mm(
            (rows / steps).to(torch.float8_e4m3fn),
            cast(Tensor, self.rounded).t(),
            scale_a=steps,
            scale_b=self.scales,
            out_dtype=torch.bfloat16,
        )
        product = product if self.bias is None else product + self.bias
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)


class Int8Linear(QuantizedLinear):
    """y = x W^T + b with W in 8 bits, and x too unless `weights_only`.

    `largest`: of each input in some prompts, (inputs,); None: all are taken to be alike. `groups`: inputs are sorted by it and cut
    into so many parts, each with scales of its own.
    """

    def __init__(self, linear: nn.Linear, weights_only: bool, largest: Tensor | None = None, groups: int = 1) -> None:
        super().__init__(linear)
        self.weights_only, self.bound = weights_only, not weights_only
        weight = linear.weight.detach().float()
        self.outliers: Tensor
        self.apart: Tensor | None
        self.order: Tensor | None
        self.evened: Tensor | None
        for name in ("apart", "order", "evened"):
            self.register_buffer(name, None)
        if largest is not None:
            largest = largest.float().clamp_min(1e-6)
            order = largest.argsort(descending=True)
            outliers, others = order.split([some := min(OUTLIERS, len(order) - 1), len(order) - some])
            self.register_buffer("outliers", outliers)
            self.register_buffer("apart", weight[:, outliers].T.contiguous())  # (outliers, outputs)
            weight = weight.index_fill(1, outliers, 0.0)
            if not weights_only:
                factors = largest**EVENNESS / weight.abs().amax(0).clamp_min(1e-6) ** (1 - EVENNESS)
                weight = weight * factors
                self.register_buffer("evened", (1 / factors).index_fill(0, outliers, 0.0))
            if groups > 1:
                self.register_buffer("order", others)
                weight = weight[:, others]
                self.evened = None if self.evened is None else self.evened[others]
        parts = weight.tensor_split(min(groups, weight.shape[1]), dim=1)
        self.sizes = [part.shape[1] for part in parts]
        scales = torch.stack([part.abs().amax(1).clamp_min(1e-12) / LIMIT for part in parts])
        self.register_buffer("scales", scales)  # (groups, outputs)
        rounded = [(part / scale[:, None]).round().to(torch.int8) for part, scale in zip(parts, scales, strict=True)]
        if weights_only:
            self.register_buffer("rounded", torch.cat(rounded, dim=1))
        else:
            digest = blake2b(torch.cat(rounded, dim=1).numpy().data, digest_size=16).digest()
            self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))  # what is packed has no bytes to read
            self.packed = [torch.ops.onednn.qlinear_prepack(part.contiguous(), None) for part in rounded]
            self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)"""
        rows = x.reshape(-1, self.in_features)
        ordered = rows if self.order is None else rows.index_select(1, self.order)
        if self.weights_only:
            product = self._plainly(ordered)
        elif len(self.packed) == 1:
            product = self._rounded(ordered)
        else:
            product = torch.cat([self._rounded(some) for some in ordered.split(ROWS)])
        if self.apart is not None:
            product = product.addmm_(rows[:, self.outliers].to(product.dtype), self.apart.to(product.dtype))
        if self.bias is not None:
            product += self.bias
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _plainly(self, rows: Tensor) -> Tensor:
        scales = self.scales.repeat_interleave(torch.tensor(self.sizes, device=rows.device), dim=0).T
        return F.linear(rows, cast(Tensor, self.rounded).to(rows.dtype) * scales.to(rows.dtype))

    def _rounded(self, rows: Tensor) -> Tensor:
        """The product with the rows in 8 bits, float32."""
        rows = rows if self.evened is None else rows * self.evened
        total: Tensor | None = None
        for part, packed, scales in zip(rows.split(self.sizes, dim=1), self.packed, self.scales, strict=True):
            steps = part.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / LIMIT  # one for each token
            whole = torch.addcdiv(part.new_full((), ZERO, dtype=torch.float32), part, steps).round_().to(torch.uint8)
            product = torch.ops.onednn.qlinear_pointwise(
                whole, 1.0, ZERO, packed, scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
            total = product.mul_(steps) if total is None else total.addcmul_(product, steps)
        assert total is not None
        return total

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InputError("a model in 8 bits cannot be pickled; save the plain one, and quantize it when it is loaded.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Linear:
        copied = Int8Linear.__new__(Int8Linear)
        memo[id(self)] = copied
        # What is packed cannot be copied, and is never changed.
        packed = self.__dict__.get("packed", [])
        memo |= {id(part): part for part in packed}
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {'int8-weights' if self.weights_only else 'int8'}"


@contextmanager
def largest_inputs(model: RerankerModel) -> Iterator[dict[nn.Module, Tensor]]:
    """For each linear layer the largest absolute value of each of its inputs while the block lasts, (inputs,)."""
    found: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, args: tuple[Tensor]) -> None:
        here = args[0].detach().abs().flatten(0, -2).amax(0).float()
        found[module] = torch.maximum(found[module], here) if module in found else here

    handles = [m.register_forward_pre_hook(see) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def quantize(
    model: RerankerModel, how: Quantization, largest: Mapping[nn.Module, Tensor] | None = None, groups: int = 1
) -> None:
    """Put `Int8Linear` or `Float8Linear` in place of every linear layer of tower and decoder. Embeddings, norms and score head stay
    as they are.

    `largest`: what `largest_inputs` found; a layer that is not in it has its columns as they are. `groups`: see `Int8Linear`. Raises
    InputError as `check_quantization` does.
    """
    check_quantization(model, how)

    def layer(plain: nn.Linear) -> QuantizedLinear:
        if how == "float8":
            return Float8Linear(plain)
        return Int8Linear(plain, how == "int8-weights", (largest or {}).get(plain), groups)

    # All are made before the first takes its place.
    made = [(module, name, layer(plain)) for module, name, plain in _linear_layers(model)]
    for module, name, quantized in made:
        setattr(module, name, quantized)


def check_quantization(model: RerankerModel, how: Quantization) -> None:
    """Raises InputError where this model cannot be quantized so: for lack of kernels, or since it has an adapter, is split or is in 8
    bits already."""
    if how not in QUANTIZATIONS:
        raise InputError(f"quantization is {how!r}, but must be one of {', '.join(QUANTIZATIONS)}.")
    if how == "int8" and (model.device.type != "cpu" or not has_kernels()):
        raise InputError(
            "int8 needs a CPU whose oneDNN kernels sum exactly in 32 bits (x86 with VNNI); int8-weights works everywhere."
        )
    if how == "float8" and not has_float8(model.device):
        raise InputError("float8 needs an NVIDIA GPU that multiplies in it (compute capability 8.9 or higher).")
    if is_quantized(model):
        raise InputError("the model is in 8 bits already.")
    layers = [plain for _, _, plain in _linear_layers(model)]
    if any(hasattr(plain.weight, "to_local") for plain in layers):
        raise InputError("a split model cannot be quantized; every process quantizes its own before it is split.")
    if any(type(plain) is not Linear for plain in layers):
        raise InputError("the model has or had an adapter; merge it, save the model and load that to quantize it.")
    odd = {size for plain in layers for size in plain.weight.shape if size % FLOAT8_MULTIPLE}
    if how == "float8" and odd:
        raise InputError(f"float8 needs layers of multiples of {FLOAT8_MULTIPLE}, but the model has some of {min(odd)}.")


def _linear_layers(model: RerankerModel) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Each with the module that holds it and its name there."""
    return [
        (module, name, child)
        for part in (model.vision.blocks, model.vision.merger, model.decoder.layers)
        for module in part.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]


def is_quantized(model: RerankerModel) -> bool:
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def has_float8(device: torch.device) -> bool:
    """Whether this GPU multiplies in float8."""
    return device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 9)


@cache
def has_kernels() -> bool:
    """Whether PyTorch has the kernels here, and they sum exactly: processors without VNNI add up in 16 bits and overflow."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return False
    size = 64
    try:
        layer = Int8Linear(Linear(size, size, bias=False).requires_grad_(False), weights_only=False)
        ones = torch.full((size, size), LIMIT, dtype=torch.int8)
        layer.packed, layer.scales = [torch.ops.onednn.qlinear_prepack(ones, None)], torch.ones(1, size)
        return bool((layer(torch.full((2, size), float(LIMIT))) == size * LIMIT * LIMIT).all())
    except RuntimeError:
        return False
