"""What a user may hand in as a query or document: opened, checked, and made parts of a prompt; documents ahead of time, by threads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from os.path import isfile
from typing import Any

import numpy as np
from PIL import Image

from m0.errors import InputError
from m0.inputs.images import ImageSettings, Picture, prepare_picture
from m0.inputs.opening import looks_like_picture
from m0.inputs.stream import Part, Side
from m0.inputs.texts import (
    NEITHER_PICTURE_NOR_TEXT,
    TEXT_SUFFIXES,
    decode,
    is_open_file,
    kind_by_name,
    name_of_file,
    read_bytes,
    read_open_file,
    read_open_text,
    read_text,
)
from m0.locks import level_of_caller
from m0.paths import exists, path_of

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def read_parts(value: Any, side: Side, settings: ImageSettings) -> list[Part]:
    """What a user gave as a query or document -> its parts, pictures opened and resized.

    Args:
        value: a string (always text); a path or open file (text or a picture, see `_read_file`); bytes, a PIL image or an array (a
            picture); {"text": ...} or {"image": ...}; or a list of these, in order.

    Raises InputError (ImageError for a picture), one sentence.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"the {side} is an empty list.")
        parts = [part for item in value for part in _read_part(item, side, settings)]
    else:
        parts = _read_part(value, side, settings)
    if not any(isinstance(part, Picture) or part.strip() for part in parts):
        raise InputError(f"the {side} is empty.")
    return parts


def _read_part(value: Any, side: Side, settings: ImageSettings) -> list[Part]:
    if isinstance(value, str):
        return [_check_unicode(value, side)]
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
                parts.append(_check_unicode(read_text(path_of(content)), side))
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
        # What is no file is refused by the reader of pictures.
        kind, display_name = kind_by_name(path) if isfile(path) else "picture", str(path)
        data = read_bytes(path) if kind != "picture" else b""
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
        decode(data, display_name, "neither a picture nor text" if kind is None else NEITHER_PICTURE_NOR_TEXT), side
    )


def _check_unicode(text: str, side: Side) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the {side}'s text is not valid Unicode at character {error.start} (a lone surrogate).") from None
    return text


def read_parts_and_warn(value: Any, side: Side, settings: ImageSettings) -> list[Part]:
    """As `read_parts`, with a warning where a string looks as if a file was meant."""
    if isinstance(value, str):
        warn_if_file(value, side)
    return read_parts(value, side, settings)


def warn_if_file(text: str, side: str) -> None:
    """A string is text. Say so where it looks as if a file was meant."""
    data, end = text.startswith("data:image/"), text[-10:].lower()
    if not data and (len(text) >= 1000 or "\n" in text):
        return
    if data or (end.endswith(PICTURE_SUFFIXES) and (text.startswith(("http://", "https://")) or _names_file(text))):
        how = 'to show the picture, pass {"image": ...} or a pathlib.Path'
    elif side == "document" and end.endswith(TEXT_SUFFIXES) and _names_file(text):
        how = "for what the file holds, pass a pathlib.Path"
    else:
        return
    shown = text if len(text) < 80 else f"{text[:60]}..."
    warnings.warn(f"the {side} {shown!r} is read as text; {how}.", stacklevel=level_of_caller())


def _names_file(text: str) -> bool:
    try:
        return exists(path_of(text))
    except InputError:
        return False
