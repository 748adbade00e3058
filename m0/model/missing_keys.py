"""What a message about sizes adds of a config.json that leaves keys out: the reader finds their values nowhere in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m0.errors import ConfigError, M0Error
from m0.json_part import read_object
from m0.model.config_file import M0_DEFAULTS, depth_and_heads_keys, rope_settings, split_config

SHAPE_KEYS = (
    (r"decoder\.embed_tokens\.", "text.vocab_size text.hidden_size"),
    (r"decoder\.layers\..*\.mlp\.", "text.intermediate_size text.hidden_size"),
    (r"decoder\.layers\..*\.[kv]_proj\.", "text.hidden_size text.num_attention_heads text.num_key_value_heads"),
    (r"(decoder|head)\.", "text.hidden_size"),
    (r"vision\.patch_embed\.", "vision.embed_dim vision.patch_size vision.temporal_patch_size vision.in_channels"),
    (r"vision\.blocks\..*\.mlp\.", "vision.embed_dim vision.mlp_ratio"),
    (r"vision\.blocks\.", "vision.embed_dim"),
    (r"vision\.merger\.ln_q\.", "vision.embed_dim"),
    (r"vision\.merger\.", "vision.embed_dim vision.spatial_merge_size text.hidden_size"),
)
"""The keys that the shapes of parameters come from; the first that fits counts."""
COUNT_KEYS = {"decoder.layers.": "text.num_hidden_layers", "vision.blocks.": "vision.depth"}


def keys_of_shape(parameter: str) -> tuple[str, ...]:
    """The keys of a config.json that decide the shape of a parameter, named as in the model."""
    return next((tuple(keys.split()) for pattern, keys in SHAPE_KEYS if re.match(pattern, parameter)), ())


def keys_of_count(parameter: str) -> tuple[str, ...]:
    """The keys that decide whether there is such a parameter."""
    return tuple(key for begin, key in COUNT_KEYS.items() if parameter.startswith(begin))


def find_missing_keys(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Those of the keys that a parsed config.json does not hold, by their full names, and what stands in for them.

    `keys`: after their part, as those of `MismatchError`.
    """
    top, text, vision = split_config(values)
    parts = {"top": top, "text": text, "vision": vision}
    found: dict[str, str] = {}
    for key in keys:
        place, _, name = key.partition(".")
        part = parts[place]
        if name in M0_DEFAULTS:
            if values.get(name) is None:
                found[name] = f"m0's default {M0_DEFAULTS[name]}"
            continue
        if name == "mrope_section":
            part = rope_settings(text)
            where = part.name if part.values else f"{text.name}{'rope_parameters' if text.name else 'rope_scaling'}."
        else:
            where = part.name
        if place == "vision":
            name = dict(zip(("depth", "num_heads"), depth_and_heads_keys(vision), strict=True)).get(name, name)
        if name not in part.values:
            found[f"{where}{name}"] = f"transformers' default {part.defaults[name]}"
    return found


def note_defaults(message: str, values: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The message, and which of the keys it is about are not in the file."""
    notes = ", ".join(f"{name} ({value})" for name, value in find_missing_keys(values, keys).items())
    return f"{message.removesuffix('.')} (not in config.json: {notes})." if notes else message


def note_file_defaults(message: str, path: Path, keys: Iterable[str]) -> str:
    """The same for a file; the message as it is where that cannot be read."""
    try:
        return note_defaults(message, read_object(path, ConfigError), keys)
    except M0Error:
        return message
