"""PDFs, from the side that asks: sizes and resolutions are settled here, drawing is the workers'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from m0.errors import ImageError, InputError, MissingExtraError
from m0.inputs.pages.messages import Request
from m0.inputs.pages.page import As, Box, Content, Drawn, PageFile, PageInfo, Word
from m0.inputs.pages.pool import POOL, Died
from m0.inputs.resizing import ImageSettings, smart_resize

DPI = 200
"""Drawn at 200 dpi and then resized as all pictures are. To draw at the final size is three times as far off."""
LEAST_DPI = 100
POINTS = 72
"""An inch has."""


class Looked(NamedTuple):
    """What is known of a page before it is drawn."""

    size: tuple[float, float] | None
    """In points, as shown; None where the page is damaged."""
    unit: float
    """Points that a unit of PDFium's has."""
    label: str


class PdfFile(PageFile):
    """A PDF. `where`: its path or its bytes."""

    kind = "pdf"

    def __init__(self, name: str, where: Path | bytes, password: str | None) -> None:
        if find_spec("pypdfium2") is None:
            raise MissingExtraError("PDFs need pypdfium2: pip install 'm0-reranker[pages]'.")
        self.name = name
        self._where = where if isinstance(where, bytes) else str(where.absolute())
        self._password = password
        self._key = self._key_now()
        self.pages, notes, self._renderer = self._ask("count")
        self.notes = tuple(f"{name} {note}" for note in notes)
        self._looked: dict[int, Looked] = {}

    def _key_now(self) -> str:
        """Another one where the file is another, or is opened in another way."""
        if isinstance(self._where, bytes):
            what = b"bytes" + self._where
        else:
            try:
                state = Path(self._where).stat()
            except OSError as error:
                raise InputError(f"{self.name} cannot be read: {error.strerror or error}.") from None
            what = repr((self._where, state.st_size, state.st_mtime_ns, state.st_ino)).encode()
        return blake2b(what + repr(self._password).encode(), digest_size=16).hexdigest()

    def _ask(self, what: str, *args: Any, number: int | None = None) -> Any:
        called = self.name if number is None else f"{self.name}#{number}"
        if not isinstance(self._where, bytes) and self._key_now() != self._key:
            raise InputError(f"{self.name} has changed since its pages were listed; list them again.")
        try:
            answer = POOL.ask(Request(self._key, self._where, self._password, what, args))
        except Died as error:
            raise InputError(f"{called} was not read, for the process that reads it was lost: {error}.") from None
        if answer.kind != "value":
            raise InputError(f"{called} {answer.value}")
        return answer.value

    def _look(self, numbers: Sequence[int]) -> list[Looked]:
        unknown = [number for number in numbers if number not in self._looked]
        if unknown:
            for number, (size, unit, label) in zip(unknown, self._ask("look", [one - 1 for one in unknown]), strict=True):
                self._looked[number] = Looked(size and (size[0] * unit, size[1] * unit), unit, label)
        return [self._looked[number] for number in numbers]

    def infos(self, numbers: Sequence[int], as_: As, settings: ImageSettings) -> list[PageInfo]:
        infos = []
        for number, page in zip(numbers, self._look(numbers), strict=True):
            size = page.size and (round(page.size[0], 3), round(page.size[1], 3))
            dpi = None if as_ == "text" or page.size is None else fitting_dpi(page.size, settings.max_image_pixels)
            scale = None if dpi is None else dpi / POINTS
            infos.append(
                PageInfo(self.name, number, self.pages, page.label or None, size, scale, dpi and float(dpi), self._renderer)
            )
        return infos

    def kind_of(self, number: int) -> As:
        return "text" if self._ask("wants_text", number - 1, number=number) else "image"

    def read(self, number: int, as_: As, settings: ImageSettings) -> Content:
        if as_ == "text":
            return Content(text=self.text_of(number))
        called = f"{self.name}#{number}"
        size, unit, _ = self._look([number])[0]
        if size is None:
            raise InputError(f"{called} is damaged: it has no size.")
        dpi = fitting_dpi(size, settings.max_image_pixels)
        if dpi is None:
            pixels = math.prod(pixels_at(size, LEAST_DPI))
            raise ImageError(
                f"{called} measures {size[0] / POINTS:.4g} x {size[1] / POINTS:.4g} inches, which take {pixels} pixels at {LEAST_DPI} "
                f"dpi, above the limit of {settings.max_image_pixels}; raise max_image_pixels if it is meant to be so large."
            )
        drawn = pixels_at(size, dpi)
        try:
            target = smart_resize(drawn[1], drawn[0], settings)
        except ImageError as error:
            raise ImageError(f"{called}: {error}") from None
        args = (number - 1, dpi / POINTS * unit, drawn, target[::-1], as_ == "both", settings.keep_pixels)
        pixels, original, text, white = self._ask("draw", *args, number=number)
        content = Content(Drawn(pixels, drawn, original), text)
        if dpi < DPI:
            content.notes.append(
                f"{called} is drawn at {dpi} dpi in place of {DPI}, for it measures {size[0] / POINTS:.4g} x {size[1] / POINTS:.4g} "
                f"inches and max_image_pixels is {settings.max_image_pixels}."
            )
        if white:
            content.notes.append(
                f"{called} has text, but nothing dark is drawn of it; its fonts may be neither in the file nor on this machine: "
                "read it as text, or install them."
            )
        return content

    def text_of(self, number: int) -> str:
        return str(self._ask("text", number - 1, number=number))

    def words_of(self, number: int) -> tuple[Word, ...]:
        return tuple(Word(*word) for word in self._ask("words", number - 1, number=number))

    def pdf_box(self, number: int, box: Box) -> Box:
        left, bottom, right, top = self._ask("pdf_box", number - 1, box, number=number)
        return left, bottom, right, top


def pixels_at(size: tuple[float, float], dpi: int) -> tuple[int, int]:
    """Width and height in pixels of a page (in points) at a resolution: what is begun of a pixel counts."""
    return math.ceil(size[0] * (dpi / POINTS)), math.ceil(size[1] * (dpi / POINTS))


def fitting_dpi(size: tuple[float, float], most: int) -> int | None:
    """200, or the highest resolution from 100 on at which a page has no more than `most` pixels; None: not even 100."""
    return next((dpi for dpi in range(DPI, LEAST_DPI - 1, -1) if math.prod(pixels_at(size, dpi)) <= most), None)
