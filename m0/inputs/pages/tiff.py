"""TIFFs of several pages: thumbnails left out, each page upright, unequal resolutions evened out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from m0.errors import ImageError, InputError
from m0.inputs.bit_depth import load_pixels
from m0.inputs.frames import tiff_directories
from m0.inputs.opening import check_pixels, one_line, suppress_warnings
from m0.inputs.originals import keep_original
from m0.inputs.pages.page import As, Content, Drawn, PageFile, PageInfo
from m0.inputs.resizing import ImageSettings, resize, smart_resize

WIDTH_RESOLUTION, HEIGHT_RESOLUTION, ORIENTATION = 282, 283, 274  # TIFF 6.0's tags
MOST_UNEQUAL = 5
"""A resolution that many times the other is no scanner's, but a slip of whoever wrote it."""


class TiffFile(PageFile):
    """A TIFF. `where`: its path or its bytes. Raises InputError where its directories are damaged."""

    kind = "tiff"

    def __init__(self, name: str, where: Path | bytes) -> None:
        self.name, self._where = name, where
        with self._opened() as file:
            self._frames = page_frames(file, name)
        self.pages = len(self._frames)

    @contextmanager
    def _opened(self) -> Any:
        if isinstance(self._where, bytes):
            yield io.BytesIO(self._where)
            return
        try:
            with open(self._where, "rb") as file:
                yield file
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}.") from None

    def infos(self, numbers: Sequence[int], as_: As, settings: ImageSettings) -> list[PageInfo]:
        return [PageInfo(self.name, number, self.pages) for number in numbers]

    def read(self, number: int, as_: As, settings: ImageSettings) -> Content:
        called = f"{self.name}#{number}"
        if as_ == "text":
            raise InputError(f"{called} is a picture, which has no text; read it as one.")
        with self._opened() as file:
            return Content(picture_of(_page(file, self._frames[number - 1], called, settings), called, settings))


def page_frames(file: IO[bytes], name: str) -> list[int]:
    """The places of a TIFF's pages among its directories. Raises InputError where the chain of directories is broken."""
    frames: list[int] = []
    for place, kind in enumerate(tiff_directories(file)):
        if kind == "broken":
            pages = f"{len(frames)} page" + "s" * (len(frames) != 1)
            raise InputError(f"{name} is damaged or cut short: its chain of pages breaks after {pages}.")
        if kind == "page" or not frames:  # a file of thumbnails alone still has its first
            frames.append(place)
    if not frames:
        raise InputError(f"{name} has no pages.")
    return frames


def _page(file: IO[bytes], frame: int, called: str, settings: ImageSettings) -> Image.Image:
    """The page upright, as Pillow and `m0.inputs.bit_depth` read it, in RGB, and as wide and high as on paper."""
    from m0.inputs.images import open_image  # here, since it brings PyTorch

    try:
        image = TiffImageFile(file)
        image.seek(frame)
        check_pixels(image.size, called, settings.max_image_pixels)
        across, down = (_resolution(image, tag) for tag in (WIDTH_RESOLUTION, HEIGHT_RESOLUTION))
        lying = image.tag_v2.get(ORIENTATION) in (5, 6, 7, 8)  # gone once it is loaded
        with suppress_warnings:
            image.load() if settings.as_reference else load_pixels(image, called)
        upright = open_image(image, settings.max_image_pixels, settings.background, settings.as_reference).image
    except InputError as error:
        raise ImageError(str(error).replace(f"the PIL image of {image.width} x {image.height}", called, 1)) from None
    except Exception as error:  # decoders raise what they like on damaged data
        raise ImageError(f"{called} is damaged: {one_line(error)}.") from None
    return _evened(upright, *((down, across) if lying else (across, down)), called, settings)


def _resolution(image: Any, tag: int) -> float:
    try:
        return float(image.tag_v2.get(tag, 0))
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


def _evened(image: Image.Image, across: float, down: float, called: str, settings: ImageSettings) -> Image.Image:
    """A fax has about twice as many pixels an inch across as down: made as high as it is on paper."""
    if not (across > 0 and down > 0) or across == down or max(across / down, down / across) > MOST_UNEQUAL:
        return image
    width, height = image.size
    size = (width, round(height * across / down)) if across > down else (round(width * down / across), height)
    check_pixels(size, called, settings.max_image_pixels)
    return resize(image, size)


def picture_of(image: Image.Image, called: str, settings: ImageSettings) -> Drawn:
    """An upright picture in RGB, resized as all are. Raises ImageError."""
    try:
        height, width = smart_resize(image.height, image.width, settings)
    except ImageError as error:
        raise ImageError(f"{called}: {error}") from None
    return Drawn(np.array(resize(image, (width, height))), image.size, keep_original(image, settings.keep_pixels))
