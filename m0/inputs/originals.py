"""Pictures as they were before they were resized for the model, encoded, for whoever shows them. Without PyTorch, as `resizing`."""

from __future__ import annotations

import io
import math

from PIL import Image, features

from m0.inputs.resizing import resize

QUALITY = 85
"""Of lossy formats: 10-point text at 144 pixels an inch stays as it is drawn."""


def keep_original(image: Image.Image, keep_pixels: int) -> bytes | None:
    """An upright picture in RGB as a file that every browser shows: made smaller where it has more than `keep_pixels` pixels, as PNG, or
    as WebP (JPEG where Pillow lacks it) where that is smaller; None for 0 pixels."""
    if not keep_pixels:
        return None
    shrink = min(1.0, math.sqrt(keep_pixels / (image.width * image.height)))
    size = max(1, math.floor(image.width * shrink)), max(1, math.floor(image.height * shrink))
    return encode_picture(image if size == image.size else resize(image, size))


def encode_picture(image: Image.Image) -> bytes:
    """A picture in RGB as PNG, or as WebP or JPEG where that is smaller."""
    lossless, lossy = io.BytesIO(), io.BytesIO()
    image.save(lossless, "PNG")
    if features.check("webp") and max(image.size) < 16384:  # what WebP can hold
        image.save(lossy, "WEBP", quality=QUALITY, method=2)
    else:
        image.save(lossy, "JPEG", quality=QUALITY, subsampling=0)
    return min(lossless.getvalue(), lossy.getvalue(), key=len)
