"""What files of pages are, and their pages one after the other."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from m0.errors import InputError
from m0.inputs.frames import tiff_directories
from m0.inputs.pages.page import As, Page, PageFile, PageLimits, Wanted, checked_as
from m0.inputs.pages.ranges import parse_page_range
from m0.inputs.resizing import ImageSettings
from m0.inputs.texts import is_open_file, is_opened_as_text, name_of_file, read_open_file
from m0.locks import level_of_caller
from m0.paths import path_of

HEAD = 1024
"""Bytes within which a PDF begins (ISO 32000-1, annex H, note 13)."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
OTHERS = {b"Rar!": "a RAR archive", b"7z\xbc\xaf": "a 7z archive"}
SUFFIXES = (".pdf", ".cbz")
"""Which name nothing but files of pages."""
AT_ONCE = 64
"""Pages that are asked after together."""
Kind = Literal["pdf", "tiff", "zip"]


def read_pages(
    source: str | PathLike[str] | bytes | Any,
    pages: str | int | Iterable[int] | None = None,
    as_: Wanted = "image",
    password: str | None = None,
    settings: ImageSettings | None = None,
    limits: PageLimits | None = None,
    name: str | None = None,
) -> Iterator[Page]:
    """The pages of a PDF, a TIFF, or a zip archive of pictures (CBZ): each is a document.

    The file is opened and checked at once; pages are drawn or read when they are scored.

    Args:
        source: a path, bytes, or a file opened with "rb".
        pages: which, from 1: "1-3,7", "5-", a number or several; None: all.
        as_: "image", the page's picture; "text", its text layer; "both"; or "auto": the text of pages that have text and no pictures,
            else the picture.
        password: of a protected file. The empty one need not be given.
        settings: sizes and limits of pictures; None: the released model's.
        limits: how large a file may be, and how many pages are read.
        name: what to call it in messages and results; None: its path, or how large it is.

    Raises InputError, one sentence, for what is no such file, is damaged, protected, too large or has no such pages, and
    MissingExtraError for a PDF where pypdfium2 is missing.
    """
    file, found = open_pages(source, pages, as_, password, settings, limits, name)
    for note in file.notes:
        warnings.warn(note, stacklevel=level_of_caller())
    return found


def open_pages(
    source: str | PathLike[str] | bytes | Any,
    pages: str | int | Iterable[int] | None = None,
    as_: Wanted = "image",
    password: str | None = None,
    settings: ImageSettings | None = None,
    limits: PageLimits | None = None,
    name: str | None = None,
) -> tuple[PageFile, Iterator[Page]]:
    """As `read_pages`, without warnings, for threads in which these are not to be trusted; the file's notes hold them.

    Raises InputError and MissingExtraError.
    """
    wanted = checked_as(as_)
    settings, limits = settings or ImageSettings(), limits or PageLimits()
    if password is not None and not isinstance(password, str):
        raise InputError(f"password is {type(password).__name__}, but must be text.")
    file = _opened(source, password, limits, name)
    try:
        numbers = parse_page_range(pages, file.pages)
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from None
    if len(numbers) > limits.max_pages:
        raise InputError(
            f"{file.name}: {len(numbers)} pages were asked for, above the limit of {limits.max_pages}; name fewer, or raise max_pages."
        )
    return file, _pages(file, numbers, wanted, settings)


def _pages(file: PageFile, numbers: list[int], wanted: Wanted, settings: ImageSettings) -> Iterator[Page]:
    for start in range(0, len(numbers), 1 if wanted == "auto" else AT_ONCE):
        some = numbers[start : start + (1 if wanted == "auto" else AT_ONCE)]
        as_: As = file.kind_of(some[0]) if wanted == "auto" else wanted
        for info in file.infos(some, as_, settings):
            yield Page(file, info, as_, settings)


def has_pages(source: str | PathLike[str] | bytes) -> bool:
    """Whether something is to be read page by page: a PDF, a TIFF of several pages, a zip archive of pictures.

    By what it holds; a name that ends in .pdf or .cbz is believed, so that what is wrong with such a file is said. What cannot be
    read has no pages. Of a file, no more is read than it takes to tell.
    """
    if isinstance(source, bytes):
        return _has_pages(io.BytesIO(source))
    try:
        path = path_of(source)
        if not path.is_file():
            return False
        if path.suffix.lower() in SUFFIXES:
            return True
        with open(path, "rb") as file:
            return _has_pages(file)
    except (InputError, OSError, ValueError):
        return False


def _has_pages(file: Any) -> bool:
    head = file.read(HEAD)
    kind = _kind(head)
    if kind == "tiff":
        kinds = list(tiff_directories(file))
        return sum(not place or kind == "page" for place, kind in enumerate(kinds)) > 1 or kinds[1:] == ["broken"]
    if kind != "zip":
        return kind == "pdf"
    from m0.inputs.pages.archive import check_directory, is_of_pictures

    try:
        check_directory(file, "")
        with zipfile.ZipFile(file) as archive:
            return is_of_pictures(archive)
    except Exception:  # damaged, which the reader of the file tells
        return False


def _kind(head: bytes) -> Kind | None:
    if head.startswith(TIFF):
        return "tiff"
    if head.startswith(ZIP):
        return "zip"
    return "pdf" if b"%PDF-" in head[:HEAD] else None


def _opened(source: Any, password: str | None, limits: PageLimits, called: str | None) -> PageFile:
    name, where, head = _located(source, limits)
    name = called or name
    kind = _kind(head)
    if kind == "pdf":
        from m0.inputs.pages.pdf import PdfFile

        return PdfFile(name, where, password)
    if kind == "tiff":
        from m0.inputs.pages.tiff import TiffFile

        return TiffFile(name, where)
    if kind == "zip":
        from m0.inputs.pages.archive import ArchiveFile

        return ArchiveFile(name, where, password, limits)
    if not head:
        raise InputError(f"{name} is empty.")
    other = next((f" (it is {called})" for magic, called in OTHERS.items() if head.startswith(magic)), "")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        other = " (it looks like HTML)"
    raise InputError(f"{name} is neither a PDF, a TIFF, nor a zip archive of pictures{other}.")


def _located(source: Any, limits: PageLimits) -> tuple[str, Path | bytes, bytes]:
    """What to call it in messages, where it is, and how it begins."""
    if is_open_file(source):
        name = name_of_file(source)
        data = "" if is_opened_as_text(source) else read_open_file(source)
        if isinstance(data, str):
            raise InputError(f"{name} is opened as text; a file of pages is opened with 'rb'.")
        _within(len(data), name, limits)
        return name, data, data[:HEAD]
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the file of {len(source)} bytes"
        _within(len(source), name, limits)
        return name, bytes(source), bytes(source[:HEAD])
    path = path_of(source)
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:60]}..."
    try:
        if path.is_dir():
            raise InputError(f"{name} is a directory, not a file of pages.")
        if not path.exists():
            raise InputError(f"{name} does not exist.")
        if not path.is_file():  # a pipe would block for ever
            raise InputError(f"{name} is not a file, but a device, pipe or socket.")
        _within(path.stat().st_size, name, limits)
        with open(path, "rb") as file:
            return name, path.absolute(), file.read(HEAD)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _within(size: int, name: str, limits: PageLimits) -> None:
    if size > limits.max_file_bytes:
        raise InputError(
            f"{name} has {size} bytes, above the limit of {limits.max_file_bytes}; raise max_file_bytes if it is meant."
        )
