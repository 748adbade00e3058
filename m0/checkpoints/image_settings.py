"""How a checkpoint says that pictures are to be resized.

transformers 4 writes the settings to preprocessor_config.json; transformers 5 to processor_config.json, under `image_processor`.
Where a folder has both, the latter counts, as in transformers 5. Settings that would make other patches than `m0.inputs.images` does are
refused: only the limits of the size are free.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m0.errors import CheckpointError, ImageError
from m0.inputs.images import IMAGE_MEAN, IMAGE_STD, PIXEL_LIMITS_ORDER, ImageSettings
from m0.json_part import JsonPart, format_value, read_object
from m0.locks import level_of_caller
from m0.model.config import RerankerConfig, VisionConfig
from m0.model.missing_keys import note_file_defaults
from m0.paths import path_of

PREPROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
PROCESSOR_KEY = "image_processor"
PROCESSOR_TYPE_PATTERN = r"Qwen2(_5_)?VLImageProcessor(Fast|Pil)?"
"""The classes whose patches ours equal."""
BICUBIC = 3
"""As Pillow and torchvision number the ways of resizing."""


def load_image_settings(
    directory: str | Path, config: RerankerConfig, overrides: Mapping[str, int | None] | None = None
) -> ImageSettings:
    """How pictures are resized for this checkpoint: patch sizes from its config, limits from processor_config.json or
    preprocessor_config.json.

    Each limit is taken from the first place that has it: min_pixels and max_pixels; size.shortest_edge and size.longest_edge;
    size.min_pixels and size.max_pixels; 3136 and 602112. Where a file asks for more than 602112 pixels, as the released one does,
    602112 is used, which the vendor's code sets (see the model card's usage). Warns where the two files contradict each other.

    `overrides`: what a user wants in place of the checkpoint's min_pixels, max_pixels and max_image_pixels; None: as there.
    Raises CheckpointError, and ImageError where it is what was given that cannot be used.
    """
    overrides = {key: value for key, value in (overrides or {}).items() if value is not None}
    files = [
        path
        for path in (
            path_of(directory, CheckpointError) / PROCESSOR_FILE,
            path_of(directory, CheckpointError) / PREPROCESSOR_FILE,
        )
        if path.exists()
    ]
    found: dict[Path, _FileLimits] = {}
    for path in files:
        try:
            if (part := _read_part(path)) is not None:
                limits = _read_limits(part, path, config.vision)
                if found:
                    limits.settings(config.vision, {})
                found[path] = limits
        except CheckpointError as error:
            if not found:
                raise
            warnings.warn(f"{str(error).removesuffix('.')}; {PROCESSOR_FILE} was used.", stacklevel=level_of_caller())
    if not found:
        return _FileLimits().settings(config.vision, overrides)
    used, *others = found
    settings = found[used].settings(config.vision, overrides)
    for other in others:
        if found[other].effective != found[used].effective:
            warnings.warn(
                f"{_format_limits(found, other)} contradicts {_format_limits(found, used)}, which was used.",
                stacklevel=level_of_caller(),
            )
    return settings


@dataclass(frozen=True)
class _FileLimits:
    """A file's limits of the resized picture; None: it has none."""

    file: str = ""
    name: str = ""
    """Of the part of it that holds them, for messages."""
    lowest: int | None = None
    highest: int | None = None

    @property
    def effective(self) -> tuple[int, int]:
        default = ImageSettings.max_pixels
        return self.lowest or ImageSettings.min_pixels, min(self.highest or default, default)

    def settings(self, vision: VisionConfig, overrides: Mapping[str, Any]) -> ImageSettings:
        """`overrides` wins. Raises CheckpointError and ImageError, which say where a limit comes from."""
        values: dict[str, Any] = {**dict(zip(("min_pixels", "max_pixels"), self.effective, strict=True)), **overrides}
        try:
            return replace(_default_settings(vision), **values)
        except ImageError as error:
            message = str(error)
        if message.endswith(PIXEL_LIMITS_ORDER):
            lowest, highest = (f"{values[key]}{self._origin(key, overrides)}" for key in ("min_pixels", "max_pixels"))
            message = f"min_pixels is {lowest} and max_pixels {highest}{PIXEL_LIMITS_ORDER}"
        if overrides:
            raise ImageError(message)
        raise CheckpointError(f"{self.name}: {message}")

    def _origin(self, key: str, overrides: Mapping[str, Any]) -> str:
        own = self.lowest if key == "min_pixels" else self.highest
        if key in overrides:
            return " (as given)"
        if own is None:
            return " (m0's default)"
        if key == "max_pixels" and own > ImageSettings.max_pixels:
            return f" (the most that m0 takes where max_pixels is not given; {self.file} says {own})"
        return f" (of {self.file})" if overrides else ""


def _format_limits(found: Mapping[Path, _FileLimits], path: Path) -> str:
    lowest, highest = found[path].effective
    return f"{path} ({lowest} to {highest} pixels)"


def _read_part(path: Path) -> JsonPart | None:
    """The file's picture settings; None for a processor_config.json that has none, as older ones do not."""
    part = JsonPart(read_object(path, CheckpointError), CheckpointError, f"{path}: ")
    if path.name == PREPROCESSOR_FILE:
        return part
    return part.inner(PROCESSOR_KEY) if part.get(PROCESSOR_KEY) is not None else None


def _default_settings(vision: VisionConfig) -> ImageSettings:
    return ImageSettings(
        patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size, merge_size=vision.spatial_merge_size
    )


def _read_limits(part: JsonPart, path: Path, vision: VisionConfig) -> _FileLimits:
    _check_patch_settings(part, path, vision)
    size = part.inner("size")
    lowest = _first_limit((part, "min_pixels"), (size, "shortest_edge"), (size, "min_pixels"))
    highest = _first_limit((part, "max_pixels"), (size, "longest_edge"), (size, "max_pixels"))
    if part.get("size") is not None and None in (lowest, highest):
        raise CheckpointError(
            f"{part.name}size is {format_value(part.get('size'))}, but must hold shortest_edge and longest_edge, or min_pixels and "
            f"max_pixels."
        )
    return _FileLimits(path.name, part.name.rstrip(".: "), lowest, highest)


def _first_limit(*places: tuple[JsonPart, str]) -> int | None:
    for part, key in places:
        value = part.get(key)
        if isinstance(value, float) and value.is_integer():  # 12544.0 is as good to transformers
            part = JsonPart({key: int(value)}, part.error, part.name)
        if value is not None:
            return part.integer(key, highest=2**62)
    return None


def _check_patch_settings(part: JsonPart, path: Path, vision: VisionConfig) -> None:
    kind = part.get("image_processor_type")
    if kind is not None and not (isinstance(kind, str) and re.fullmatch(PROCESSOR_TYPE_PATTERN, kind)):
        raise CheckpointError(
            f"{part.name}image_processor_type is {format_value(kind)}, but m0 implements 'Qwen2VLImageProcessor' only."
        )
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    for key, expected in sizes.items():
        if (value := part.get(key)) is not None and not _equals(value, expected):
            message = f"{part.name}{key} is {format_value(value)}, but by the model's config.json it is {expected}."
            name = "spatial_merge_size" if key == "merge_size" else key
            raise CheckpointError(note_file_defaults(message, path.parent / "config.json", [f"vision.{name}"]))
    ours: dict[str, Any] = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True)
    ours |= {"resample": BICUBIC, "rescale_factor": 1 / 255, "image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}
    for key, expected in ours.items():
        if (value := part.get(key)) is not None and not _equals(value, expected):
            raise CheckpointError(
                f"{part.name}{key} is {format_value(value)}, but m0 implements {format_value(expected)} only."
            )


def _equals(value: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return isinstance(value, list | tuple) and len(value) == len(expected) and all(map(_equals, value, expected))
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    return isinstance(value, int | float) and abs(value) < 1e9 and math.isclose(value, expected, rel_tol=1e-6)


def image_settings_files(directory: Path, settings: ImageSettings, vision: VisionConfig) -> dict[Path, dict[str, Any]]:
    """What to write so that every version of transformers resizes pictures by these settings.

    That is preprocessor_config.json, which all read; and a processor_config.json that lies there with settings of its own, which
    would win. Its other keys stay. Raises CheckpointError where it cannot be read.
    """
    written = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    files = {directory / PREPROCESSOR_FILE: written}
    if (directory / PROCESSOR_FILE).exists():
        existing = read_object(directory / PROCESSOR_FILE, CheckpointError)
        if existing.get(PROCESSOR_KEY) is not None:
            files[directory / PROCESSOR_FILE] = {**existing, PROCESSOR_KEY: written}
    return files
