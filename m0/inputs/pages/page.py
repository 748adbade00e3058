"""One page of a file: what is known of it, and how it is read when it is wanted."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from m0.errors import InputError
from m0.inputs.resizing import ImageSettings
from m0.locks import level_of_caller

if TYPE_CHECKING:
    from m0.inputs.images import Picture
    from m0.inputs.stream import Part

As = Literal["image", "text", "both"]
Wanted = Literal["image", "text", "both", "auto"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PageLimits:
    """What is refused before it is read. Raise them for files that you trust. Raises InputError for fields that cannot be used."""

    max_file_bytes: int = 2**30
    """Of a file of pages, and of all files in an archive that are pages once unpacked."""
    max_pages: int = 10_000
    """That one call reads of a file."""

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_pages"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")


@dataclass(frozen=True)
class PageInfo:
    """What a page is and how it is drawn, in plain values, for results and JSON."""

    file: str
    """What the file is called in messages."""
    number: int
    """From 1."""
    pages: int
    """How many pages the file has."""
    label: str | None = None
    """What the PDF calls the page, such as "iv"; None where it has no labels. Of an archive, the picture's name in it."""
    size: tuple[float, float] | None = None
    """Width and height in points (1/72 inch) as the page is shown: CropBox, /Rotate and UserUnit applied. None for pictures."""
    scale: float | None = None
    """Drawn pixels a point: a pixel of `Picture.original_size` divided by it is a point of `size`. None for pictures, for pages
    that are read as text, and for pages too large to be drawn."""
    dpi: float | None = None
    """Drawn pixels an inch: 200, or less where the page would pass max_image_pixels."""
    renderer: str | None = None
    """What draws the page and reads its text, with versions. None for pictures."""


@dataclass(frozen=True)
class Word:
    """A word of a page's text layer. Of a word that is broken at a line's end, each piece stands by itself."""

    text: str
    box: Box
    """Left, top, right, bottom in points of the page as it is shown (`PageInfo.size`), from its top left corner, within the page."""
    pdf_box: Box
    """Left, bottom, right, top in the PDF's own coordinates: the page not turned, not cropped, from its bottom left corner."""


@dataclass(frozen=True)
class Drawn:
    """A page's picture, resized."""

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]
    original: bytes | None = None
    """As `Picture.original`."""


@dataclass
class Content:
    """What a page gave."""

    drawn: Drawn | None = None
    text: str | None = None
    notes: list[str] = field(default_factory=list)
    """What its reader should know: one sentence each."""


class PageFile(ABC):
    """A file of pages. It is found again when a page is read, so that what holds it is small and can be pickled."""

    name: str
    pages: int
    kind: ClassVar[Literal["pdf", "tiff", "zip"]]
    notes: tuple[str, ...] = ()
    """What is to be known of the whole file: one sentence each."""

    @abstractmethod
    def read(self, number: int, as_: As, settings: ImageSettings) -> Content:
        """What page `number`, from 1, holds. Raises InputError."""

    @abstractmethod
    def infos(self, numbers: Sequence[int], as_: As, settings: ImageSettings) -> list[PageInfo]:
        """What is known of pages without drawing them. Raises InputError."""

    def kind_of(self, number: int) -> As:
        """What "auto" stands for. Raises InputError."""
        return "image"

    def text_of(self, number: int) -> str:
        """The text layer of page `number`; empty where it has none. Raises InputError."""
        return ""

    def words_of(self, number: int) -> tuple[Word, ...]:
        """The words of page `number`. Raises InputError."""
        return ()

    def pdf_box(self, number: int, box: Box) -> Box:
        """As `Page.pdf_box`, of page `number`. Raises InputError for pages of other files."""
        raise InputError(f"{self.name} is no PDF, so that its pages have no coordinates of their own.")


class Page:
    """A page of a file, which is a document. Nothing of it is read until `parts`, `text` or `words` is called."""

    def __init__(self, file: PageFile, info: PageInfo, as_: As, settings: ImageSettings) -> None:
        self.info, self.as_ = info, as_
        self.notes: tuple[str, ...] = ()
        """What `parts` had to say of the page, such as that it has text and is white all the same."""
        self.left_out: str | None = None
        """What its reader left out of the file, one sentence."""
        self._file, self._settings = file, settings

    def __repr__(self) -> str:
        return f"Page({self.name!r}, as_={self.as_!r})"

    @property
    def name(self) -> str:
        """What the page is called in messages, as on the command line: report.pdf#3."""
        return f"{self.info.file}#{self.info.number}"

    @property
    def kind(self) -> Literal["pdf", "tiff", "zip"]:
        """What its file is."""
        return self._file.kind

    def parts(self, settings: ImageSettings | None = None) -> list[Part]:
        """Read the page as `as_` says: [Picture], [str], or [Picture, str] where it has text.

        Args:
            settings: sizes and limits of pictures; None: those of `read_pages`.

        Raises InputError (ImageError for a page that is too large), one sentence. Warns, once a call, of what `notes` then holds.
        """
        parts = self.read(settings)
        self.warn()
        return parts

    def warn(self, of_file: bool = False) -> None:
        """Warn of what `notes` holds, before it of what is to be known of the whole file where `of_file` is set."""
        of_others = (*self._file.notes, *([self.left_out] if self.left_out else [])) if of_file else ()
        for note in (*of_others, *self.notes):
            warnings.warn(note, stacklevel=level_of_caller())

    def read(self, settings: ImageSettings | None = None) -> list[Part]:
        """As `parts`, without warnings, for threads in which these are not to be trusted. Raises InputError."""
        settings = settings or self._settings
        content = self._file.read(self.info.number, self.as_, settings)
        self.notes = tuple(content.notes)
        parts: list[Part] = []
        if content.drawn is not None:
            parts.append(_picture(content.drawn, settings))
        if content.text is not None and (content.text.strip() or not parts):
            if not content.text.strip():
                raise InputError(f"{self.name} has no text; read it as a picture.")
            parts.append(content.text)
        return parts

    def info_for(self, settings: ImageSettings) -> PageInfo:
        """`info` where the page is read with other settings than those that `read_pages` was given: scale and dpi may differ."""
        return self.info if settings == self._settings else self._file.infos([self.info.number], self.as_, settings)[0]

    def text(self) -> str:
        """The page's text layer, within its CropBox; empty where it has none. Raises InputError."""
        return self._file.text_of(self.info.number)

    def words(self) -> tuple[Word, ...]:
        """The words of the text layer and where they stand; none for pictures. Raises InputError."""
        return self._file.words_of(self.info.number)

    def pdf_box(self, box: Box) -> Box:
        """A box in points of the page as shown (left, top, right, bottom) -> left, bottom, right, top in the PDF's coordinates.

        Raises InputError for pages of other files.
        """
        return self._file.pdf_box(self.info.number, box)


def _picture(drawn: Drawn, settings: ImageSettings) -> Picture:
    from m0.inputs.images import Picture  # here, since it brings PyTorch, which the processes that draw do without

    return Picture(drawn.pixels, drawn.original_size, settings, original=drawn.original)


def checked_as(as_: Any) -> Wanted:
    """Raises InputError for what `as_` cannot be."""
    known = (*get_args(As), "auto")
    if as_ not in known:
        raise InputError(f"as_ is {as_!r}, but must be {', '.join(map(repr, known[:-1]))} or 'auto'.")
    wanted: Wanted = as_
    return wanted
