"""Adapters in peft's file format: which layer or module of the model each tensor belongs to, whatever names the file uses.

peft names layers after the modules of the model that it was given, and transformers renamed these in 4.52:

    layout     decoder                      vision tower          written with
    released   model.*                      visual.*              transformers up to 4.51
    newer      model.language_model.*       model.visual.*        transformers from 4.52
    backbone   language_model.*             visual.*              the newer model without a head (Qwen2VLModel)
    text       *                            (none)                the decoder alone (Qwen2VLTextModel)

A model inside another module puts one more prefix before all of them. A file has one layout, and the patterns of its
`adapter_config.json` are read on the names of this one, as peft does.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from m0.checkpoints.adapters.config import ALL_LINEAR, LoRAConfig
from m0.checkpoints.files import FLOAT_TYPES, HUB_PREFIXES, NESTED_PREFIXES, open_safetensors
from m0.errors import AdapterError
from m0.json_part import read_object
from m0.model.vision import PatchKernel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
LORA_KEY = re.compile(r"(.*)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.(weight|bias))?$")
PART_NAMES = {
    ("lora_A", "weight"): "lora_A",
    ("lora_B", "weight"): "lora_B",
    ("lora_B", "bias"): "lora_bias",
    ("lora_magnitude_vector", None): "magnitude",
    ("lora_magnitude_vector", "weight"): "magnitude",
}
"""peft's names of an adapter's tensors -> ours."""
MODULES_TO_SAVE_PREFIX = re.compile(r"^modules_to_save\.(default\.)?")
"""What peft puts before the names of a saved module's parameters: with bias="all", or in a state that it has not tidied."""
TRAINING_ONLY_PARTS = (".lora_velora_embed", ".lora_monteclora_sampler.")
"""What VeLoRA and MonteCLoRA need while they train; a finished adapter is computed without it."""
TOO_LARGE_TO_SAVE = ("", "decoder", "vision", "decoder.layers", "vision.blocks")
"""Modules that are refused in modules_to_save: a copy would be all of the model, or of one of its halves, or is a list."""
EMBEDDING_MODULE = "decoder.embed_tokens"


@dataclass(frozen=True)
class Layout:
    """One way to name the model's modules: by prefix, ours and theirs."""

    prefixes: Mapping[str, str]

    def theirs(self, ours: str) -> str | None:
        """The layout's name of a module; None where it has none."""
        for prefix, other in self.prefixes.items():
            if f"{ours}.".startswith(prefix):
                return (other + f"{ours}."[len(prefix) :]).rstrip(".") or None
        return None

    def ours(self, theirs: str) -> str | None:
        """The model's name of a module, which there may be or not; None where no prefix fits."""
        for prefix, other in sorted(self.prefixes.items(), key=lambda pair: -len(pair[1])):
            if f"{theirs}.".startswith(other):
                return (prefix + f"{theirs}."[len(other) :]).rstrip(".")
        return None

    def with_prefix(self, outer: str, head_too: bool) -> Layout:
        """The same layout with the prefix `outer`, of a model inside another module."""
        return Layout({o: t if o == "head." and not head_too else outer + t for o, t in self.prefixes.items()})


RELEASED, NEWER = Layout(HUB_PREFIXES), Layout(NESTED_PREFIXES)
BACKBONE = Layout({"decoder.": "language_model.", "vision.": "visual.", "head.": "score."})
TEXT = Layout({"decoder.": "", "head.": "score."})
LAYOUTS = (RELEASED, NEWER, BACKBONE, TEXT)


@dataclass
class AdapterFile:
    """An adapter as its file holds it, under the model's names."""

    layout: Layout
    low_rank: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Of each layer: lora_A, lora_B, and where there are such lora_bias and magnitude."""
    saved_modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Of each module that is saved whole: its parameters."""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """The model's own biases that were trained, by parameter."""


# --- what a config means for a model ------------------------------------------------------------------------------------


def plan_adapter(config: LoRAConfig, modules: Mapping[str, nn.Module]) -> tuple[Layout, list[str], list[str]]:
    """Where a new adapter goes: the layout of its names, the layers it adapts, the modules it brings. Raises AdapterError."""
    layout = next((layout for layout in (RELEASED, NEWER) if _fits(layout, config, modules)), RELEASED)
    layers = [ours for ours in _linear_layers(modules) if (name := layout.theirs(ours)) and config.targets(name)]
    meant = {name: find_modules_to_save(name, layout, modules) for name in config.modules_to_save}
    for name, found in meant.items():
        if not found:
            if any(find_modules_to_save(name, other, modules) for other in (RELEASED, NEWER)):
                raise AdapterError(f"{name} in modules_to_save and what else is named are of two layouts of names; use one.")
            raise AdapterError(f"modules_to_save: {_absent_message(name)}.")
    if not layers:
        raise AdapterError(f"no linear layer is named {config.target_modules!r}.")
    names = list(config.modules_to_save)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AdapterError(f"modules_to_save names {twice} twice; name it once.")
    saved = _check_overlaps(meant, layers, layout, "modules_to_save", refuse_repeats=True)
    return layout, layers, saved


def _fits(layout: Layout, config: LoRAConfig, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the config names something of each kind that it asks for in this layout."""
    if not all(find_modules_to_save(name, layout, modules) for name in config.modules_to_save):
        return False
    return any((name := layout.theirs(ours)) and config.targets(name) for ours in _linear_layers(modules))


def find_modules_to_save(name: str, layout: Layout, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules with parameters whose names end so, as peft reads `modules_to_save`: "norm" is every layer norm as well.

    Raises AdapterError where that is a half of the model.
    """
    found = []
    for ours, module in modules.items():
        theirs = layout.theirs(ours)
        if theirs and theirs.endswith(name) and next(module.parameters(), None) is not None:
            if ours in TOO_LARGE_TO_SAVE:
                raise AdapterError(f"modules_to_save: {name} means {theirs}, too much to be saved whole; name parts of it.")
            found.append(ours)
    return found


def _check_overlaps(
    meant: Mapping[str, list[str]], layers: Iterable[str], layout: Layout, origin: str, refuse_repeats: bool
) -> list[str]:
    """The modules that several names mean together. Raises AdapterError where they overlap, with layers or each other."""
    by_module: dict[str, str] = {}
    for name, found in meant.items():
        for ours in found:
            if refuse_repeats and ours in by_module:
                raise AdapterError(f"{origin}: {by_module[ours]} and {name} both name {layout.theirs(ours)}; name it once.")
            by_module.setdefault(ours, name)
    for inner in by_module:
        for outer in by_module:
            if inner.startswith(f"{outer}."):
                raise AdapterError(
                    f"{origin}: {layout.theirs(inner)} lies in {layout.theirs(outer)}, and both are to be saved; name the outer one."
                )
    for layer in layers:
        if (container := next((m for m in by_module if f"{layer}.".startswith(f"{m}.")), None)) is not None:
            raise AdapterError(
                f"{origin}: {layout.theirs(layer)} is a target and lies in {layout.theirs(container)} of modules_to_save; name it once."
            )
    return list(by_module)


def _linear_layers(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    return (ours for ours, module in modules.items() if isinstance(module, nn.Linear))


def _absent_message(name: str) -> str:
    if name.rpartition(".")[2] == "lm_head":
        return f"{name} is the vocabulary projection, which ranking does not use"
    return f"the model has no module {name}"


# --- reading ------------------------------------------------------------------------------------------------------------


def read_adapter(directory: Path, modules: Mapping[str, nn.Module]) -> tuple[LoRAConfig, AdapterFile]:
    """Read an adapter's two files. `modules`: the model's, by name. Raises AdapterError, CheckpointError."""
    config = LoRAConfig.from_peft(read_object(directory / CONFIG_FILE, AdapterError), directory / CONFIG_FILE)
    file = directory / WEIGHTS_FILE
    if not file.exists() and (pickle := directory / "adapter_model.bin").exists():
        raise AdapterError(f"{pickle} is a pickle, which can run code when read, and is refused; convert it to safetensors.")
    tensors: dict[str, Tensor] = {}
    with open_safetensors(file) as handle:
        for key in handle.keys():
            path, tensor = key.removeprefix(PEFT_PREFIX), handle.get_tensor(key)
            if tensor.dtype not in FLOAT_TYPES.values():
                raise AdapterError(f"{file}: {key} has type {tensor.dtype}, but must be one of {list(FLOAT_TYPES)}.")
            if path in tensors:
                raise AdapterError(f"{file} holds {path} twice, with the prefix {PEFT_PREFIX} and without.")
            tensors[path] = tensor
    return _Reader(file, config, tensors, modules).read()


class _Reader:
    """One file's way from peft's names to ours."""

    def __init__(self, file: Path, config: LoRAConfig, tensors: dict[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
        self.file, self.config, self.tensors, self.modules = file, config, tensors, modules

    def read(self) -> tuple[LoRAConfig, AdapterFile]:
        low_rank, rest = self._split_low_rank()
        layout = self._find_layout(list(low_rank))
        found = AdapterFile(layout)
        for path, parts in low_rank.items():
            ours = layout.ours(path) or ""
            if isinstance(self.modules[ours], PatchKernel):
                parts = {key: part.flatten(1 if part.ndim > 2 and key != "magnitude" else 0) for key, part in parts.items()}
            found.low_rank[ours] = parts
        meant = {}
        for name in dict.fromkeys(self.config.modules_to_save):
            try:
                meant[name] = find_modules_to_save(name, layout, self.modules)
            except AdapterError as error:
                raise AdapterError(f"{self.file}: {error}") from None
        saved = _check_overlaps(meant, found.low_rank, layout, str(self.file), refuse_repeats=False)
        for path, tensor in rest.items():
            self._place(path, tensor, found, saved, meant)
        for name, members in meant.items():
            if absent := [ours for ours in members if ours not in found.saved_modules]:
                raise AdapterError(
                    f"{self.file} lacks the module {layout.theirs(absent[0])} that {CONFIG_FILE} lists as {name} in modules_to_save."
                )
        kept = tuple(name for name, members in meant.items() if members)
        return replace(self.config, modules_to_save=kept), found

    def _split_low_rank(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """The low-rank tensors by layer, in the file's names, and the others."""
        low_rank: dict[str, dict[str, Tensor]] = {}
        rest = {}
        for path, tensor in self.tensors.items():
            if any(part in path for part in TRAINING_ONLY_PARTS):
                continue
            match = LORA_KEY.match(path)
            part = PART_NAMES.get((match.group(2), match.group(3))) if match else None
            if match is None or part is None:
                rest[path] = tensor
            elif part in low_rank.setdefault(match.group(1), {}):
                raise AdapterError(f"{self.file} holds {part} of {match.group(1)} twice.")
            else:
                low_rank[match.group(1)][part] = tensor
        for path in rest:
            if ".lora_embedding_" in path:
                name = path.partition(".lora_embedding_")[0]
                raise AdapterError(
                    f"{self.file} has an adapter of {name}, a token table, but adapters go on linear layers only."
                )
        if not low_rank:
            raise AdapterError(f"{self.file} holds no lora_A and lora_B.")
        return low_rank, rest

    def _find_layout(self, paths: list[str]) -> Layout:
        """The layout that all layers' names are of. Where several are, one whose names agree with the config."""
        fitting = [layout for layout in LAYOUTS if all(self._is_layer(layout, path) for path in paths)]
        fitting = fitting or [
            layout for layout in self._prefixed_layouts(paths[0]) if all(self._is_layer(layout, path) for path in paths)
        ]
        if not fitting:
            self._refuse_names(paths)
        mismatches = [self._find_mismatch(layout, {layout.ours(path) for path in paths}) for layout in fitting]
        if None not in mismatches:
            raise AdapterError(mismatches[0])
        return fitting[mismatches.index(None)]

    def _is_layer(self, layout: Layout, path: str) -> bool:
        return isinstance(self.modules.get(layout.ours(path) or ""), nn.Linear | PatchKernel)

    def _prefixed_layouts(self, path: str) -> Iterator[Layout]:
        """The layouts of a model inside another module, with the prefix that this name then has."""
        parts = path.split(".")
        for start in range(1, len(parts)):
            outer = ".".join(parts[:start]) + "."
            for layout in LAYOUTS:
                if self._is_layer(layout, path.removeprefix(outer)):
                    yield layout.with_prefix(outer, any(key.startswith(f"{outer}score.") for key in self.tensors))

    def _refuse_names(self, paths: list[str]) -> None:
        places = {path: [layout for layout in LAYOUTS if self._is_layer(layout, path)] for path in paths}
        unknown = next((path for path in paths if not places[path]), None)
        if unknown is None:
            kinds = {tuple(map(id, found)): path for path, found in places.items()}
            pairs = itertools.combinations(kinds.items(), 2)
            one, other = next((a[1], b[1]) for a, b in pairs if not set(a[0]) & set(b[0]))
            raise AdapterError(f"{self.file} mixes two layouts of names, as {one} and {other}.")
        if not any(places.values()):
            raise AdapterError(f"{self.file} fits no layer of the model; its first is {unknown}.")
        ours = next((name for layout in LAYOUTS if (name := layout.ours(unknown)) in self.modules), None)
        if ours is not None:
            kind = type(self.modules[ours]).__name__
            raise AdapterError(f"{self.file}: {unknown} is a {kind}, but adapters go on linear layers only.")
        raise AdapterError(f"{self.file} has an adapter of {unknown}, but {_absent_message(unknown)}.")

    def _find_mismatch(self, layout: Layout, present: set[str | None]) -> str | None:
        """The file must have an adapter for each linear layer that the config targets, and no other; a sentence where not."""
        for ours, module in self.modules.items():
            name = layout.theirs(ours)
            if not isinstance(module, nn.Linear | PatchKernel) or name is None:
                continue
            if self.config.target_modules == ALL_LINEAR and ours.startswith("head."):
                continue  # peft counts the head in, or not, by the kind of the model
            wanted = self.config.targets(name) and not self.config.saves(name)
            if wanted and ours not in present and isinstance(module, nn.Linear):
                return f"{self.file} lacks lora_A and lora_B of {name}, which {CONFIG_FILE} names as a target."
            if not wanted and ours in present:
                return f"{self.file} has an adapter of {name}, which {CONFIG_FILE} does not name as a target."
        return None

    def _place(self, path: str, tensor: Tensor, found: AdapterFile, saved: list[str], meant: dict[str, list[str]]) -> None:
        """Sort in a tensor that is not low-rank."""
        layout = found.layout
        for ours in saved:
            name = layout.theirs(ours)
            if path.startswith(f"{name}."):
                rest = path[len(f"{name}.") :]
                if rest.startswith("original_module.") and self.config.bias != "none":
                    return  # the model's own bias, which the saved module stands in for
                found.saved_modules.setdefault(ours, {})[MODULES_TO_SAVE_PREFIX.sub("", rest)] = tensor
                return
        if path == f"{layout.theirs(EMBEDDING_MODULE)}.weight":
            found.saved_modules[EMBEDDING_MODULE] = {
                "weight": tensor
            }  # peft adds it where the vocabulary was changed, or on demand
            return
        if path.endswith(".bias") and self.config.bias != "none":
            owner = layout.ours(path.removesuffix(".bias").removesuffix(".base_layer")) or ""
            if getattr(self.modules.get(owner), "bias", None) is not None:
                found.biases[f"{owner}.bias"] = tensor
                return
        for name, members in meant.items():
            if not members and (path.startswith(f"{name}.") or f".{name}." in path):
                raise AdapterError(f"{self.file} holds {path}, as modules_to_save announces, but {_absent_message(name)}.")
        if path.rpartition("lm_head.")[2] == "weight":
            return  # the model's own, which peft adds together with the token table
        raise AdapterError(f"{self.file} has an unexpected tensor {path}.")


def fill_parameters(target: nn.Module, parts: Mapping[str, Tensor], name: str, file: Path) -> None:
    """Put a file's tensors, of any shape that the module has, in the place of its parameters. Raises AdapterError where one lacks, has another shape or is not finite."""
    for key, parameter in target.named_parameters():
        if key not in parts:
            raise AdapterError(f"{file} lacks {key} of {name}.")
        if parts[key].shape != parameter.shape:
            raise AdapterError(
                f"{file}: {key} of {name} has shape {list(parts[key].shape)}, but {list(parameter.shape)} is expected."
            )
        if not torch.isfinite(parts[key]).all():
            raise AdapterError(
                f"{file}: {key} of {name} holds what is no finite number; the file is damaged, or its training went wrong."
            )
        parameter.data.copy_(parts[key])
    own = {key for key, _ in target.named_parameters()}
    if extra := next((key for key in parts if key not in own), None):
        raise AdapterError(f"{file} has {extra} of {name}, which {CONFIG_FILE} does not announce.")


# --- writing ------------------------------------------------------------------------------------------------------------


def write_adapter(directory: Path, config: LoRAConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's two files. `tensors`: by name without peft's prefix, of any shape. Raises AdapterError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        detached = {PEFT_PREFIX + key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(detached, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(config.to_peft(), indent=2) + "\n"
        (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"the adapter cannot be written to {directory}: {error}.") from None


def low_rank_tensors(stem: str, parts: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """One layer's low-rank tensors under peft's names: lora_A (rank, inputs), lora_B (outputs, rank), bias and magnitude (outputs,). Those of a
    convolution have as many axes as its kernel, `weight`: lora_A (rank, channels, ...), lora_B (outputs, rank, 1, ...)."""
    ones = (1,) * (weight.ndim - 2)
    found = {f"{stem}.lora_A.weight": parts["lora_A"].reshape(-1, *weight.shape[1:])}
    found[f"{stem}.lora_B.weight"] = parts["lora_B"].reshape(*parts["lora_B"].shape, *ones)
    if "lora_bias" in parts:
        found[f"{stem}.lora_B.bias"] = parts["lora_bias"]
    if "magnitude" in parts:
        found[f"{stem}.lora_magnitude_vector"] = parts["magnitude"].reshape((1, -1, *ones) if ones else (-1,))
    return found
