"""What an adapter is attached to, and what peft's settings mean for one that is finished (`adapter_config.json`).

The file of an adapter holds all that is learned. Most of peft's settings say how that came about, and change nothing any more;
some say how it is computed. `READ_KEYS`, `KEYS_WITHOUT_EFFECT` and `REFUSED_KEYS` hold every setting of peft 0.21 once; docs/reference/adapters.md is the
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
READ_KEYS = """
    peft_type r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern use_rslora use_dora
    lora_bias bias modules_to_save rank_pattern alpha_pattern init_lora_weights use_qalora qalora_group_size
""".split()
KEYS_WITHOUT_EFFECT = """
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config fan_in_fan_out
    megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config velora_config monteclora_config
    ensure_weight_tying ephemeral_gpu_offload
""".split()
"""Keys that describe the file, how it was made or trained, or kinds of layers that this model does not have."""
REFUSED_KEYS = {
    "trainable_token_indices": "replaces single rows of the token table",
    "alora_invocation_tokens": "adapts only what follows certain tokens",
    "layer_replication": "runs layers several times over",
    "target_parameters": "adapts parameters that are no layer's weight",
    "use_bdlora": "stores block-diagonal matrices",
    "arrow_config": "chooses among several adapters token by token",
    "kasa_config": "takes part of the base weights away",
}
"""Settings that change what a finished adapter computes."""
REFUSED_EVEN_IF_EMPTY = ("use_bdlora", "arrow_config", "kasa_config")
"""Keys of REFUSED_KEYS of which even an empty table switches the feature on, with its defaults."""
READABLE_INITS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of init_lora_weights that leave the base weights unchanged, so that such a file can be read."""
REFUSED_INITS = ("pissa", "olora", "corda", "lora_ga")
"""Beginnings of values of init_lora_weights that move part of the base weights into the adapter."""
BIAS_MODES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter is attached to, and how strong it is. Raises AdapterError for settings that cannot be used."""

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
        self._check_modes()
        self._check_names()
        self._check_patterns()

    def _check_numbers(self) -> None:
        if not _is_integer(self.r) or self.r < 1:
            raise AdapterError(f"the rank r is {self.r!r}, but must be a whole number of at least 1.")
        for name in ("alpha", "dropout"):
            if not _is_finite(getattr(self, name)):
                raise AdapterError(f"{name} is {getattr(self, name)!r}, but must be a finite number.")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"dropout is {self.dropout!r}, but must be at least 0 and below 1.")
        for pattern, rank in self.rank_pattern.items():
            if not _is_integer(rank) or rank < 1:
                raise AdapterError(f"rank_pattern gives {pattern!r} the rank {rank!r}, but must give a whole number above 0.")
        for pattern, alpha in self.alpha_pattern.items():
            if not _is_finite(alpha):
                raise AdapterError(f"alpha_pattern gives {pattern!r} {alpha!r}, but must give a finite number.")

    def _check_modes(self) -> None:
        for name in ("use_rslora", "use_dora", "lora_bias"):
            if not isinstance(getattr(self, name), bool):
                raise AdapterError(f"{name} is {getattr(self, name)!r}, but must be true or false.")
        if self.bias not in BIAS_MODES:
            raise AdapterError(f"bias is {self.bias!r}, but must be one of {', '.join(map(repr, BIAS_MODES))}.")
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
        if any(not _is_integer(number) for number in numbers):
            raise AdapterError(f"layers_to_transform is {layers!r}, but must hold whole numbers.")
        if numbers and isinstance(self.target_modules, str):
            raise AdapterError(
                f"layers_to_transform is {layers!r}, but goes with names in target_modules only, not with a regular expression."
            )

    def _check_patterns(self) -> None:
        regexes = [value for value in (self.target_modules, self.exclude_modules) if isinstance(value, str)]
        parts = [*self.rank_pattern, *self.alpha_pattern, *self.layers_pattern]
        for pattern, within in [*((p, f"{p}") for p in regexes), *((p, f"(.*)({p})$") for p in parts)]:
            try:
                re.compile(pattern)
                re.compile(within)  # "(?i)" may stand at the start only
            except (re.error, TypeError) as error:
                raise AdapterError(f"{pattern!r} is not a regular expression that can be used here: {error}.") from None

    def rank_of(self, name: str) -> int:
        """The rank of a layer, by its name in the adapter's layout."""
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def scale_of(self, name: str) -> float:
        """What a layer's update is multiplied by: alpha / r, or alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2023)."""
        alpha, rank = float(_by_pattern(self.alpha_pattern, name, self.alpha)), self.rank_of(name)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, name: str) -> bool:
        """Whether a layer, by its name in the adapter's layout, gets an adapter (where it is not saved whole)."""
        if self.exclude_modules and _matches(name, self.exclude_modules):
            return False
        if self.target_modules == ALL_LINEAR:
            return not name.startswith("score.")
        if isinstance(self.target_modules, str) or name in self.target_modules:
            return _matches(name, self.target_modules)
        return _matches(name, self.target_modules) and self._is_layer_to_transform(name)

    def saves(self, name: str) -> bool:
        """Whether a layer is, or lies in, a module whose whole name `modules_to_save` holds: peft gives it no adapter."""
        return any(re.match(rf"(.*\.)?{re.escape(saved)}(\.|$)", name) for saved in self.modules_to_save)

    def _is_layer_to_transform(self, name: str) -> bool:
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
            "target_modules": _to_list(self.target_modules),
            "exclude_modules": _to_list(self.exclude_modules) or None,
            "layers_to_transform": _to_list(self.layers_to_transform),
            "layers_pattern": _to_list(self.layers_pattern) or None,
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
        if value is None or value is False or key in READ_KEYS or key in KEYS_WITHOUT_EFFECT:
            continue
        if key in REFUSED_KEYS and (value or key in REFUSED_EVEN_IF_EMPTY):
            raise AdapterError(f"{path}: {key} is {_shorten(value)}, which {REFUSED_KEYS[key]}, and m0 does not implement it.")
        if value and key not in REFUSED_KEYS:
            raise AdapterError(f"{path}: {key} is {_shorten(value)}, a setting that m0 does not know.")
    for key in ("r", "lora_alpha"):
        if key in values and values[key] is None:
            raise AdapterError(
                f"{path}: {key} is null, with which nothing can be computed; leave it out for peft's default, 8."
            )
    _check_init(values.get("init_lora_weights"), path)
    if values.get("use_qalora") and values.get("qalora_group_size") == 1:
        raise AdapterError(f"{path}: use_qalora with qalora_group_size 1 scales its input, and m0 does not implement it.")


def _check_init(init: Any, path: Path) -> None:
    """Refuse values of init_lora_weights for which the base weights are not those that the adapter was trained with."""
    init_name = init.lower() if isinstance(init, str) else init
    if init_name in READABLE_INITS:
        return
    message = f"{path}: init_lora_weights is {_shorten(init)}, "
    if isinstance(init_name, str) and init_name.startswith(REFUSED_INITS):
        raise AdapterError(
            f"{message}which moved part of the base weights into the adapter, while m0 keeps the model's own; have peft write it as "
            "a plain adapter: save_pretrained(..., path_initial_model_for_weight_conversion=the adapter as it was before training)."
        )
    if init_name == "loftq":
        raise AdapterError(f"{message}which belongs to base weights that LoftQ has quantized, while m0 keeps the model's own.")
    raise AdapterError(f"{message}a way to begin that m0 does not know.")


def _matches(name: str, wanted: str | Iterable[str]) -> bool:
    """Whether a regular expression fits the whole name, or one of some names is it or its end."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _to_list(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else list(value) if isinstance(value, tuple) else value


def _tuple_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        raise AdapterError(f"modules_to_save is {value!r}, but must hold names.")
    return tuple(value or ())


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
