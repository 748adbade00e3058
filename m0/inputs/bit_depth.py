"""Pictures deeper than eight bits to eight: greys of 12, 16 and 32 bits, floats, arrays of any type of number.

Pillow's own conversion to RGB clips greys at 255, so a 16-bit scan becomes white and a picture of floats from 0 to 1 black.
Here black stays black and white white: values are scaled by the depth that the file declares or, where nothing declares one,
by the smallest usual depth that holds them all.
"""

from __future__ import annotations

import math
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m0.errors import ImageError

COMMON_BIT_DEPTHS = (8, 10, 12, 14, 16, 24, 31, 32)
"""Depths of integers and floats that declare none."""
MAX_OVERSHOOT = 1 / 8
"""Share of a range by which floats may lie outside and still count as within: resizing with bicubic overshoots."""
VALUES_PER_CHUNK = 2**20
"""Values that are scaled at a time: float64 takes eight times the room of levels."""
# Of TIFF 6.0
BITS_PER_SAMPLE, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION, MAX_SAMPLE_VALUE, SAMPLE_FORMAT, SIGNED_MAX_SAMPLE_VALUE = (
    258,
    262,
    284,
    281,
    339,
    341,
)
NATIVE_RAW_MODES = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}
"""Raw mode by which Pillow unpacks big-endian values -> the one that is right when libtiff has swapped their bytes already."""


class Range(NamedTuple):
    """The values that black and white have."""

    black: float
    white: float


def to_eight_bits(image: Image.Image, opened: Image.Image, name: str) -> Image.Image:
    """A grey picture of any depth as "L", or "LA" where one grey is transparent; others as they are.

    Args:
        image: the picture upright.
        opened: the same as it was opened, which knows its file's depth.
        name: for messages.

    Raises ImageError where floats are not finite.
    """
    tagged = opened.format == "TIFF"
    signed = tagged and _tiff_tag(opened, SAMPLE_FORMAT) == 2
    values: NDArray[Any]
    if image.mode == "L" and signed and _tiff_tag(opened, BITS_PER_SAMPLE) == 8:
        values = np.asarray(image).view(np.int8)  # which Pillow takes for unsigned
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I" and tagged and not signed and _tiff_tag(opened, BITS_PER_SAMPLE) == 32:
            values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    else:
        return image
    inverted = tagged and _tiff_tag(opened, PHOTOMETRIC_INTERPRETATION) == 0 and image.mode != "L"
    grey = Image.fromarray(_to_levels_in_chunks(values, _find_range(values, opened, name), inverted))
    if isinstance(through := opened.info.get("transparency"), int) and values.dtype.kind != "f":
        grey.putalpha(Image.fromarray(np.where(values == through, 0, 255).astype(np.uint8)))
    return grey


def image_from_array(array: NDArray[Any], as_reference: bool = False) -> Image.Image:
    """A picture of an array: (height, width), (height, width, 1), (height, width, 3) or (height, width, 4).

    uint8 holds levels and bool black and white; uint16 is scaled by 257; other integers and floats by their values. With
    `as_reference` it is what Pillow makes of it, unscaled. Raises ImageError, then also for what Pillow has no mode for.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageError(
            f"a picture array has shape {array.shape}, but must be (height, width), (height, width, 1), "
            "(height, width, 3) or (height, width, 4), none of them 0."
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(f"a picture array has type {array.dtype}, but must be of bool, integers or floats.")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype.kind == "b":
        return Image.fromarray(array.astype(np.uint8) * np.uint8(255))
    if as_reference:
        try:
            return Image.fromarray(array)
        except (TypeError, ValueError):
            raise ImageError(
                f"the array of shape {array.shape} is of {array.dtype}, of which Pillow makes no picture, so that there is none as "
                "the reference sees it; give uint8, or leave as_reference out."
            ) from None
    value_range = Range(0, 65535) if array.dtype.kind == "u" and array.dtype.itemsize == 2 else None
    return Image.fromarray(
        _to_levels_in_chunks(array, value_range or _range_of_values(array, f"the array of shape {array.shape}"))
    )


def _find_range(values: NDArray[Any], opened: Image.Image, name: str) -> Range:
    """What black and white are in a picture, by its file where that says so."""
    bits = 16 if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")) else None
    signed = False
    if opened.format == "TIFF" and values.dtype.kind != "f":
        declared, signed = _tiff_tag(opened, BITS_PER_SAMPLE), _tiff_tag(opened, SAMPLE_FORMAT) == 2
        bits = declared if declared is not None and declared <= 16 else bits
        for tag in (MAX_SAMPLE_VALUE, SIGNED_MAX_SAMPLE_VALUE):
            # Some write the highest value of the picture here; the highest value of a depth is meant as a depth.
            highest = _tiff_tag(opened, tag)
            if highest and (highest + 1) & highest == 0 and highest < 2 ** (declared or 0) and values.min() >= 0:
                return Range(0, highest)
    if bits is None:
        return _range_of_values(values, name)
    if not signed:
        return Range(0, 2**bits - 1)
    return Range(-(2 ** (bits - 1)) if values.min() < 0 else 0, 2 ** (bits - 1) - 1)


def _range_of_values(values: NDArray[Any], name: str) -> Range:
    """The smallest usual range that holds all values; where they reach below black or beyond 32 bits, they themselves are it."""
    floats = values.dtype.kind == "f"
    low, high = (float(edge) if floats else int(edge) for edge in (values.min(), values.max()))
    if not math.isfinite(low) or not math.isfinite(high) or not math.isfinite(255.0 * (high - low)):
        raise ImageError(f"{name} holds values that are NaN, infinite or too far apart, so what is white in it is unknown.")
    slack = MAX_OVERSHOOT if floats else 0
    for white in (*([1] if floats else []), *(2**bits - 1 for bits in COMMON_BIT_DEPTHS)):
        if low >= -slack * high and high <= white * (1 + slack):
            return Range(0, white)
    return Range(low, high if high > low else low + 1)


def _to_levels_in_chunks(values: NDArray[Any], value_range: Range, inverted: bool = False) -> NDArray[np.uint8]:
    """Values to levels of 0 to 255, rounded half up; what lies outside the range is clipped."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # as many values as fit a table
        return np.asarray(_to_levels(np.arange(2**16), value_range, inverted)[values])
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, VALUES_PER_CHUNK // values[0].size)
    for start in range(0, len(values), rows):
        levels[start : start + rows] = _to_levels(values[start : start + rows], value_range, inverted)
    return levels


def _to_levels(values: NDArray[Any], value_range: Range, inverted: bool) -> NDArray[np.uint8]:
    black, white = float(value_range.black), float(value_range.white)
    scaled = (np.clip(values.astype(np.float64), black, white) - black) * 255 / (white - black)
    return np.asarray(np.floor((255 - scaled if inverted else scaled) + 0.5), dtype=np.uint8)


def _tiff_tag(image: Image.Image, number: int) -> int | None:
    """A TIFF's tag, of the first channel where there are several."""
    value = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


# --- what Pillow misreads ---------------------------------------------------------------------------------------------


def load_pixels(image: Any, name: str) -> None:
    """Load a picture that Pillow has opened. Raises ImageError for those that Pillow would load wrongly and without a word, and
    whatever Pillow raises."""
    bits = _jpeg2000_bits(image.fp) if image.format == "JPEG2000" and image.fp is not None else 0
    if image.format == "TIFF" and image.tile:
        image.tile = [_fixed_tile(tile, image, name) for tile in image.tile]
        # What it maps into memory by its name, Pillow 11 and later leave lying on its side.
        file, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = file
    image.load()
    # Of more bits than it stores, Pillow rounds the brightest values up to one beyond the last, which is stored as 0.
    limit = 16 if image.mode.startswith("I") else 8
    if bits > limit and not np.asarray(image).all():
        raise ImageError(
            f"{name} is a JPEG 2000 picture of {bits} bits, whose white Pillow reads as black; save it with {limit} bits."
        )


def _fixed_tile(tile: Any, image: Any, name: str) -> Any:
    """How Pillow unpacks a piece of a TIFF, and how it should: of compressed big-endian floats and signed integers it turns the
    bytes twice, and uncompressed planes of 16 bits it takes for planes of 8."""
    codec, box, offset, (raw, *rest) = tile
    if codec == "libtiff":
        raw = NATIVE_RAW_MODES.get(raw, raw)
    elif (
        len(raw) == 1
        and raw in "RGBACMYK"
        and _tiff_tag(image, PLANAR_CONFIGURATION) == 2
        and _tiff_tag(image, BITS_PER_SAMPLE) == 16
    ):
        if image.mode == "CMYK":
            raise ImageError(f"{name} is a CMYK TIFF of 16 bits in separate planes, which Pillow cannot read.")
        raw += ";16B" if image.tag_v2.prefix == b"MM" else ";16L"
    fixed = (raw, *rest)
    return tile._replace(args=fixed) if hasattr(tile, "_replace") else (codec, box, offset, fixed)


def _jpeg2000_bits(file: IO[bytes]) -> int:
    """The deepest channel's bits, of the header of the codestream (ISO 15444-1, A.5.1); 0 where there is none."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return 0
    depths = data[start + 42 : start + 42 + 3 * int.from_bytes(data[start + 40 : start + 42], "big") : 3]
    return max(((depth & 127) + 1 for depth in depths), default=0)
