"""Pictures in, patches out; and back from a grid cell to a box in the original picture.

File, URL, data URI, base64, bytes, PIL image or array -> RGB -> resized to multiples of 28 pixels -> normalised ->
14x14 patches, the four of a 2x2 block following one another (Qwen2-VL's preprocessing, Wang et al. 2024).
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from m0.attention import sent
from m0.depth import eight_bits, from_array, load
from m0.errors import ImageError, InputError
from m0.frames import ALONE, Frame, frame_of
from m0.paths import path_of
from m0.rotary import Grid
from m0.texts import is_open_file, is_opened_as_text, name_of_file, read_open_file

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's (Radford et al. 2021), as the vision tower was trained with
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT_RATIO = 200
URL_TIMEOUT_SECONDS = 20.0
URL_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ImageSettings:
    """How a picture is turned into patches. Defaults: the released model's."""

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
    white and floats from 0 to 1 black. False: they are scaled by their own depth (`m0.depth`)."""

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "max_image_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ImageError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if not isinstance(self.as_reference, bool):
            raise ImageError(f"as_reference is {self.as_reference!r}, but must be True or False.")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ImageError(f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}, but 0 < min <= max must hold.")
        if self.max_pixels < self.factor**2:
            raise ImageError(f"max_pixels is {self.max_pixels}, but one visual token takes {self.factor**2} pixels.")

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
        rows, columns = self.token_grid
        return rows * columns

    @property
    def patches(self) -> Tensor:
        """Normalised patches, (rows * columns, 1176), float32; each flattened as (channel, temporal, 14, 14). Made at every call, for
        they take eight times the room of the pixels."""
        return self.patches_on("cpu")

    def patches_on(self, device: torch.device | str) -> Tensor:
        """`patches`, made on a device, to which only the pixels travel."""
        size, merge = self.settings.patch_size, self.settings.merge_size
        pixels = sent(torch.from_numpy(self.pixels), device)
        blocks = rearrange(pixels, "(r mr p) (c mc q) ch -> (r c mr mc) ch (p q)", mr=merge, mc=merge, p=size, q=size)
        # 256 values a channel: normalising is a look-up.
        places = blocks.to(torch.int32) + 256 * torch.arange(3, dtype=torch.int32, device=device)[:, None]
        values = sent(_TABLE, device).index_select(0, places.flatten()).view(blocks.shape)
        # A still picture is shown twice: the kernel spans two frames.
        return repeat(values, "n ch d -> n (ch t d)", t=self.settings.temporal_patch_size)

    @cached_property
    def digest(self) -> bytes:
        """Equal for pictures that are equal in every pixel after resizing."""
        return blake2b(repr(self.pixels.shape).encode() + self.pixels.tobytes(), digest_size=16).digest()

    def cell_box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in the original picture's pixels of the visual token at (row, column)."""
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


class _WithoutWarnings:
    """`warnings.catch_warnings` for several threads at once: the filters are put back when the last of them is out."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.caught: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.caught is not None:
                self.caught.__exit__(None, None, None)


_without_warnings = _WithoutWarnings()


def prepare_picture(source: Any, settings: ImageSettings | None = None) -> Picture:
    """Open, orient, convert and resize a picture.

    Args:
        source: a path, an http(s) URL, a data URI, base64 text, encoded bytes, a file opened with "rb", a PIL image, or an
            array of shape (height, width), (height, width, 1), (height, width, 3) or (height, width, 4): uint8, or any other type of number,
            scaled as `m0.depth` says. Of a file of several pages or frames the first is read, of a PIL image the one at which
            it stands; `Picture.frame` says which, and of how many.
        settings: pixel limits, patch sizes, background, depth.

    Raises ImageError, one sentence that names the picture and what is wrong with it.
    """
    settings = settings or ImageSettings()
    opened = open_image(source, settings.max_image_pixels, settings.background, settings.as_reference)
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
) -> Opened:
    """The picture upright and in RGB, see `prepare_picture`."""
    if isinstance(source, Image.Image):
        image, name = source, f"the PIL image of {source.width} x {source.height}"
        _check_pixels(image.size, name, max_image_pixels)
    elif isinstance(source, np.ndarray):
        name = f"the array of shape {source.shape}"
        if source.ndim > 1:
            _check_pixels((source.shape[1], source.shape[0]), name, max_image_pixels)
        image = from_array(source)
    else:
        data, name = _read(source)
        image = _decode(data, name, max_image_pixels, as_reference)
    try:
        with _without_warnings:  # Pillow warns of palettes whose transparency is dropped: that is meant
            return Opened(_in_rgb(image, name, background, as_reference), name, frame_of(image))
    except ImageError:
        raise
    except Exception as error:  # conversions raise what they like on damaged data
        raise ImageError(f"{name} is damaged or cannot be converted to RGB: {_one_line(error)}.") from None


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


def _read(source: Any) -> tuple[bytes, str]:
    """The encoded bytes of a picture that is not decoded yet, and a name for it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), f"the picture of {len(source)} bytes"
    if isinstance(source, os.PathLike):
        return _read_file(path_of(source, ImageError))
    if is_open_file(source):
        return _read_open_file(source)
    if not isinstance(source, str):
        raise ImageError(
            f"a picture is given as {type(source).__name__}, but must be a path, URL, data URI, base64 text, bytes, "
            "PIL image, array or open file."
        )
    if not source:
        raise ImageError("a picture is given as empty text, but must be a path, URL, data URI or base64 text.")
    if source[:8].lower().startswith(("http://", "https://")):
        return _read_url(source), source if len(source) <= 200 else f"{source[:60]}..."
    if source[:5].lower() == "data:":
        return _read_data_uri(source), f"the data URI {source[:30]}..."
    if source.startswith("~") or _is_file(source):
        return _read_file(path_of(source, ImageError))
    # Neither a file nor an address: base64, if it is long enough to be a picture and nothing but base64.
    if len(source) >= 60 and re.fullmatch(r"[A-Za-z0-9+/_\s-]+={0,2}\s*", source):
        return _decode_base64(source, "the base64 text"), f"the base64 text {source[:20]}..."
    return _read_file(Path(source))


def _read_open_file(file: Any) -> tuple[bytes, str]:
    name = name_of_file(file)
    try:
        if not is_opened_as_text(file) and isinstance(content := read_open_file(file), bytes):
            return content, name
    except InputError as error:
        raise ImageError(str(error)) from None
    raise ImageError(f"{name} is opened as text; a picture is opened with 'rb'.")


def _is_file(path: str) -> bool:
    try:
        return len(path) < 4096 and Path(path).exists()
    except (OSError, ValueError):
        return False


def _read_file(path: Path) -> tuple[bytes, str]:
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:60]}..."
    try:
        if path.exists() and not path.is_dir() and not path.is_file():  # a pipe would block for ever
            raise ImageError(f"{name} is not a file, but a device, pipe or socket.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a directory, not a picture.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or _one_line(error)}.") from None
    return data, name


def _read_url(url: str) -> bytes:
    try:
        # A browser would write blanks and letters beyond ASCII so, too.
        quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
        request = urllib.request.Request(quoted, headers={"User-Agent": "m0", "Accept": "image/*"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            kind = response.headers.get_content_type()
            data = response.read(URL_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(f"{url} answered {error.code} {_one_line(error.reason)}.") from None
    except (OSError, ValueError, EOFError) as error:  # URLError and timeouts are OSErrors
        raise ImageError(f"{url} did not answer: {_one_line(getattr(error, 'reason', error))}.") from None
    except Exception as error:  # http.client raises its own family on malformed answers
        raise ImageError(f"{url} did not answer as a web server should: {_one_line(error)}.") from None
    if len(data) > URL_MAX_BYTES:
        raise ImageError(f"{url} is larger than {URL_MAX_BYTES // 2**20} MiB.")
    # Servers misname pictures, so their word counts only where the bytes are none.
    if (kind.startswith("text/") or kind in ("application/json", "application/xhtml+xml")) and not looks_like_picture(data):
        raise ImageError(f"{url} answered {kind}, not a picture.")
    return data


def looks_like_picture(data: bytes) -> bool:
    try:
        with _without_warnings:
            Image.open(io.BytesIO(data)).close()
        return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False


def _read_data_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"the data URI {uri[:30]}... has no comma, so no data.")
    if header.lower().endswith(";base64"):
        return _decode_base64(urllib.parse.unquote(body), f"the data URI {uri[:30]}...")
    try:
        return urllib.parse.unquote_to_bytes(body)
    except UnicodeEncodeError:
        raise ImageError(f"the data URI {uri[:30]}... holds lone surrogates.") from None


def _decode_base64(text: str, name: str) -> bytes:
    text = re.sub(r"\s", "", text).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} is not valid base64: {_one_line(error)}.") from None


_pillow_limit = threading.Lock()


def _decode(data: bytes, name: str, max_image_pixels: int, as_reference: bool) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty.")
    try:
        with _pillow_limit:  # Pillow's own bomb limit is global and cannot be raised for one picture; ours replaces it.
            pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(data))
            finally:
                Image.MAX_IMAGE_PIXELS = pillow_limit
        _check_pixels(image.size, name, max_image_pixels)
        with _without_warnings:  # Pillow warns of odd metadata; the pixels are what counts
            if as_reference:
                image.load()
            else:
                load(image, name)
        return image
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture that Pillow can open{_looks_like(data)}.") from None
    except ImageError:
        raise
    except Exception as error:  # decoders raise what they like on damaged data
        raise ImageError(f"{name} is damaged: {_one_line(error)}.") from None


def _looks_like(data: bytes) -> str:
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return " (it looks like HTML)"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return " (it is a TIFF, but not one of those that Pillow reads)"
    return ""


def _check_pixels(size: tuple[int, int], name: str, limit: int) -> None:
    if size[0] * size[1] > limit:
        raise ImageError(
            f"{name} has {size[0]} x {size[1]} pixels, above the limit of {limit}; "
            "raise max_image_pixels if it is no decompression bomb."
        )


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
