"""All adapters of one model, by name: added, read from files, switched, merged into the weights, saved."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from m0.checkpoints.adapters.config import LoRAConfig
from m0.checkpoints.adapters.layers import LoRAKernel, LoRALayer, LoRALinear, LowRank
from m0.checkpoints.adapters.peft_format import (
    WEIGHTS_FILE,
    Layout,
    fill_parameters,
    low_rank_tensors,
    plan_adapter,
    read_adapter,
    write_adapter,
)
from m0.errors import AdapterError
from m0.locks import CallLock, changes_model, uses_model
from m0.model.linear import is_quantized
from m0.model.reranker_model import RerankerModel
from m0.model.vision import PatchKernel
from m0.paths import path_of


class Adapters:
    """All adapters of one model, by name."""

    def __init__(self, model: RerankerModel, calls: CallLock | None = None) -> None:
        self.model = model
        self.calls = CallLock() if calls is None else calls
        """Which calls may run beside each other: those of the reranker that the model belongs to."""
        self.configs: dict[str, LoRAConfig] = {}
        self.active: str | None = None
        self.merged = False
        self._layouts: dict[str, Layout] = {}
        """The names that each adapter's file has, or will have."""
        self._saved_modules: dict[str, dict[str, nn.Module]] = {}
        """Each adapter's modules_to_save, by the model's names."""
        self._saved_biases: dict[str, dict[str, nn.Parameter]] = {}
        """Each adapter's own copies of the model's biases."""
        self._replaced_modules: dict[str, nn.Module] = {}
        """The model's own modules that the active adapter's stand in for."""
        self._replaced_biases: dict[str, nn.Parameter] = {}

    @changes_model
    @torch.inference_mode(False)  # weights made inside it could never be explained
    def add(self, name: str, config: LoRAConfig) -> None:
        """Attach a fresh adapter (it changes nothing yet) and make it active. Raises AdapterError."""
        self._check_new(name)
        modules = self._modules()
        layout, layers, saved = plan_adapter(config, modules)
        with self._roll_back_on_error(name):
            self.activate(None)  # the new one starts from the model's own weights and modules
            for ours in layers:
                self._attach(name, ours, layout, config)
            self._saved_modules[name] = {ours: _copy_without_adapters(self.model.get_submodule(ours)) for ours in saved}
            owners = {"none": [], "lora_only": layers, "all": list(modules)}[config.bias]
            inside = tuple(f"{ours}." for ours in saved)
            self._saved_biases[name] = {
                f"{ours}.bias": nn.Parameter(bias.detach().clone())
                for ours in owners
                if (bias := getattr(self.model.get_submodule(ours), "bias", None)) is not None
                if not f"{ours}.".startswith(inside)
            }
            self._register(name, layout, config)

    @changes_model
    @torch.inference_mode(False)  # weights made inside it could never be explained
    def load(self, directory: str | os.PathLike[str], name: str | None = None) -> str:
        """Read an adapter in peft's format, make it active, and return its name (default: the directory's).

        Raises AdapterError where it is damaged or does not fit the model; the model is then as before.
        """
        try:
            directory = path_of(os.fsdecode(directory), AdapterError)
        except TypeError:
            raise AdapterError(f"an adapter is given by its directory, not by {type(directory).__name__}.") from None
        name = name or directory.resolve().name.replace(".", "_")
        self._check_new(name)
        config, found = read_adapter(directory, self._modules())
        file, layout = directory / WEIGHTS_FILE, found.layout
        with self._roll_back_on_error(name):
            self.activate(None)
            for ours, parts in found.low_rank.items():
                fill_parameters(self._attach(name, ours, layout, config), parts, layout.theirs(ours) or ours, file)
            self._saved_modules[name] = {}
            for ours, parts in found.saved_modules.items():
                saved_module = _copy_without_adapters(self.model.get_submodule(ours))
                fill_parameters(saved_module, parts, layout.theirs(ours) or ours, file)
                self._saved_modules[name][ours] = saved_module
            self._saved_biases[name] = {}
            for ours, value in found.biases.items():
                holder = nn.ParameterDict({"bias": self.model.get_parameter(ours).detach().clone()})
                fill_parameters(holder, {"bias": value}, layout.theirs(ours.removesuffix(".bias")) or ours, file)
                self._saved_biases[name][ours] = holder["bias"]
            self._register(name, layout, config)
        return name

    @uses_model
    def save(self, directory: str | os.PathLike[str], name: str | None = None) -> None:
        """Write an adapter in peft's format: adapter_config.json and adapter_model.safetensors. Default: the active one.

        Raises AdapterError where there is no such adapter, and where the files cannot be written.
        """
        name = self._check_name(name or self.active)
        layout = self._layouts[name]
        tensors: dict[str, Tensor] = {}
        adapted = {}
        for ours, layer in self._layers():
            if name in layer.adapters:
                adapted[ours] = layer
                parts = dict(layer.adapter(name).named_parameters())
                tensors |= low_rank_tensors(layout.theirs(ours) or ours, parts, layer.weight)
        for ours, saved_module in self._saved_modules[name].items():
            tensors |= {f"{layout.theirs(ours)}.{key}": value for key, value in saved_module.state_dict().items()}
        for ours, bias in self._saved_biases[name].items():
            owner = ours.removesuffix(".bias")
            layer_of_bias = adapted.get(owner)
            if layer_of_bias is not None and layer_of_bias.bias is bias and layer_of_bias.unmerged_bias is not None:
                bias = nn.Parameter(layer_of_bias.unmerged_bias)  # merged, it holds the update's bias, too
            tensors[f"{layout.theirs(owner)}.{'' if layer_of_bias is None else 'base_layer.'}bias"] = bias
        write_adapter(path_of(directory, AdapterError), self.configs[name], tensors)

    @changes_model
    def activate(self, name: str | None) -> None:
        """Switch to an adapter by name; None: the model without any. Raises AdapterError where there is no such adapter."""
        if name is not None:
            self._check_name(name)
        if self.merged:
            self.unmerge()
        for ours, own in self._replaced_modules.items():
            self._replace(ours, own)
        for ours, own_bias in self._replaced_biases.items():
            self._replace(ours, own_bias)
        self._replaced_modules, self._replaced_biases = {}, {}
        for _, layer in self._layers():
            layer.active = name
        for ours, saved_module in self._saved_modules.get(name or "", {}).items():
            self._replaced_modules[ours] = self.model.get_submodule(ours)
            self._replace(ours, saved_module)
        for ours, bias in self._saved_biases.get(name or "", {}).items():
            self._replaced_biases[ours] = self.model.get_parameter(ours)
            self._replace(ours, bias)
        self.active = name

    @changes_model
    def merge(self) -> None:
        """Fold the active adapter into the weights: same scores, no cost at run time. Keeps the old weights for `unmerge`.

        Raises AdapterError where an adapter with `lora_bias` lies on a layer without a bias.
        """
        name = self._check_name(self.active)
        if self.merged:
            return
        layers = [(ours, layer) for ours, layer in self._layers() if name in layer.adapters]
        for ours, layer in layers:
            if layer.bias is None and layer.adapter(name).lora_bias is not None:
                where = self._layouts[name].theirs(ours)
                raise AdapterError(f"the adapter {name!r} has a bias on {where}, a layer without one, and cannot be merged.")
        for _, layer in layers:
            layer.merge(name)
        self.merged = True

    @changes_model
    def unmerge(self) -> None:
        """Put the weights back as they were, bit by bit. The adapter stays active."""
        for _, layer in self._layers():
            layer.unmerge()
        self.merged = False

    @changes_model
    def remove(self, name: str) -> None:
        """Forget an adapter. Raises AdapterError where there is no such adapter."""
        self._check_name(name)
        if name == self.active:
            self.activate(None)
        self._detach(name)
        del self.configs[name]

    def parameters(self, name: str | None = None) -> Iterable[nn.Parameter]:
        """What training an adapter changes: its matrices, and the modules and biases that it brings, each of its own shape: any shape.

        Raises AdapterError where there is no such adapter.
        """
        name = self._check_name(name or self.active)
        for _, layer in self._layers():
            if name in layer.adapters:
                yield from layer.adapters[name].parameters()
        for saved_module in self._saved_modules[name].values():
            yield from saved_module.parameters()
        yield from self._saved_biases[name].values()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _layers(self) -> list[tuple[str, LoRALinear | LoRAKernel]]:
        """The layers with adapters, also those of modules that another adapter's stand in for just now."""
        named = [*self.model.named_modules()]
        for ours, own in self._replaced_modules.items():
            named += [(f"{ours}.{inner}".rstrip("."), module) for inner, module in own.named_modules()]
        return [(name, layer) for name, layer in named if isinstance(layer, LoRALinear | LoRAKernel)]

    def _modules(self) -> Mapping[str, nn.Module]:
        """The model's modules by name, without what adapters have added."""
        found: dict[str, nn.Module] = {}
        for name, module in self.model.named_modules():
            if not any(
                name.startswith(f"{layer}.") for layer in _parent_names(name) if isinstance(found.get(layer), LoRALayer)
            ):
                found[name] = module
        return found

    def _check_name(self, name: str | None) -> str:
        if name is None or name not in self.configs:
            raise AdapterError(f"there is no adapter {name!r}; loaded: {sorted(self.configs) or 'none'}.")
        return name

    def _check_new(self, name: str) -> None:
        if is_quantized(self.model):
            raise AdapterError("a quantized model takes no adapter; load the plain one for it.")
        if name in self.configs:
            raise AdapterError(f"there is an adapter {name!r} already; give another name or remove it first.")
        if not name or "." in name:
            raise AdapterError(f"{name!r} cannot name an adapter; use a name without dots.")

    @contextlib.contextmanager
    def _roll_back_on_error(self, name: str) -> Iterator[None]:
        """Where a new adapter fails half-way, the model is as before: without it, and with the adapter that was active."""
        active, merged = self.active, self.merged
        try:
            yield
        except BaseException:
            self._detach(name)
            self.activate(active)
            if merged:
                self.merge()
            raise

    def _replace(self, ours: str, replacement: nn.Module | nn.Parameter) -> None:
        parent, _, leaf = ours.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, replacement)

    def _attach(self, name: str, ours: str, layout: Layout, config: LoRAConfig) -> LowRank:
        layer = self.model.get_submodule(ours)
        if not isinstance(layer, LoRALinear | LoRAKernel):
            layer = LoRAKernel(layer) if isinstance(layer, PatchKernel) else LoRALinear(cast(nn.Linear, layer))
            self._replace(ours, layer)
        theirs = layout.theirs(ours) or ours
        adapter = LowRank(layer, config.rank_of(theirs), config.scale_of(theirs), config)
        adapter.train(layer.training)
        layer.adapters[name] = adapter
        return adapter

    def _register(self, name: str, layout: Layout, config: LoRAConfig) -> None:
        self.configs[name], self._layouts[name] = config, layout
        self.activate(name)

    def _detach(self, name: str) -> None:
        for _, layer in self._layers():
            if name in layer.adapters:
                del layer.adapters[name]
        for by_name in (self._saved_modules, self._saved_biases, self._layouts):
            by_name.pop(name, None)


def _parent_names(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _copy_without_adapters(module: nn.Module) -> nn.Module:
    """A copy of a module without the adapters in it."""
    copied = copy.deepcopy(module)
    if isinstance(copied, LoRALinear | LoRAKernel):
        return copied.base_layer()
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, LoRALinear | LoRAKernel):
            parent, _, leaf = name.rpartition(".")
            setattr(copied.get_submodule(parent), leaf, layer.base_layer())
    return copied
