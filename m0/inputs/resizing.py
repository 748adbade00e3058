"""How large a picture is for the model, and how it is resized to that. Without PyTorch, so that processes that only draw start quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from PIL import Image

from m0.errors import ImageError
from m0.inputs.policy import EVERYTHING, SourcePolicy

MAX_ASPECT_RATIO = 200
PIXEL_LIMITS_ORDER = ", but 0 < min <= max must hold."


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
    (`m0.inputs.bit_depth`)."""
    keep_pixels: int = field(default=0, compare=False, repr=False)
    """Beside the resized picture its original is kept, made smaller where it has more pixels than that (`Picture.original`), for whoever
    shows it; 0: it is not. No part of what two settings are compared by, since it changes no patch."""
    policy: SourcePolicy = field(default=EVERYTHING, compare=False, repr=False)
    """Where pictures may come from. No part of what two settings are compared by, since it changes no patch."""

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "max_image_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ImageError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if isinstance(self.keep_pixels, bool) or not isinstance(self.keep_pixels, int) or self.keep_pixels < 0:
            raise ImageError(f"keep_pixels is {self.keep_pixels!r}, but must be a whole number of at least 0.")
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
            raise ImageError(f"min_pixels is {lowest} and max_pixels {highest}{PIXEL_LIMITS_ORDER}")

    @property
    def factor(self) -> int:
        """Side of one visual token in pixels (28)."""
        return self.patch_size * self.merge_size


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


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to a width and height with bicubic: first the width, then the height, as Pillow did before 12.2 and torchvision does.

    Pillow 12.2 begins with the height where a picture is more than 100 times as high as wide, Pillow 13.0 at a fifth of sizes.
    Between the two passes values are rounded and clipped, so the order shows, by up to 28 levels at hard cluster_bounds.
    """
    if image.size == size:
        return image.copy()
    premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(image.mode, image.mode)  # as Pillow does, but once for both passes
    work = image if premultiplied == image.mode else image.convert(premultiplied)
    for step in ((size[0], image.height), size):
        if work.size != step:
            work = work.resize(step, Image.Resampling.BICUBIC)
    return work if premultiplied == image.mode else work.convert(image.mode)
