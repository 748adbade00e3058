"""Modules that have moved: their old names go on for one version, with a DeprecationWarning.

m0.images -> m0.inputs.images, m0.documents -> m0.engine.prefix_cache, ...
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "attention": ("model.attention",),
    "batch": ("engine.batch",),
    "calls": ("locks",),
    "cascade": ("engine.cascade",),
    "checkpoint": ("checkpoints.files", "checkpoints.image_settings"),
    "config": ("model.config",),
    "decoder": ("model.decoder",),
    "documents": ("engine.prefix_cache",),
    "fused": ("model.fused",),
    "head": ("model.head",),
    "hub": ("checkpoints.hub",),
    "images": ("inputs.images", "inputs.opening"),
    "linear": ("model.linear",),
    "lora": ("checkpoints.adapters.config", "checkpoints.adapters.switching", "checkpoints.adapters.layers"),
    "mapped": ("checkpoints.mapped_memory",),
    "parallel": ("engine.parallel",),
    "prompt": ("inputs.prompt", "inputs.reading", "inputs.ahead"),
    "quantize": ("engine.quantize",),
    "rotary": ("model.rotary",),
    "tensor_parallel": ("engine.tensor_parallel",),
    "vision": ("model.vision",),
}
"""Old name -> where its contents are now, in the order in which a name is looked for."""


RENAMED = {
    "Adapted": "LoRALayer",
    "Beginning": "TokenSequence",
    "DocumentState": "CachedPrefix",
    "KeptLayers": "CachedLayers",
    "MEAN": "IMAGE_MEAN",
    "MIN_ROWS": "MIN_UPCAST_ROWS",
    "MOST_THREADS": "MAX_THREADS",
    "Named": "ModulesByName",
    "Opened": "OpenedImage",
    "PATTERNS": "DOWNLOAD_PATTERNS",
    "PREFIXES": "KEY_PREFIXES",
    "PREPROCESSOR": "PREPROCESSOR_FILE",
    "PROCESSOR": "PROCESSOR_FILE",
    "READ": "READ_KEYS",
    "REFUSED": "REFUSED_KEYS",
    "SHIPPED": "SHIPPED_MODEL",
    "STD": "IMAGE_STD",
    "TORCHRUN": "TORCHRUN_VARIABLES",
    "WIDENED": "UPCAST_CHUNK_NUMBERS",
    "WINNERS": "PRECEDENCE",
    "WITHOUT_EFFECT": "KEYS_WITHOUT_EFFECT",
    "agreed": "gather_objects",
    "alike": "group_equal",
    "by_float32": "linear_in_float32",
    "compute_states": "compute_prefixes",
    "has_ragged_kernel": "has_varlen_kernel",
    "picture_files": "image_settings_files",
    "read_side": "read_parts_and_warn",
    "release": "release_pages",
    "sent": "to_device",
    "shared_out": "distribute_work",
    "warn_of_files": "warn_if_files",
    "widening_pays": "should_upcast",
    "without_warnings": "suppress_warnings",
    "worth_keeping": "select_unquantized",
    "write_beside": "write_atomically",
}
"""What was in these modules by another name."""


class MovedModules(MetaPathFinder, Loader):
    """Finds a module by its old name. It comes last: what exists by that name is never touched."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "m0" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        homes = MOVED[spec.name.rpartition(".")[2]]
        warnings.warn(
            f"{spec.name} is now m0.{homes[0]}; the old name goes with the next version.",
            DeprecationWarning,
            stacklevel=2,
        )
        module = ModuleType(spec.name, f"Now m0.{homes[0]}.")

        def look_up(name: str) -> Any:
            name = RENAMED.get(name, name)
            for home in homes:
                if hasattr(found := import_module(f"m0.{home}"), name):
                    return getattr(found, name)
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = look_up
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run: names are looked up when they are asked for."""
