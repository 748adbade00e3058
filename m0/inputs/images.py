"""Pictures in, patches out; and back from a grid cell to a box in the original picture.

File, URL, data URI, base64, bytes, PIL image or array -> RGB -> resized to multiples of 28 pixels -> normalised ->
14x14 patches, the four of a 2x2 block following one another (Qwen2-VL's preprocessing, Wang et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from m0.errors import ImageError
from m0.inputs.depth import eight_bits, from_array, load
from m0.inputs.frames import ALONE, Frame, frame_of
from m0.inputs.opening import check_pixels, decode_picture, is_closed, one_line, read_encoded, without_warnings
from m0.inputs.policy import EVERYTHING, SourcePolicy
from m0.model.attention import to_device
from m0.model.rotary import Grid

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's (Radford et al. 2021), as the vision tower was trained with
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT_RATIO = 200
ORDER = ", but 0 < min <= max must hold."


@dataclass(frozen=True)
class ImageSettings:
    """How a picture is turned into patches. Defaults: the released model's. Raises ImageError for settings that cannot be used."""

    min_pixels: int = 56 * 56
    max_pixels: int = 768 * 28 * 28
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    max_image_pixels: int = 178_956_970
    """Pictures with more pixels are refused before they are decoded (decompression bombs); raise it for huge scans."""
    background: tuple[int, int, int] | None = None
    """What shows through transparent pixels. None: transparency is dropped and whatever colour lies beneath is seen, as the
    reference does with files; (255, 255, 255): white paper."""
    as_reference: bool = False
    """Whether greys of more than 8 bits, floats among them, are clipped at 255, as the reference does, which turns 16-bit scans
    white and floats from 0 to 1 black; of an array, as of the PIL image that it makes. False: they are scaled by their own depth
    (`m0.inputs.depth`)."""
    policy: SourcePolicy = field(default=EVERYTHING, compare=False, repr=False)
    """Where pictures may come from. No part of what two settings are compared by, since it changes no patch."""

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "max_image_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ImageError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if not isinstance(self.as_reference, bool):
            raise ImageError(f"as_reference is {self.as_reference!r}, but must be True or False.")
        if not isinstance(self.policy, SourcePolicy):
            raise ImageError(f"policy is {type(self.policy).__name__}, but must be a SourcePolicy.")
        if self.max_pixels < self.factor**2:
            raise ImageError(f"max_pixels is {self.max_pixels}, but one visual token takes {self.factor**2} pixels.")
        if self.min_pixels > self.max_pixels:
            lowest, highest = (
                f"{value}{' (the default)' if value == getattr(ImageSettings, name) else ''}"
                for name, value in (("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels))
            )
            raise ImageError(f"min_pixels is {lowest} and max_pixels {highest}{ORDER}")

    @property
    def factor(self) -> int:
        """Side of one visual token in pixels (28)."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class Picture:
    """One picture, ready for the vision tower."""

    pixels: NDArray[np.uint8]
    """The resized picture, (height, width, 3)."""
    original_size: tuple[int, int]
    """Width and height before resizing (after EXIF orientation)."""
    settings: ImageSettings
    frame: Frame = ALONE
    """Which of its file's pages or frames it is; the others were not read."""

    @property
    def grid(self) -> Grid:
        """Rows and columns of 14x14 patches."""
        height, width, _ = self.pixels.shape
        return height // self.settings.patch_size, width // self.settings.patch_size

    @property
    def token_grid(self) -> Grid:
        """Rows and columns of visual tokens (2x2 patches each)."""
        rows, columns = self.grid
        return rows // self.settings.merge_size, columns // self.settings.merge_size

    @property
    def num_tokens(self) -> int:
        """How many visual tokens it takes."""
        rows, columns = self.token_grid
        return rows * columns

    @property
    def patches(self) -> Tensor:
        """Normalised patches, (rows * columns, 1176), float32; each flattened as (channel, temporal, 14, 14). Made at every call, for
        they take eight times the room of the pixels."""
        return self.patches_on("cpu")

    def patches_on(self, device: torch.device | str) -> Tensor:
        """`patches`, (rows * columns, 1176), made on a device, to which only the pixels travel."""
        size, merge = self.settings.patch_size, self.settings.merge_size
        pixels = to_device(torch.from_numpy(self.pixels), device)
        blocks = rearrange(pixels, "(r mr p) (c mc q) ch -> (r c mr mc) ch (p q)", mr=merge, mc=merge, p=size, q=size)
        # 256 values a channel: normalising is a look-up.
        places = blocks.to(torch.int32) + 256 * torch.arange(3, dtype=torch.int32, device=device)[:, None]
        values = to_device(_TABLE, device).index_select(0, places.flatten()).view(blocks.shape)
        # A still picture is shown twice: the kernel spans two frames.
        return repeat(values, "n ch d -> n (ch t d)", t=self.settings.temporal_patch_size)

    @cached_property
    def digest(self) -> bytes:
        """Equal for pictures that are equal in every pixel after resizing."""
        return blake2b(repr(self.pixels.shape).encode() + self.pixels.tobytes(), digest_size=16).digest()

    def cell_box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in the original picture's pixels of the visual token at (row, column).

        Raises ImageError for a cell outside the grid.
        """
        rows, columns = self.token_grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise ImageError(f"cell ({row}, {column}) lies outside the {rows} x {columns} grid of this picture.")
        width, height = self.original_size
        return column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows


_TABLE = torch.from_numpy(
    ((np.arange(256)[None, :] / 255.0 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]).astype(np.float32).ravel()
)
"""Of each channel's 256 values, one channel after another."""


def smart_resize(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Height and width to resize to: multiples of 28 nearest the original, within the pixel limits, keeping the shape.

    Raises ImageError where one side is more than 200 times the other.
    """
    if min(height, width) < 1:
        raise ImageError(f"a picture of {width} x {height} pixels is empty.")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ImageError(
            f"a picture of {width} x {height} pixels has an aspect ratio of {max(height, width) / min(height, width):.0f}, "
            f"but at most {MAX_ASPECT_RATIO} is allowed."
        )
    factor = settings.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        scale = math.sqrt(height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        scale = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def prepare_picture(source: Any, settings: ImageSettings | None = None) -> Picture:
    """Open, orient, convert and resize a picture.

    Args:
        source: a path, an http(s) URL, a data URI, base64 text, encoded bytes, a file opened with "rb", a PIL image, or an
            array of shape (height, width), (height, width, 1), (height, width, 3) or (height, width, 4): uint8, or any other type of number,
            scaled as `m0.inputs.depth` says. Of a file of several pages or frames the first is read, of a PIL image the one at which
            it stands; `Picture.frame` says which, and of how many.
        settings: pixel limits, patch sizes, background, depth, where it may come from.

    Raises ImageError, one sentence that names the picture and what is wrong with it.
    """
    settings = settings or ImageSettings()
    opened = open_image(source, settings.max_image_pixels, settings.background, settings.as_reference, settings.policy)
    image = opened.image
    try:
        height, width = smart_resize(image.height, image.width, settings)
    except ImageError as error:
        raise ImageError(f"{opened.name}: {error}") from None
    return Picture(np.array(resize(image, (width, height))), image.size, settings, opened.frame)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to a width and height with bicubic: first the width, then the height, as Pillow did before 12.2 and torchvision does.

    Pillow 12.2 begins with the height where a picture is more than 100 times as high as wide, Pillow 13.0 at a fifth of sizes.
    Between the two passes values are rounded and clipped, so the order shows, by up to 28 levels at hard edges.
    """
    if image.size == size:
        return image.copy()
    premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(image.mode, image.mode)  # as Pillow does, but once for both passes
    work = image if premultiplied == image.mode else image.convert(premultiplied)
    for step in ((size[0], image.height), size):
        if work.size != step:
            work = work.resize(step, Image.Resampling.BICUBIC)
    return work if premultiplied == image.mode else work.convert(image.mode)


class Opened(NamedTuple):
    """A picture upright and in RGB."""

    image: Image.Image
    name: str
    """For messages."""
    frame: Frame


def open_image(
    source: Any,
    max_image_pixels: int = ImageSettings.max_image_pixels,
    background: tuple[int, int, int] | None = None,
    as_reference: bool = False,
    policy: SourcePolicy = EVERYTHING,
) -> Opened:
    """The picture upright and in RGB, see `prepare_picture`. Raises ImageError."""
    if isinstance(source, Image.Image):
        image, name = source, f"the PIL image of {source.width} x {source.height}"
        check_pixels(image.size, name, max_image_pixels)
    elif isinstance(source, np.ndarray):
        name = f"the array of shape {source.shape}"
        if source.ndim > 1:
            check_pixels((source.shape[1], source.shape[0]), name, max_image_pixels)
        image = from_array(source, as_reference)
    else:
        data, name = read_encoded(source, policy)
        image = decode_picture(data, name, max_image_pixels, as_reference)
    try:
        with without_warnings:  # Pillow warns of palettes whose transparency is dropped: that is meant
            return Opened(_in_rgb(image, name, background, as_reference), name, frame_of(image))
    except ImageError:
        raise
    except Exception as error:  # conversions raise what they like on damaged data
        if isinstance(source, Image.Image) and is_closed(source, error):
            raise ImageError(f"{name} was closed, or its file was, before m0 could read it; give it open, or loaded.") from None
        raise ImageError(f"{name} is damaged or cannot be converted to RGB: {one_line(error)}.") from None


def _in_rgb(opened: Image.Image, name: str, background: tuple[int, int, int] | None, as_reference: bool) -> Image.Image:
    if not as_reference:
        load(opened, name)  # what Pillow has opened for its owner may not be loaded yet
    image = ImageOps.exif_transpose(opened)
    if not as_reference:
        image = eight_bits(image, opened, name)
    if (straight := {"La": "LA", "RGBa": "RGBA"}.get(image.mode)) is not None:  # which Pillow converts to nothing else
        image = image.convert(straight)
    if background is not None and image.has_transparency_data:
        paper = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert("RGB")
