"""Low-rank adapters on any linear layer: inject, train, load and save in peft's format, switch by name, merge, unmerge.

LoRA    y = W x + s B A x,            s = alpha / r            (Hu et al. 2022)
rsLoRA  the same with                 s = alpha / sqrt(r)      (Kalajdzievski 2023)
DoRA    y = m (W + s B A) x / ||W + s B A||, norms by output row, held constant in the backward pass  (Liu et al. 2024)
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m0.checkpoint import FLOAT_TYPES, NESTED_PREFIXES, open_safetensors, our_key, their_key
from m0.errors import AdapterError
from m0.linear import Linear
from m0.model import RerankerModel
from m0.paths import path_of
from m0.quantize import is_quantized
from m0.rotary import working_dtype

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"
KNOWN = """
    peft_type r lora_alpha lora_dropout target_modules use_rslora use_dora modules_to_save rank_pattern alpha_pattern bias
    init_lora_weights
""".split()
HARMLESS = """
    task_type auto_mapping base_model_name_or_path revision inference_mode peft_version megatron_core megatron_config
    loftq_config runtime_config ephemeral_gpu_offload qalora_group_size layers_pattern ensure_weight_tying
""".split()
"""Settings of peft that describe a file or its making, not what is computed. Any other that is set is refused."""
INITIALISATIONS = (None, True, False, "gaussian", "orthogonal")
"""Ways to begin that leave the base weights alone; others (pissa, olora, ...) change them when such a file is read."""


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter is attached to, and how strong it is."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last parts of layer names, or a regular expression on the checkpoint's full names, or "all-linear": every linear
    layer of decoder and vision tower."""
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and kept with the adapter; "score" is the score head."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks for layers whose name matches the key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise AdapterError(f"the rank r is {self.r!r}, but must be a whole number of at least 1.")
        for name in ("alpha", "dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise AdapterError(f"{name} is {value!r}, but must be a finite number.")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"dropout is {self.dropout!r}, but must be at least 0 and below 1.")
        for name in ("use_rslora", "use_dora"):
            if not isinstance(getattr(self, name), bool):
                raise AdapterError(f"{name} is {getattr(self, name)!r}, but must be true or false.")
        if any(not isinstance(name, str) or not name for name in self.modules_to_save):
            raise AdapterError(f"modules_to_save is {self.modules_to_save!r}, but must hold names of modules.")
        patterns = [*self.rank_pattern, *self.alpha_pattern]
        if isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            patterns.append(self.target_modules)
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise AdapterError(f"{pattern!r} is not a regular expression: {error}.") from None
        for pattern, rank in self.rank_pattern.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise AdapterError(f"rank_pattern gives {pattern!r} the rank {rank!r}, but must give a whole number above 0.")
        for pattern, alpha in self.alpha_pattern.items():
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise AdapterError(f"alpha_pattern gives {pattern!r} {alpha!r}, but must give a finite number.")

    def rank_of(self, name: str) -> int:
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def scale_of(self, name: str) -> float:
        alpha, rank = float(_by_pattern(self.alpha_pattern, name, self.alpha)), self.rank_of(name)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, name: str) -> bool:
        """Whether a layer, by the checkpoint's name, gets an adapter."""
        if self.target_modules == ALL_LINEAR:
            return not name.startswith("score.")
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.target_modules)

    def to_peft(self) -> dict[str, Any]:
        targets = self.target_modules
        return {
            "peft_type": "LORA",
            "task_type": None,
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "modules_to_save": list(self.modules_to_save) or None,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }

    @classmethod
    def from_peft(cls, values: dict[str, Any], path: Path) -> LoRAConfig:
        if values.get("peft_type") != "LORA":
            raise AdapterError(f"{path}: peft_type is {values.get('peft_type')!r}, but m0 reads 'LORA' only.")
        for key, value in values.items():
            if value and key not in KNOWN and key not in HARMLESS:
                raise AdapterError(f"{path}: {key} is {value!r}, which m0 does not implement.")
        if values.get("init_lora_weights") not in INITIALISATIONS:
            raise AdapterError(
                f"{path}: init_lora_weights is {values['init_lora_weights']!r}, which changes the base weights, and m0 does not."
            )
        if values.get("bias", "none") != "none":
            raise AdapterError(f"{path}: bias is {values['bias']!r}, but m0 implements 'none' only.")
        targets = values.get("target_modules") or ()
        try:
            return cls(
                r=values["r"],
                alpha=float(values["lora_alpha"]),
                dropout=float(values.get("lora_dropout") or 0.0),
                target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
                use_rslora=values.get("use_rslora") or False,
                use_dora=values.get("use_dora") or False,
                modules_to_save=tuple(values.get("modules_to_save") or ()),
                rank_pattern=dict(values.get("rank_pattern") or {}),
                alpha_pattern=dict(values.get("alpha_pattern") or {}),
            )
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"{path} lacks or misstates {error}.") from None


def _by_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


class LowRank(nn.Module):
    """One adapter on one linear layer: B A, and for DoRA a magnitude for each output.

    Kept in float32 even where the model is bfloat16 or float16, as small updates vanish there.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, dropout: float, dora: bool) -> None:
        super().__init__()
        dtype, device = working_dtype(layer.weight.dtype), layer.weight.device
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, layer.in_features, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype, device=device))
        # Drawn on the CPU: the same seed, the same numbers on every device.
        drawn = torch.empty(rank, layer.in_features, dtype=dtype, device="cpu")
        with torch.no_grad():
            self.lora_A.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5)))
        self.magnitude = nn.Parameter(layer.weight.detach().to(dtype).norm(dim=1)) if dora else None

    def merged_weight(self, weight: Tensor) -> Tensor:
        """W with the adapter folded in, computed in the adapter's type."""
        merged = weight.to(self.lora_A.dtype) + self.scale * (self.lora_B @ self.lora_A)
        if self.magnitude is not None:
            merged = merged * (self.magnitude / merged.norm(dim=1))[:, None]
        return merged.to(weight.dtype)

    def forward(self, x: Tensor, layer: nn.Linear, output: Tensor) -> Tensor:
        """The layer's `output` for `x`, with the adapter's share added."""
        dropped = self.dropout(x.to(self.lora_A.dtype))
        update = F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scale
        if self.magnitude is None:
            return (output + update).to(output.dtype)
        weight = layer.weight.to(update.dtype)
        direction = weight + self.scale * (self.lora_B @ self.lora_A)
        factor = self.magnitude / direction.norm(dim=1).detach()
        # m (W + sBA) x / norm = W x + (factor - 1) W x + factor sBA x; dropout falls on the second and third alone.
        return (output + (factor - 1) * F.linear(dropped, weight) + factor * update).to(output.dtype)


class Named(nn.Module):
    """Modules by name, as nn.ModuleDict, but any name will do: that one refuses "train", "type" and its other methods."""

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __getitem__(self, name: str) -> nn.Module:
        return cast(nn.Module, self._modules[name])

    def __setitem__(self, name: str, module: nn.Module) -> None:
        self._modules[name] = module

    def __delitem__(self, name: str) -> None:
        del self._modules[name]


class LoRALinear(Linear):
    """A linear layer with named adapters beside it, at most one of them active. Keeps the layer's parameter names."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.adapters = Named()
        self.active: str | None = None
        self.unmerged: Tensor | None = None
        """The weights as they were, while an adapter is merged into them."""

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        if self.active is None or self.unmerged is not None or self.active not in self.adapters:
            return output
        return self.adapters[self.active](x, self, output)

    def adapter(self, name: str) -> LowRank:
        return cast(LowRank, self.adapters[name])


class Adapters:
    """All adapters of one model, by name."""

    def __init__(self, model: RerankerModel) -> None:
        self.model = model
        self.configs: dict[str, LoRAConfig] = {}
        self.active: str | None = None
        self.merged = False
        self._own: dict[str, nn.Module] = {}
        """The model's own modules, where an adapter brings its own."""
        self._brought: dict[str, dict[str, nn.Module]] = {}

    def add(self, name: str, config: LoRAConfig) -> None:
        """Attach a fresh adapter (it changes nothing yet) and make it active. Raises AdapterError."""
        self._check_new(name)
        self.activate(None)  # the new one starts from the model's own weights and modules
        layers = {
            theirs: layer
            for ours, layer in self.model.named_modules()
            if isinstance(layer, nn.Linear) and config.targets(theirs := their_key(ours))
        }
        if not layers:
            raise AdapterError(f"no linear layer is named {config.target_modules!r}.")
        for module in config.modules_to_save:
            if inside := [theirs for theirs in layers if theirs == module or theirs.startswith(f"{module}.")]:
                raise AdapterError(f"{inside[0]} is a target and lies in {module} of modules_to_save; name it once.")
        for theirs in layers:
            self._attach(name, theirs, config)
        self._brought[name] = {
            module: copy.deepcopy(self._module(module, "modules_to_save")) for module in config.modules_to_save
        }
        self.configs[name] = config
        self.activate(name)

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
        config = LoRAConfig.from_peft(_read_json(directory / CONFIG_FILE), directory / CONFIG_FILE)
        file = directory / WEIGHTS_FILE
        if not file.exists() and (pickle := directory / "adapter_model.bin").exists():
            raise AdapterError(
                f"{pickle} is a pickle, which can run code when read, and is refused; convert it to safetensors."
            )
        with open_safetensors(file) as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}
        low_rank, whole = self._sort(tensors, config, file)
        self.activate(None)
        self._check_complete(low_rank, config, file)
        try:
            for theirs, parts in low_rank.items():
                self._fill(self._attach(name, theirs, config), parts, theirs, file)
            self._brought[name] = {}
            for module, parts in whole.items():
                brought = copy.deepcopy(self._module(module, str(file)))
                self._fill(brought, parts, module, file)
                self._brought[name][module] = brought
        except AdapterError:
            self._detach(name)
            raise
        self.configs[name] = config
        self.activate(name)
        return name

    def save(self, directory: str | os.PathLike[str], name: str | None = None) -> None:
        """Write an adapter in peft's format: adapter_config.json and adapter_model.safetensors. Default: the active one."""
        name = self._known(name or self.active)
        tensors = {}
        for ours, layer in self._layers():
            if name in layer.adapters:
                part = layer.adapter(name)
                stem = PEFT_PREFIX + their_key(ours)
                tensors[f"{stem}.lora_A.weight"] = part.lora_A
                tensors[f"{stem}.lora_B.weight"] = part.lora_B
                if part.magnitude is not None:
                    tensors[f"{stem}.lora_magnitude_vector"] = part.magnitude
        for module, brought in self._brought[name].items():
            tensors |= {f"{PEFT_PREFIX}{module}.{key}": value for key, value in brought.state_dict().items()}
        directory = path_of(directory, AdapterError)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            detached = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(detached, directory / WEIGHTS_FILE, metadata={"format": "pt"})
            text = json.dumps(self.configs[name].to_peft(), indent=2) + "\n"
            (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise AdapterError(f"the adapter cannot be written to {directory}: {error}.") from None

    def activate(self, name: str | None) -> None:
        """Switch to an adapter by name; None: the model without any."""
        if name is not None:
            self._known(name)
        if self.merged:
            self.unmerge()
        for _, layer in self._layers():
            layer.active = name
        for module, own in self._own.items():
            self._put(module, own)
        self._own = {}
        for module, brought in self._brought.get(name or "", {}).items():
            self._own[module] = self._module(module, "modules_to_save")
            self._put(module, brought)
        self.active = name

    def merge(self) -> None:
        """Fold the active adapter into the weights: same scores, no cost at run time. Keeps the old weights for `unmerge`."""
        name = self._known(self.active)
        if self.merged:
            return
        for _, layer in self._layers():
            if name in layer.adapters:
                layer.unmerged = layer.weight.data
                layer.weight.data = layer.adapter(name).merged_weight(layer.weight.data).detach()
        self.merged = True

    def unmerge(self) -> None:
        """Put the weights back as they were, bit by bit. The adapter stays active."""
        for _, layer in self._layers():
            if layer.unmerged is not None:
                layer.weight.data, layer.unmerged = layer.unmerged, None
        self.merged = False

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self._known(name)
        if name == self.active:
            self.activate(None)
        self._detach(name)
        del self.configs[name]

    def parameters(self, name: str | None = None) -> Iterable[nn.Parameter]:
        """What training an adapter changes: its matrices and the modules it brings."""
        name = self._known(name or self.active)
        for _, layer in self._layers():
            if name in layer.adapters:
                yield from layer.adapters[name].parameters()
        for brought in self._brought[name].values():
            yield from brought.parameters()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _layers(self) -> list[tuple[str, LoRALinear]]:
        return [(name, layer) for name, layer in self.model.named_modules() if isinstance(layer, LoRALinear)]

    def _known(self, name: str | None) -> str:
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

    def _module(self, theirs: str, origin: str) -> nn.Module:
        """A module by the checkpoint's name."""
        try:
            return self.model.get_submodule(self._ours(theirs))
        except AttributeError:
            raise AdapterError(f"{origin}: the model has no module {theirs}.") from None

    def _put(self, theirs: str, module: nn.Module) -> None:
        parent, _, leaf = self._ours(theirs).rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module)

    def _attach(self, name: str, theirs: str, config: LoRAConfig) -> LowRank:
        layer = self._module(theirs, CONFIG_FILE)
        if not isinstance(layer, nn.Linear):
            raise AdapterError(f"{theirs} is a {type(layer).__name__}, but adapters go on linear layers only.")
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer)
            self._put(theirs, layer)
        adapter = LowRank(layer, config.rank_of(theirs), config.scale_of(theirs), config.dropout, config.use_dora)
        adapter.train(layer.training)
        layer.adapters[name] = adapter
        return adapter

    def _detach(self, name: str) -> None:
        for _, layer in self._layers():
            if name in layer.adapters:
                del layer.adapters[name]
        self._brought.pop(name, None)

    def _sort(
        self, tensors: dict[str, Tensor], config: LoRAConfig, file: Path
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
        """The file's tensors by layer (low-rank) and by module (saved whole), under the model's parameter names."""
        low_rank: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if tensor.dtype not in FLOAT_TYPES.values():
                raise AdapterError(f"{file}: {key} has type {tensor.dtype}, but must be one of {list(FLOAT_TYPES)}.")
        endings = {
            ".lora_A.weight": "lora_A",
            ".lora_B.weight": "lora_B",
            ".lora_magnitude_vector": "magnitude",
            ".lora_magnitude_vector.weight": "magnitude",
        }
        for key, tensor in tensors.items():
            path = key.removeprefix(PEFT_PREFIX)
            ending = next((end for end in endings if path.endswith(end)), None)
            module = next((m for m in config.modules_to_save if path.startswith(f"{m}.") or f".{m}." in path), None)
            if ending is not None:
                low_rank.setdefault(path.removesuffix(ending), {})[endings[ending]] = tensor
            elif module is not None:
                rest = path[path.index(f"{module}.") + len(module) + 1 :].removeprefix("modules_to_save.default.")
                whole.setdefault(module, {})[rest] = tensor
            else:
                raise AdapterError(f"{file} has an unexpected tensor {key}.")
        if not low_rank:
            raise AdapterError(f"{file} holds no lora_A and lora_B.")
        if absent := [module for module in config.modules_to_save if module not in whole]:
            raise AdapterError(f"{file} lacks the module {absent[0]} that {CONFIG_FILE} lists under modules_to_save.")
        return low_rank, whole

    def _check_complete(self, low_rank: Iterable[str], config: LoRAConfig, file: Path) -> None:
        """The file must have an adapter for each layer that the config targets, by its name in either layout, and no other."""
        present = {self._ours(theirs): theirs for theirs in low_rank}
        for ours, layer in self.model.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            names = [their_key(ours), their_key(ours, NESTED_PREFIXES), *([present[ours]] if ours in present else [])]
            if (wanted := any(map(config.targets, names))) != (ours in present):
                fault = f"lacks lora_A and lora_B of {names[0]}, which" if wanted else f"has an adapter of {names[0]}, which"
                raise AdapterError(f"{file} {fault} {CONFIG_FILE} {'names' if wanted else 'does not name'} as a target.")

    @staticmethod
    def _ours(theirs: str) -> str:
        return (our_key(f"{theirs}.") or "").rstrip(".")

    @staticmethod
    def _fill(target: nn.Module, parts: dict[str, Tensor], name: str, file: Path) -> None:
        for key, parameter in target.named_parameters():
            if key not in parts:
                raise AdapterError(f"{file} lacks {key} of {name}.")
            if parts[key].shape != parameter.shape:
                raise AdapterError(
                    f"{file}: {key} of {name} has shape {list(parts[key].shape)}, but {list(parameter.shape)} is expected."
                )
            parameter.data.copy_(parts.pop(key))
        if parts:
            raise AdapterError(f"{file} has {next(iter(parts))} of {name}, which {CONFIG_FILE} does not announce.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is not a readable JSON file: {error}.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} holds a JSON {type(values).__name__}, not an object.")
    return values
