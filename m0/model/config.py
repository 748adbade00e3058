"""Sizes of the three parts of the model, read from a hub `config.json` or written to one.

Two layouts are in the wild. The older one keeps the decoder's sizes at the top level; the newer one nests them under
`text_config`. The vision tower is under `vision_config` in both. `RerankerConfig.from_dict` reads either (`m0.model.config_file`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m0.errors import ConfigError
from m0.json_part import format_value, read_object
from m0.model.config_file import (
    M0_DEFAULTS,
    WIDTH_AND_HEADS,
    MismatchError,
    decoder_sizes,
    refuse_variants,
    split_config,
    vision_sizes,
)
from m0.model.missing_keys import note_defaults
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
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Width of the MLP between its two layers."""
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
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class RerankerConfig:
    """The whole model: both parts, the token ids that carry meaning, and the bias of the relevance score.

    Raises ConfigError where sizes or token ids do not go together.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    image_token_id: int = 151655
    score_token_id: int = M0_DEFAULTS["score_token_id"]
    logit_bias: float = M0_DEFAULTS["logit_bias"]
    """relevance = sigmoid(logit - logit_bias)"""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def load(cls, path: str | Path) -> RerankerConfig:
        """Read `config.json` (or the directory that holds it). Raises ConfigError."""
        path = path_of(path, ConfigError)
        path = path / "config.json" if path.is_dir() else path
        values = read_object(path, ConfigError)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RerankerConfig:
        """Build from the parsed `config.json`, either layout; an absent key means what it means to transformers.

        Raises ConfigError on a model that m0 does not implement, naming the key with its part.
        """
        model_type = values.get("model_type")
        if model_type != "qwen2_vl":
            found = format_value(model_type) if "model_type" in values else "not in config.json"
            raise ConfigError(f"model_type is {found}, but m0 implements 'qwen2_vl' only.")
        try:
            return cls(**cls._arguments(values))
        except MismatchError as error:
            raise ConfigError(note_defaults(str(error), values, error.keys)) from None

    @classmethod
    def _arguments(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        top, text, vision = split_config(values)
        refuse_variants(top, text, vision)
        decoder, tower = DecoderConfig(**decoder_sizes(text)), VisionConfig(**vision_sizes(vision))
        tokens = {key: top.integer(key, lowest=0) for key in top.defaults}
        if values.get("score_token_id") is not None:  # these two are m0's own
            tokens["score_token_id"] = top.integer("score_token_id", lowest=0)
        bias = cls.logit_bias if values.get("logit_bias") is None else top.number("logit_bias")
        if (width := vision.integer("hidden_size")) != decoder.hidden_size:
            raise MismatchError(
                f"{vision.name}hidden_size is {width}, but the decoder it feeds has a {text.name}hidden_size of "
                f"{decoder.hidden_size}.",
                *("vision.hidden_size", "text.hidden_size"),
            )
        return {"vision": tower, "decoder": decoder, **tokens, "logit_bias": bias}

    def to_dict(self, layout: str = "hub") -> dict[str, Any]:
        """The `config.json` of this model: layout "hub" (older, decoder sizes at the top) or "nested" (`text_config`).

        Raises ConfigError
        for another layout, and for what a config.json cannot say.
        """
        decoder, vision = self.decoder, self.vision
        if vision.norm_eps != VisionConfig.norm_eps:
            raise ConfigError(f"vision.norm_eps is {vision.norm_eps}, but a config.json can only mean {VisionConfig.norm_eps}.")
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
        usual = vision.rope_theta == VisionConfig.rope_theta  # which older transformers takes for granted
        tower_rope = {} if usual else {"rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta}}
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
                **tower_rope,
            },
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "image_token_id": self.image_token_id,
            "score_token_id": self.score_token_id,
            "logit_bias": self.logit_bias,
            "tie_word_embeddings": True,
        }

    def replace(self, **changes: Any) -> RerankerConfig:
        """The same with some fields changed. Raises ConfigError where they do not go together."""
        return replace(self, **changes)

    def sizes(self) -> dict[str, Any]:
        """All sizes as nested plain values, for printing."""
        return asdict(self)


def _check(config: RerankerConfig) -> None:
    decoder, vision = config.decoder, config.vision
    for part, name in ((decoder, "decoder"), (vision, "vision")):
        for key, value in asdict(part).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}.{key} is {value}, but must be above 0.")
        if part.hidden_size % part.num_heads:
            width = "hidden_size" if part is decoder else "the width (embed_dim)"
            keys = WIDTH_AND_HEADS if part is decoder else ("vision.embed_dim", "vision.num_heads")
            raise MismatchError(f"{name}: {width} {part.hidden_size} is not a multiple of its {part.num_heads} heads.", *keys)
    if not 1 <= vision.mlp_ratio * vision.hidden_size <= 2**20:
        raise MismatchError(
            f"vision.mlp_ratio is {vision.mlp_ratio}, but the MLP must be 1 to {2**20} wide.",
            *("vision.mlp_ratio", "vision.embed_dim"),
        )
    if not math.isfinite(config.logit_bias):
        raise ConfigError(f"logit_bias is {config.logit_bias}, but must be a finite number.")
    if decoder.num_heads % decoder.num_kv_heads:
        raise MismatchError(
            f"decoder: {decoder.num_heads} query heads cannot be shared out over {decoder.num_kv_heads} key/value heads.",
            *("text.num_attention_heads", "text.num_key_value_heads"),
        )
    if 2 * sum(decoder.mrope_section) != decoder.head_dim:
        raise MismatchError(
            f"decoder: mrope_section {list(decoder.mrope_section)} adds up to {sum(decoder.mrope_section)} pairs, "
            f"but a head of {decoder.head_dim} ({decoder.hidden_size} / {decoder.num_heads}) has {decoder.head_dim // 2}.",
            *("text.mrope_section", *WIDTH_AND_HEADS),
        )
    if vision.head_dim % 4:
        raise MismatchError(
            f"vision: a head of {vision.head_dim} cannot be split into pairs for rows and columns.",
            *("vision.embed_dim", "vision.num_heads"),
        )
    ids = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "score_token_id")
    if len({getattr(config, key) for key in ids}) < len(ids):
        values = [getattr(config, key) for key in ids]
        duplicates = (f"top.{key}" for key in ids if values.count(getattr(config, key)) > 1)
        raise MismatchError(f"{', '.join(ids)} are {values}, but must all be different.", *duplicates)
    for key in ids:
        if not 0 <= getattr(config, key) < decoder.vocab_size:
            raise MismatchError(
                f"{key} is {getattr(config, key)}, outside the vocabulary of {decoder.vocab_size}.",
                *(f"top.{key}", "text.vocab_size"),
            )
