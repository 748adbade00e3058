"""Sizes of the three parts of the model, read from a hub `config.json` or written to one.

Two layouts are in the wild. The older one keeps the decoder's sizes at the top level; the newer one nests them under
`text_config`. The vision tower is under `vision_config` in both. `RerankerConfig.from_dict` reads either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m0.errors import ConfigError
from m0.paths import path_of


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: a ViT on 14x14 patches with 2-D rotary positions, and the 2x2 merger. Defaults: the released model."""

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x temporal x height x width (1176)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of a 2x2 block of patches laid side by side (5120)."""
        return self.hidden_size * self.spatial_merge_size**2


@dataclass(frozen=True)
class DecoderConfig:
    """The language model: a Qwen2 decoder with multimodal rotary positions (M-RoPE). Defaults: the released model."""

    hidden_size: int = 1536
    num_layers: int = 28
    num_heads: int = 12
    num_kv_heads: int = 2
    intermediate_size: int = 8960
    vocab_size: int = 151936
    norm_eps: float = 1e-6
    rope_theta: float = 1000000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    max_positions: int = 32768

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class RerankerConfig:
    """The whole model: both parts, the token ids that carry meaning, and the bias of the relevance score."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    image_token_id: int = 151655
    score_token_id: int = 100
    logit_bias: float = 2.65
    """relevance = sigmoid(logit - logit_bias)"""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def load(cls, path: str | Path) -> RerankerConfig:
        """Read `config.json` (or the directory that holds it). Raises ConfigError."""
        path = path_of(path, ConfigError)
        path = path / "config.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a readable JSON file: {error}.") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a JSON {type(values).__name__}, not an object.")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RerankerConfig:
        """Build from the parsed `config.json`, either layout. Raises ConfigError on a model that m0 does not implement."""
        model_type = values.get("model_type")
        if model_type != "qwen2_vl":
            raise ConfigError(f"model_type is {model_type!r}, but m0 implements 'qwen2_vl' only.")
        text = values.get("text_config") or values
        vision = values.get("vision_config")
        if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
            raise ConfigError("vision_config and text_config must be JSON objects.")
        rope = _table(text, "rope_parameters") or _table(text, "rope_scaling")
        _refuse_variants(text, vision, rope)
        decoder_config = DecoderConfig(
            hidden_size=_integer(text, "hidden_size"),
            num_layers=_integer(text, "num_hidden_layers"),
            num_heads=_integer(text, "num_attention_heads"),
            num_kv_heads=_integer(text, "num_key_value_heads", default=text.get("num_attention_heads")),
            intermediate_size=_integer(text, "intermediate_size"),
            vocab_size=_integer(text, "vocab_size"),
            norm_eps=_number(text, "rms_norm_eps", 1e-6),
            rope_theta=_number({**text, **rope}, "rope_theta", 1e6),
            mrope_section=_section(rope),
            max_positions=_integer(text, "max_position_embeddings", default=32768),
        )
        vision_rope = _table(vision, "rope_parameters")
        vision_config = VisionConfig(
            depth=_integer(vision, "depth"),
            hidden_size=_integer(vision, "embed_dim"),
            num_heads=_integer(vision, "num_heads"),
            mlp_ratio=_number(vision, "mlp_ratio", 4.0),
            patch_size=_integer(vision, "patch_size", default=vision.get("spatial_patch_size", 14)),
            temporal_patch_size=_integer(vision, "temporal_patch_size", default=2),
            spatial_merge_size=_integer(vision, "spatial_merge_size", default=2),
            in_channels=_integer(vision, "in_channels", default=vision.get("in_chans", 3)),
            rope_theta=_number(vision_rope, "rope_theta", 10000.0),
        )
        output = vision.get("hidden_size", decoder_config.hidden_size)
        if output != decoder_config.hidden_size:
            raise ConfigError(
                f"vision_config.hidden_size is {output}, but the decoder it feeds has hidden_size {decoder_config.hidden_size}."
            )
        defaults = cls()
        return cls(
            vision=vision_config,
            decoder=decoder_config,
            vision_start_token_id=_integer(values, "vision_start_token_id", default=defaults.vision_start_token_id),
            vision_end_token_id=_integer(values, "vision_end_token_id", default=defaults.vision_end_token_id),
            image_token_id=_integer(values, "image_token_id", default=defaults.image_token_id),
            score_token_id=_integer(values, "score_token_id", default=defaults.score_token_id),
            logit_bias=_number(values, "logit_bias", defaults.logit_bias),
        )

    def to_dict(self, layout: str = "hub") -> dict[str, Any]:
        """The `config.json` of this model: layout "hub" (older, decoder sizes at the top) or "nested" (`text_config`)."""
        decoder, vision = self.decoder, self.vision
        rope = {"type": "mrope", "mrope_section": list(decoder.mrope_section)}
        text: dict[str, Any] = {
            "hidden_size": decoder.hidden_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "intermediate_size": decoder.intermediate_size,
            "vocab_size": decoder.vocab_size,
            "hidden_act": "silu",
            "rms_norm_eps": decoder.norm_eps,
            "max_position_embeddings": decoder.max_positions,
            "use_sliding_window": False,
        }
        if layout == "hub":
            text |= {"rope_theta": decoder.rope_theta, "rope_scaling": rope}
        elif layout == "nested":
            parameters = {**rope, "rope_type": "default", "rope_theta": decoder.rope_theta}
            text = {"text_config": {**text, "model_type": "qwen2_vl_text", "rope_parameters": parameters}}
        else:
            raise ConfigError(f"layout is {layout!r}, but must be 'hub' or 'nested'.")
        return {
            "model_type": "qwen2_vl",
            "architectures": ["JinaVLForRanking"],
            **text,
            "vision_config": {
                "model_type": "qwen2_vl",
                "depth": vision.depth,
                "embed_dim": vision.hidden_size,
                "num_heads": vision.num_heads,
                "mlp_ratio": int(vision.mlp_ratio) if vision.mlp_ratio == int(vision.mlp_ratio) else vision.mlp_ratio,
                "hidden_size": decoder.hidden_size,
                "hidden_act": "quick_gelu",
                "patch_size": vision.patch_size,
                "spatial_patch_size": vision.patch_size,
                "temporal_patch_size": vision.temporal_patch_size,
                "spatial_merge_size": vision.spatial_merge_size,
                "in_channels": vision.in_channels,
                "in_chans": vision.in_channels,
            },
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "image_token_id": self.image_token_id,
            "score_token_id": self.score_token_id,
            "logit_bias": self.logit_bias,
            "tie_word_embeddings": True,
        }

    def replace(self, **changes: Any) -> RerankerConfig:
        return replace(self, **changes)

    def sizes(self) -> dict[str, Any]:
        """All sizes as nested plain values, for printing."""
        return asdict(self)


def _refuse_variants(text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Settings of the wider Qwen2-VL family that change the computation and that this model does not use."""
    expected: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("hidden_act", text.get("hidden_act", "silu"), ("silu",)),
        ("vision_config.hidden_act", vision.get("hidden_act", "quick_gelu"), ("quick_gelu",)),
        ("use_sliding_window", text.get("use_sliding_window", False), (False, None)),
        ("rope type", rope.get("rope_type", rope.get("type", "default")), ("default", "mrope")),
    )
    for name, value, allowed in expected:
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}, but m0 implements {allowed[0]!r} only.")


def _check(config: RerankerConfig) -> None:
    decoder, vision = config.decoder, config.vision
    for part, name in ((decoder, "decoder"), (vision, "vision")):
        for key, value in asdict(part).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}.{key} is {value}, but must be above 0.")
        if part.hidden_size % part.num_heads:
            raise ConfigError(f"{name}: hidden_size {part.hidden_size} is not a multiple of its {part.num_heads} heads.")
    if vision.mlp_ratio * vision.hidden_size > 2**20:
        raise ConfigError(f"vision.mlp_ratio is {vision.mlp_ratio}, but the MLP may be {2**20} wide at most.")
    if not math.isfinite(config.logit_bias):
        raise ConfigError(f"logit_bias is {config.logit_bias}, but must be a finite number.")
    if decoder.num_heads % decoder.num_kv_heads:
        raise ConfigError(
            f"decoder: {decoder.num_heads} query heads cannot be shared out over {decoder.num_kv_heads} key/value heads."
        )
    if 2 * sum(decoder.mrope_section) != decoder.head_dim:
        raise ConfigError(
            f"decoder: mrope_section {list(decoder.mrope_section)} adds up to {sum(decoder.mrope_section)} pairs, "
            f"but a head of {decoder.head_dim} has {decoder.head_dim // 2}."
        )
    if vision.head_dim % 4:
        raise ConfigError(f"vision: a head of {vision.head_dim} cannot be split into pairs for rows and columns.")
    ids = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "score_token_id")
    if len({getattr(config, key) for key in ids}) < len(ids):
        raise ConfigError(f"{', '.join(ids)} are {[getattr(config, key) for key in ids]}, but must all be different.")
    for key in ids:
        if not 0 <= getattr(config, key) < decoder.vocab_size:
            raise ConfigError(f"{key} is {getattr(config, key)}, outside the vocabulary of {decoder.vocab_size}.")


def _integer(values: Mapping[str, Any], key: str, default: Any = None) -> int:
    value = values.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"{key} is missing.")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key} is {value!r}, but must be a whole number.")
    return value


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is {value!r}, but must be a number.")
    return float(value)


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {value!r}, but must be a JSON object.")
    return value


def _section(rope: Mapping[str, Any]) -> tuple[int, int, int]:
    section = rope.get("mrope_section", [16, 24, 24])
    if (
        not isinstance(section, list | tuple)
        or len(section) != 3
        or not all(isinstance(part, int) and not isinstance(part, bool) and part >= 0 for part in section)
    ):
        raise ConfigError(f"mrope_section is {section!r}, but must be three whole numbers, none below 0.")
    return section[0], section[1], section[2]
