"""What a user may hand in as a query or document: opened, checked, and made parts of a prompt; and the pages of those that have some."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from os.path import isfile
from typing import Any

import numpy as np
from PIL import Image

from m0.errors import InputError
from m0.inputs.document import Document
from m0.inputs.hosts import shown
from m0.inputs.images import ImageSettings, Picture, prepare_picture
from m0.inputs.markup import MARKUP_SUFFIXES, read_markup
from m0.inputs.opening import looks_like_picture, read_data_uri
from m0.inputs.pages import Page, has_pages, open_pages
from m0.inputs.stream import Part, Side
from m0.inputs.texts import (
    NEITHER_PICTURE_NOR_TEXT,
    TEXT_SUFFIXES,
    decode,
    is_open_file,
    is_opened_as_text,
    kind_by_name,
    name_of_file,
    read_bytes,
    read_open_file,
    read_open_text,
)
from m0.locks import level_of_caller
from m0.paths import exists, path_of

PAGE_KEYS = ("pdf", "pages", "as", "password")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def read_parts(value: Any, side: Side, settings: ImageSettings) -> list[Part]:
    """What a user gave as a query or document -> its parts, pictures opened and resized.

    Args:
        value: a string (always text); a path or open file (text, a picture or pages, see `_read_file`); bytes, a PIL image or an array (a
            picture); {"text": ...} or {"image": ...}; {"pdf": path, address, data URI or bytes}, with "pages" ("1-3,7"), "as" ("image",
            "text", "both" or "auto") and "password" where wanted; a `Page`; a `Document` that holds one of these; or a list of these, in
            order. By itself a file of pages must be one page: with several it is several prompts (`m0.inputs.ahead.units_of`).

    Raises InputError (ImageError for a picture), one sentence.
    """
    value = value.content if isinstance(value, Document) else value
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"the {side} is an empty list.")
        parts = [part for item in value for part in _read_part(item, side, settings)]
    else:
        parts = _read_part(value, side, settings, alone=True)
    if not any(isinstance(part, Picture) or part.strip() for part in parts):
        raise InputError(f"the {side} is empty.")
    return parts


def pages_of(value: Any, settings: ImageSettings) -> list[Page] | None:
    """The pages of what has some: a `Page`, {"pdf": ...}, and files and bytes of PDFs, TIFFs with several pages, and zip archives of pictures.

    None: it is read as a whole. Warns of nothing: what is to be said is in the pages' notes and their file's. Raises InputError.
    """
    if isinstance(value, Page):
        return [value]
    if _is_named_pdf(value):
        if unknown := [str(key) for key in value if key not in PAGE_KEYS]:
            raise InputError(
                f'a part with "pdf" may also have {", ".join(PAGE_KEYS[1:])}, but has {", ".join(sorted(unknown))}.'
            )
        source, name = _page_source(value["pdf"], settings)
        as_, password = value.get("as", "image"), value.get("password")
        return list(open_pages(source, value.get("pages"), as_, password, settings, name=name)[1])
    if isinstance(value, Mapping):
        if set(value) != {"image"}:
            return None
        value = value["image"]
        if isinstance(value, str) and not (
            value[:20].lower().startswith("data:application/pdf") or _names_file(value, settings)
        ):
            return None
    elif isinstance(value, str):
        return None
    try:
        source, name = _page_source(value, settings)
        if is_open_file(source):
            data = b"" if is_opened_as_text(source) else read_open_file(source)
            source, name = data, name_of_file(source)
    except InputError:  # said by the reader of pictures and texts, which cannot read it either
        return None
    if not isinstance(source, PathLike | bytes) or not has_pages(source):
        return None
    return list(open_pages(source, settings=settings, name=name)[1])


def _is_named_pdf(value: Any) -> bool:
    """Whether it is {"pdf": ...}."""
    return isinstance(value, Mapping) and "pdf" in value


def _page_source(source: Any, settings: ImageSettings) -> tuple[Any, str | None]:
    """What `read_pages` reads, a path where any file may be read, else bytes; and what to call it where that is not seen from it."""
    policy = settings.policy
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        return policy.fetch(source, "application/pdf, */*")[0], shown(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        policy.check_data(f"the data URI {source[:30]}...")
        return read_data_uri(source), None
    if isinstance(source, str | PathLike):
        path = policy.check_path(source)
        return (path, None) if policy.root is None else (_read_bytes(source, settings), str(path))
    if isinstance(source, bytes | bytearray | memoryview):
        policy.check_data(f"the file of {len(source)} bytes")
        return bytes(source), None
    return source, None


def _read_bytes(path: str | PathLike[str], settings: ImageSettings) -> bytes:
    policy = settings.policy
    if policy.root is None:
        return read_bytes(policy.check_path(path))
    try:
        with policy.open_path(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _read_part(value: Any, side: Side, settings: ImageSettings, alone: bool = False) -> list[Part]:
    """`alone`: not one of a list."""
    if isinstance(value, str):
        return [_check_unicode(value, side)]
    pages = pages_of(value, settings)
    # Of a TIFF that is not ranked page by page the first page is read, as of other pictures with several frames.
    as_picture = pages is not None and len(pages) > 1 and pages[0].kind == "tiff" and not _is_named_pdf(value)
    if pages is not None and not as_picture:
        if alone and len(pages) > 1:
            raise InputError(
                f'{pages[0].info.file} has {len(pages)} pages, which are a prompt each; name one as in "pages": "1", or give them in a list '
                "to have all in one prompt."
            )
        found = [part for page in pages for part in page.read(settings)]
        for number, page in enumerate(pages):
            page.warn(of_file=not number and not isinstance(value, Page))
        return found
    if isinstance(value, PathLike) or is_open_file(value):
        return [_read_file(value, side, settings)]
    if isinstance(value, bytes | bytearray | memoryview | Image.Image | np.ndarray):
        return [prepare_picture(value, settings)]
    if isinstance(value, Picture):
        return [value]
    if isinstance(value, Mapping):
        if not value or not set(value) <= {"text", "image"}:
            raise InputError(f'a {side} part has the keys {sorted(map(str, value))}, but must have "text", "image" or both.')
        parts: list[Part] = []
        for key, content in value.items():
            if key == "image":
                parts.append(prepare_picture(content, settings))
            elif isinstance(content, str):
                parts.append(_check_unicode(content, side))
            elif isinstance(content, PathLike):
                parts.append(_check_unicode(_text_of(_read_bytes(content, settings), str(path_of(content)), None), side))
            elif is_open_file(content):
                parts.append(_check_unicode(read_open_text(content), side))
            else:
                raise InputError(
                    f'the "text" of a {side} part is {type(content).__name__}, but must be a string, path or open file.'
                )
        return parts
    raise InputError(
        f"the {side} holds {'None' if value is None else type(value).__name__}, but must be text, a picture, "
        '{"text": ...}, {"image": ...} or a list of these.'
    )


def _read_file(value: Any, side: Side, settings: ImageSettings) -> Part:
    """A path or an open file: text or a picture as its name's suffix says, else as its bytes say. What is opened as text is text; what
    is opened as bytes and has no name, such as BytesIO, is a picture, as bytes are."""
    if not is_open_file(value):
        path = path_of(value)
        # What is no file, or may not be read, is refused by the reader of pictures.
        is_text = settings.policy.paths and isfile(path) and kind_by_name(path) != "picture"
        kind, display_name = kind_by_name(path) if is_text else "picture", str(path)
        data = _read_bytes(path, settings) if is_text else b""
    else:
        content = read_open_file(value)
        if isinstance(content, str):
            return _check_unicode(content, side)
        name = getattr(value, "name", None)  # of a temporary file a number
        kind, display_name = kind_by_name(name) if isinstance(name, str | PathLike) else "picture", name_of_file(value)
        data = content
    if kind == "picture" or (kind is None and looks_like_picture(data)):
        return prepare_picture(value, settings)
    return _check_unicode(
        _text_of(data, display_name, "neither a picture nor text" if kind is None else NEITHER_PICTURE_NOR_TEXT), side
    )


def _text_of(data: bytes, name: str, expected: str | None) -> str:
    """The text of a file: of HTML, office files and e-mails what they say, of others what they hold."""
    if name.lower().endswith(MARKUP_SUFFIXES):
        return read_markup(data, name)
    return decode(data, name) if expected is None else decode(data, name, expected)


def _check_unicode(text: str, side: Side) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the {side}'s text is not valid Unicode at character {error.start} (a lone surrogate).") from None
    return text


def read_parts_and_warn(value: Any, side: Side, settings: ImageSettings) -> list[Part]:
    """As `read_parts`, with a warning where a string looks as if a file was meant."""
    if isinstance(value, str):
        warn_if_file(value, side, settings)
    return read_parts(value, side, settings)


def warn_if_file(text: str, side: str, settings: ImageSettings) -> None:
    """A string is text. Say so where it looks as if a file was meant."""
    data, end = text.startswith("data:image/"), text[-10:].lower()
    if not data and (len(text) >= 1000 or "\n" in text):
        return
    if data or (end.endswith(PICTURE_SUFFIXES) and (text.startswith(("http://", "https://")) or _names_file(text, settings))):
        how = 'to show the picture, pass {"image": ...} or a pathlib.Path'
    elif side == "document" and end.endswith(TEXT_SUFFIXES) and _names_file(text, settings):
        how = "for what the file holds, pass a pathlib.Path"
    else:
        return
    shown = text if len(text) < 80 else f"{text[:60]}..."
    warnings.warn(f"the {side} {shown!r} is read as text; {how}.", stacklevel=level_of_caller())


def _names_file(text: str, settings: ImageSettings) -> bool:
    """Nobody is told of files that may not be read."""
    try:
        return settings.policy.paths and len(text) < 4096 and exists(settings.policy.check_path(text))
    except InputError:
        return False
