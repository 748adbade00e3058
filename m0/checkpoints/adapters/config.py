"""What an adapter is attached to, and what peft's settings mean for one that is finished (`adapter_config.json`).

The file of an adapter holds all that is learned. Most of peft's settings say how that came about, and change nothing any more;
some say how it is computed. `READ`, `WITHOUT_EFFECT` and `REFUSED` hold every setting of peft 0.21 once; docs/reference/adapters.md is the
same in words. Layers are named as in the adapter's own keys, in whichever layout they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m0.errors import AdapterError

ALL_LINEAR = "all-linear"
DEFAULT_RANK, DEFAULT_ALPHA = 8, 8
"""peft's, where its file leaves them out."""
READ = """
    peft_type r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern use_rslora use_dora
    lora_bias bias modules_to_save rank_pattern alpha_pattern init_lora_weights use_qalora qalora_group_size
""".split()
WITHOUT_EFFECT = """
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config fan_in_fan_out
    megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config velora_config monteclora_config
    ensure_weight_tying ephemeral_gpu_offload
""".split()
"""They describe the file, its making, its training, or layers of a kind that this model has none of."""
REFUSED = {
    "trainable_token_indices": "replaces single rows of the token table",
    "alora_invocation_tokens": "adapts only what follows certain tokens",
    "layer_replication": "runs layers several times over",
    "target_parameters": "adapts parameters that are no layer's weight",
    "use_bdlora": "stores block-diagonal matrices",
    "arrow_config": "chooses among several adapters token by token",
    "kasa_config": "takes part of the base weights away",
}
"""Settings that change what a finished adapter computes."""
TABLES = ("use_bdlora", "arrow_config", "kasa_config")
"""Of these even an empty table switches the thing on, with its defaults."""
KEPT_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""Ways to begin that leave the base weights alone."""
MOVED_STARTS = ("pissa", "olora", "corda", "lora_ga")
"""Ways to begin that move part of the base weights into the adapter."""
BIASES = ("none", "all", "lora_only")


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
    """Modules trained whole and kept with the adapter, by the ends of their names; "score" is the score head."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks for layers whose name matches the key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    lora_bias: bool = False
    """Whether the low-rank update has a bias of its own, scaled with it."""
    bias: str = "none"
    """Which of the model's own biases the adapter brings: "none", "lora_only" (of layers it is attached to), "all"."""
    exclude_modules: str | tuple[str, ...] = ()
    """Layers that get no adapter though `target_modules` names them: last parts of names, or a regular expression."""
    layers_to_transform: int | tuple[int, ...] | None = None
    """Numbers of the layers that get an adapter, where `target_modules` holds last parts of names; None: all."""
    layers_pattern: tuple[str, ...] = ()
    """Names of the lists that `layers_to_transform` counts in, as "layers" or "blocks"; empty: any."""

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            object.__setattr__(self, "target_modules", ALL_LINEAR)
        self._check_numbers()
        self._check_kinds()
        self._check_names()
        self._check_patterns()

    def _check_numbers(self) -> None:
        if not _whole(self.r) or self.r < 1:
            raise AdapterError(f"the rank r is {self.r!r}, but must be a whole number of at least 1.")
        for name in ("alpha", "dropout"):
            if not _finite(getattr(self, name)):
                raise AdapterError(f"{name} is {getattr(self, name)!r}, but must be a finite number.")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"dropout is {self.dropout!r}, but must be at least 0 and below 1.")
        for pattern, rank in self.rank_pattern.items():
            if not _whole(rank) or rank < 1:
                raise AdapterError(f"rank_pattern gives {pattern!r} the rank {rank!r}, but must give a whole number above 0.")
        for pattern, alpha in self.alpha_pattern.items():
            if not _finite(alpha):
                raise AdapterError(f"alpha_pattern gives {pattern!r} {alpha!r}, but must give a finite number.")

    def _check_kinds(self) -> None:
        for name in ("use_rslora", "use_dora", "lora_bias"):
            if not isinstance(getattr(self, name), bool):
                raise AdapterError(f"{name} is {getattr(self, name)!r}, but must be true or false.")
        if self.bias not in BIASES:
            raise AdapterError(f"bias is {self.bias!r}, but must be one of {', '.join(map(repr, BIASES))}.")
        if self.use_dora and self.lora_bias:
            raise AdapterError("lora_bias does not go with use_dora, as it does not in peft; choose one.")

    def _check_names(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            value = getattr(self, name)
            if isinstance(value, str) and name in ("target_modules", "exclude_modules"):
                continue
            kinds = tuple | list | set | frozenset
            if not isinstance(value, kinds) or any(not isinstance(part, str) or not part for part in value):
                raise AdapterError(f"{name} is {value!r}, but must hold names.")
        layers = self.layers_to_transform
        numbers = layers if isinstance(layers, tuple | list) else () if layers is None else (layers,)
        if any(not _whole(number) for number in numbers):
            raise AdapterError(f"layers_to_transform is {layers!r}, but must hold whole numbers.")
        if numbers and isinstance(self.target_modules, str):
            raise AdapterError(
                f"layers_to_transform is {layers!r}, but goes with names in target_modules only, not with a regular expression."
            )

    def _check_patterns(self) -> None:
        whole = [value for value in (self.target_modules, self.exclude_modules) if isinstance(value, str)]
        parts = [*self.rank_pattern, *self.alpha_pattern, *self.layers_pattern]
        for pattern, within in [*((p, f"{p}") for p in whole), *((p, f"(.*)({p})$") for p in parts)]:
            try:
                re.compile(pattern)
                re.compile(within)  # "(?i)" may stand at the start only
            except (re.error, TypeError) as error:
                raise AdapterError(f"{pattern!r} is not a regular expression that can be used here: {error}.") from None

    def rank_of(self, name: str) -> int:
        """The rank of a layer, by its name in the adapter's layout."""
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def scale_of(self, name: str) -> float:
        alpha, rank = float(_by_pattern(self.alpha_pattern, name, self.alpha)), self.rank_of(name)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, name: str) -> bool:
        """Whether a layer, by its name in the adapter's layout, gets an adapter (where it is not saved whole)."""
        if self.exclude_modules and _named(name, self.exclude_modules):
            return False
        if self.target_modules == ALL_LINEAR:
            return not name.startswith("score.")
        if isinstance(self.target_modules, str) or name in self.target_modules:
            return _named(name, self.target_modules)
        return _named(name, self.target_modules) and self._counts(name)

    def saves(self, name: str) -> bool:
        """Whether a layer is, or lies in, a module whose whole name `modules_to_save` holds: peft gives it no adapter."""
        return any(re.match(rf"(.*\.)?{re.escape(saved)}(\.|$)", name) for saved in self.modules_to_save)

    def _counts(self, name: str) -> bool:
        """Whether the layer's number is among `layers_to_transform`: the first number that follows a list's name."""
        layers = self.layers_to_transform
        wanted = layers if isinstance(layers, tuple | list) else () if layers is None else (layers,)
        if not wanted:
            return True
        lists = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for pattern in lists if (match := re.match(pattern, name))), None)
        return found is not None and int(found.group(1)) in wanted

    def to_peft(self) -> dict[str, Any]:
        """The settings as peft writes them."""
        return {
            "peft_type": "LORA",
            "task_type": None,
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": _listed(self.target_modules),
            "exclude_modules": _listed(self.exclude_modules) or None,
            "layers_to_transform": _listed(self.layers_to_transform),
            "layers_pattern": _listed(self.layers_pattern) or None,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "lora_bias": self.lora_bias,
            "modules_to_save": list(self.modules_to_save) or None,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "bias": self.bias,
            "fan_in_fan_out": False,
            "inference_mode": True,
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], path: Path) -> LoRAConfig:
        """From what `adapter_config.json` holds. Raises AdapterError on what m0 does not compute, naming the file."""
        _check_settings(values, path)
        targets, excluded = values.get("target_modules") or (), values.get("exclude_modules") or ()
        layers, lists = values.get("layers_to_transform"), values.get("layers_pattern") or ()
        try:
            return cls(
                r=values.get("r", DEFAULT_RANK),
                alpha=values.get("lora_alpha", DEFAULT_ALPHA),
                dropout=values.get("lora_dropout") or 0.0,
                target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
                use_rslora=values.get("use_rslora") or False,
                use_dora=values.get("use_dora") or False,
                modules_to_save=_tuple_of(values.get("modules_to_save")),
                rank_pattern=dict(values.get("rank_pattern") or {}),
                alpha_pattern=dict(values.get("alpha_pattern") or {}),
                lora_bias=values.get("lora_bias") or False,
                bias=values.get("bias") or "none",
                exclude_modules=excluded if isinstance(excluded, str) else tuple(sorted(excluded)),
                layers_to_transform=tuple(layers) if isinstance(layers, list) else layers,
                layers_pattern=(lists,) if isinstance(lists, str) else tuple(lists),
            )
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from None
        except (TypeError, ValueError) as error:
            raise AdapterError(f"{path} misstates a setting: {error}.") from None


def _check_settings(values: Mapping[str, Any], path: Path) -> None:
    """Refuse what changes the computed function and is not implemented."""
    if values.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {values.get('peft_type')!r}, but m0 reads 'LORA' only.")
    for key, value in values.items():
        if value is None or value is False or key in READ or key in WITHOUT_EFFECT:
            continue
        if key in REFUSED and (value or key in TABLES):
            raise AdapterError(f"{path}: {key} is {_short(value)}, which {REFUSED[key]}, and m0 does not implement it.")
        if value and key not in REFUSED:
            raise AdapterError(f"{path}: {key} is {_short(value)}, a setting that m0 does not know.")
    for key in ("r", "lora_alpha"):
        if key in values and values[key] is None:
            raise AdapterError(
                f"{path}: {key} is null, with which nothing can be computed; leave it out for peft's default, 8."
            )
    _check_start(values.get("init_lora_weights"), path)
    if values.get("use_qalora") and values.get("qalora_group_size") == 1:
        raise AdapterError(f"{path}: use_qalora with qalora_group_size 1 scales its input, and m0 does not implement it.")


def _check_start(start: Any, path: Path) -> None:
    """Whether the base weights are still those that the adapter was trained beside."""
    kept = start.lower() if isinstance(start, str) else start
    if kept in KEPT_STARTS:
        return
    said = f"{path}: init_lora_weights is {_short(start)}, "
    if isinstance(kept, str) and kept.startswith(MOVED_STARTS):
        raise AdapterError(
            f"{said}which moved part of the base weights into the adapter, while m0 keeps the model's own; have peft write it as "
            "a plain adapter: save_pretrained(..., path_initial_model_for_weight_conversion=the adapter as it was before training)."
        )
    if kept == "loftq":
        raise AdapterError(f"{said}which belongs to base weights that LoftQ has quantized, while m0 keeps the model's own.")
    raise AdapterError(f"{said}a way to begin that m0 does not know.")


def _named(name: str, wanted: str | Iterable[str]) -> bool:
    """Whether a regular expression fits the whole name, or one of some names is it or its end."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else list(value) if isinstance(value, tuple) else value


def _tuple_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        raise AdapterError(f"modules_to_save is {value!r}, but must hold names.")
    return tuple(value or ())


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
