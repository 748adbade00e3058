"""Pictures in, patches out; and back from a grid cell to a box in the original picture.

File, URL, data URI, base64, bytes, PIL image or array -> RGB -> resized to multiples of 28 pixels -> normalised ->
14x14 patches, the four of a 2x2 block following one another (Qwen2-VL's preprocessing, Wang et al. 2024).
"""

from __future__ import annotations

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
from m0.inputs.bit_depth import image_from_array, load_pixels, to_eight_bits
from m0.inputs.frames import SINGLE_FRAME, Frame, frame_of
from m0.inputs.opening import check_pixels, decode_picture, is_closed, one_line, read_encoded, suppress_warnings
from m0.inputs.originals import keep_original
from m0.inputs.policy import EVERYTHING, SourcePolicy
from m0.inputs.resizing import MAX_ASPECT_RATIO, PIXEL_LIMITS_ORDER, ImageSettings, resize, smart_resize
from m0.model.attention import to_device
from m0.model.rotary import Grid

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "MAX_ASPECT_RATIO",
    "PIXEL_LIMITS_ORDER",
    "ImageSettings",
    "OpenedImage",
    "Picture",
    "open_image",
    "prepare_picture",
    "resize",
    "smart_resize",
]
ORIENTATION = 0x0112
"""EXIF's tag."""
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's (Radford et al. 2021), as the vision tower was trained with
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Picture:
    """One picture, ready for the vision tower."""

    pixels: NDArray[np.uint8]
    """The resized picture, (height, width, 3)."""
    original_size: tuple[int, int]
    """Width and height before resizing (after EXIF orientation)."""
    settings: ImageSettings
    frame: Frame = SINGLE_FRAME
    """Which of its file's pages or frames it is; the others were not read."""
    original: bytes | None = field(default=None, compare=False, repr=False)
    """The picture before it was resized for the model, with at most `ImageSettings.keep_pixels` pixels, as a PNG, WebP or JPEG file; None
    where that is 0."""

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
        values = to_device(_NORMALIZED_LEVELS, device).index_select(0, places.flatten()).view(blocks.shape)
        # A still picture is repeated: the kernel spans two frames.
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


_NORMALIZED_LEVELS = torch.from_numpy(
    ((np.arange(256)[None, :] / 255.0 - np.array(IMAGE_MEAN)[:, None]) / np.array(IMAGE_STD)[:, None])
    .astype(np.float32)
    .ravel()
)
"""Of each channel's 256 values, one channel after another."""


def prepare_picture(source: Any, settings: ImageSettings | None = None) -> Picture:
    """Open, orient, convert and resize a picture.

    Args:
        source: a path, an http(s) URL, a data URI, base64 text, encoded bytes, a file opened with "rb", a PIL image, or an
            array of shape (height, width), (height, width, 1), (height, width, 3) or (height, width, 4): uint8, or any other type of number,
            scaled as `m0.inputs.bit_depth` says. Of a file of several pages or frames the first is read, of a PIL image the one at which
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
    original = keep_original(image, settings.keep_pixels)
    return Picture(np.array(resize(image, (width, height))), image.size, settings, opened.frame, original)


class OpenedImage(NamedTuple):
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
) -> OpenedImage:
    """The picture upright and in RGB, see `prepare_picture`. Raises ImageError."""
    if isinstance(source, Image.Image):
        image, name = source, f"the PIL image of {source.width} x {source.height}"
        check_pixels(image.size, name, max_image_pixels)
    elif isinstance(source, np.ndarray):
        name = f"the array of shape {source.shape}"
        if source.ndim > 1:
            check_pixels((source.shape[1], source.shape[0]), name, max_image_pixels)
        image = image_from_array(source, as_reference)
    else:
        data, name = read_encoded(source, policy)
        image = decode_picture(data, name, max_image_pixels, as_reference)
    try:
        with suppress_warnings:  # Pillow warns of palettes whose transparency is dropped: that is meant
            return OpenedImage(_to_rgb(image, name, background, as_reference), name, frame_of(image))
    except ImageError:
        raise
    except Exception as error:  # conversions raise what they like on damaged data
        if isinstance(source, Image.Image) and is_closed(source, error):
            raise ImageError(f"{name} was closed, or its file was, before m0 could read it; give it open, or loaded.") from None
        raise ImageError(f"{name} is damaged or cannot be converted to RGB: {one_line(error)}.") from None


def _to_rgb(opened: Image.Image, name: str, background: tuple[int, int, int] | None, as_reference: bool) -> Image.Image:
    if as_reference:  # what Pillow has opened for its owner may not be loaded yet
        opened.load()
    else:
        load_pixels(opened, name)
    # Nobody changes the picture from here on, so that it is copied only where that changes it: a page of 200 dpi takes 17 ms a copy.
    image = ImageOps.exif_transpose(opened) if opened.getexif().get(ORIENTATION, 1) != 1 else opened
    if not as_reference:
        image = to_eight_bits(image, opened, name)
    if (straight := {"La": "LA", "RGBa": "RGBA"}.get(image.mode)) is not None:  # which Pillow converts to nothing else
        image = image.convert(straight)
    if background is not None and image.has_transparency_data:
        backdrop = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(backdrop, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
