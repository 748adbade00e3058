"""`config.json` as transformers reads it, in either layout.

A file may leave out every key that transformers' Qwen2VLConfig has a default for, and versions up to 4.51 do leave out of
`vision_config` what equals its default. Such a key means that default, which is seldom the released model's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m0.errors import ConfigError
from m0.json_part import JsonPart, format_value

# Of transformers 5.24.0's Qwen2VLTextConfig and Qwen2VLVisionConfig; older versions have the same. Rotary settings stand under
# rope_scaling or rope_parameters, or the base beside them.
DECODER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 80,
    "rope_theta": 1e6,
    "mrope_section": [16, 24, 24],
}
VISION_DEFAULTS: Mapping[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "hidden_size": 3584,
    "hidden_act": "quick_gelu",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "rope_theta": 1e4,
}
TOKEN_DEFAULTS: Mapping[str, Any] = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
}
M0_DEFAULTS: Mapping[str, Any] = {"score_token_id": 100, "logit_bias": 2.65}
"""Of keys that are m0's alone, where the file has none or null."""
WIDTH_AND_HEADS = ("text.hidden_size", "text.num_attention_heads")
MAX_LAYERS = 4096
MAX_WIDTH = 2**24


class MismatchError(ConfigError):
    """Values that do not go together. `keys`: whose they are in a config.json, each after its part: "text.", "vision." or "top."."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


def split_config(values: Mapping[str, Any]) -> tuple[JsonPart, JsonPart, JsonPart]:
    """The file itself, the decoder's part and the vision tower's. Flat keys do not count beside a `text_config`."""
    top = JsonPart(values, ConfigError, defaults=TOKEN_DEFAULTS)
    nested = values.get("text_config") is not None
    text = top.inner("text_config", DECODER_DEFAULTS) if nested else JsonPart(values, ConfigError, "", DECODER_DEFAULTS)
    return top, text, top.inner("vision_config", VISION_DEFAULTS)


def decoder_sizes(text: JsonPart) -> dict[str, Any]:
    """The arguments of a DecoderConfig. Raises ConfigError."""
    rope = rope_settings(text)
    heads = text.integer("num_attention_heads", highest=MAX_WIDTH)
    multi_head = text.get("num_key_value_heads") is None  # null, which is not absent: as many as there are query heads
    return {
        "hidden_size": text.integer("hidden_size", highest=MAX_WIDTH),
        "num_layers": text.integer("num_hidden_layers", highest=MAX_LAYERS),
        "num_heads": heads,
        "num_kv_heads": heads if multi_head else text.integer("num_key_value_heads", highest=MAX_WIDTH),
        "intermediate_size": text.integer("intermediate_size", highest=MAX_WIDTH),
        "vocab_size": text.integer("vocab_size", highest=MAX_WIDTH),
        "norm_eps": text.number("rms_norm_eps", positive=True),
        "rope_theta": _rope_theta(text, rope),
        "mrope_section": _mrope_section(rope),
        "max_positions": text.integer("max_position_embeddings", highest=2**62),
    }


def vision_sizes(vision: JsonPart) -> dict[str, Any]:
    """The arguments of a VisionConfig. Raises ConfigError.

    `in_chans` and `spatial_patch_size`, which real files hold, are read by no version of transformers, nor here.
    """
    depth, heads = depth_and_heads_keys(vision)
    channels = vision.integer("in_channels")
    if channels != 3:
        raise ConfigError(f"{vision.name}in_channels is {channels}, but a picture has 3: red, green and blue.")
    return {
        "depth": vision.integer(depth, highest=MAX_LAYERS),
        "hidden_size": vision.integer("embed_dim", highest=MAX_WIDTH),
        "num_heads": vision.integer(heads, highest=MAX_WIDTH),
        "mlp_ratio": vision.number("mlp_ratio", positive=True),
        "patch_size": vision.integer("patch_size", highest=1024),
        "temporal_patch_size": vision.integer("temporal_patch_size", highest=64),
        "spatial_merge_size": vision.integer("spatial_merge_size", highest=64),
        "in_channels": channels,
        "rope_theta": _rope_theta(vision, rope_settings(vision)),
    }


def depth_and_heads_keys(vision: JsonPart) -> tuple[str, str]:
    """The keys of depth and heads. Each has another name, which wins where both are there."""
    other = ("num_hidden_layers", "num_attention_heads")
    depth, heads = (b if b in vision.values else a for a, b in zip(("depth", "num_heads"), other, strict=True))
    return depth, heads


def rope_settings(part: JsonPart) -> JsonPart:
    """Its rotary settings: `rope_scaling` where that says anything, else `rope_parameters`.

    Raises ConfigError for
    kinds of rotary positions that m0 does not implement.
    """
    scaling = part.inner("rope_scaling", part.defaults)
    table = scaling if scaling.values else part.inner("rope_parameters", part.defaults)
    for key, value in table.values.items():
        if isinstance(value, Mapping):
            raise ConfigError(f"{table.name}{key} holds rotary settings of its own, which m0 does not implement.")
    return table


def _rope_theta(part: JsonPart, rope: JsonPart) -> float:
    return (rope if "rope_theta" in rope.values else part).number("rope_theta", positive=True)


def _mrope_section(rope: JsonPart) -> tuple[int, int, int]:
    section = rope.get("mrope_section")
    if (
        not isinstance(section, list | tuple)
        or len(section) != 3
        or not all(isinstance(part, int) and not isinstance(part, bool) and part >= 0 for part in section)
    ):
        raise ConfigError(
            f"{rope.name}mrope_section is {format_value(section)}, but must be three whole numbers, none below 0."
        )
    return section[0], section[1], section[2]


def refuse_variants(top: JsonPart, text: JsonPart, vision: JsonPart) -> None:
    """Raises ConfigError for settings of the wider Qwen2-VL family that change the computation and that this model does not use."""
    nested = bool(text.name)
    expected: list[tuple[str, Any, tuple[Any, ...]]] = [
        (f"{text.name}hidden_act", text.get("hidden_act"), ("silu", "swish")),  # two names of one function
        (f"{vision.name}hidden_act", vision.get("hidden_act"), ("quick_gelu",)),
        ("transformers_weights", top.get("transformers_weights"), ("model.safetensors", None)),
    ]
    for part, allowed in ((text, ("default", "mrope")), (vision, ("axial", "default"))):
        rope = rope_settings(part)
        key = "rope_type" if "rope_type" in rope.values else "type"
        expected.append((f"{rope.name}{key}", rope.get(key, "default"), allowed))
    for part in (top, vision, *([text] if nested else [])):
        expected.append((f"{part.name}per_layer_config", part.get("per_layer_config") or None, (None,)))
    for name, value, allowed in expected:
        if value not in allowed:
            raise ConfigError(f"{name} is {format_value(value)}, but m0 implements {format_value(allowed[0])} only.")
    _refuse_head_dim(vision, "embed_dim", depth_and_heads_keys(vision)[1])
    if nested:  # a flat file's is not read
        _refuse_head_dim(text, "hidden_size", "num_attention_heads")
    _refuse_windows(text)


def _refuse_head_dim(part: JsonPart, width: str, heads: str) -> None:
    if not part.get("head_dim"):
        return
    if part.integer("head_dim", highest=MAX_WIDTH) * part.integer(heads) != part.integer(width):
        raise MismatchError(
            f"{part.name}head_dim is {part.get('head_dim')}, but {width} {part.get(width)} is split among {part.get(heads)} heads.",
            *(("vision.embed_dim", "vision.num_heads") if width == "embed_dim" else WIDTH_AND_HEADS),
        )


def _refuse_windows(text: JsonPart) -> None:
    """Layers that see only the last tokens. The setting alone changes nothing: no layer need be among those it is for."""
    layers, kinds = text.integer("num_hidden_layers", highest=MAX_LAYERS), text.get("layer_types")
    if kinds is None:
        window = text.get("use_sliding_window") and text.get("sliding_window") is not None
        first = text.integer("max_window_layers", lowest=0) if window else layers
        if first < layers:
            raise MismatchError(
                f"{text.name}use_sliding_window is {format_value(text.get('use_sliding_window'))} and holds from layer {first} "
                f"(max_window_layers) of {layers}, but m0 implements full attention only.",
                *("text.num_hidden_layers", "text.max_window_layers", "text.sliding_window"),
            )
        return
    if not isinstance(kinds, list | tuple) or len(kinds) != layers:
        given = f"a list of {len(kinds)}" if isinstance(kinds, list | tuple) else format_value(kinds)
        raise MismatchError(
            f"{text.name}layer_types is {given}, but must name the kind of each of the {layers} layers.",
            "text.num_hidden_layers",
        )
    for number, kind in enumerate(kinds):
        if kind not in ("full_attention", "attention"):  # two names of one kind
            raise ConfigError(
                f"{text.name}layer_types makes layer {number} {format_value(kind)}, but m0 implements 'full_attention' only."
            )
