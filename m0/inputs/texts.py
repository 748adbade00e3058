"""Text from outside: what a file's name says it is, what its bytes say, and files that a user has opened."""

from __future__ import annotations

import codecs
import contextlib
import inspect
import io
import os
import threading
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from m0.errors import InputError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".xml", ".csv", ".tsv", ".json", ".py", ".tex", ".org", ".log")
NEITHER_PICTURE_NOR_TEXT = "neither a picture by its name nor text"
# UTF-32's byte order mark of little endian begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "UTF-8", "utf-8"),
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32-be"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16-be"),
)
_reading_lock = threading.Lock()


@cache
def picture_suffixes() -> tuple[str, ...]:
    """Those of the formats that Pillow opens."""
    from PIL import Image  # here, so that the command line's help comes at once

    return tuple(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind != "PDF")


def kind_by_name(name: str | PathLike[str]) -> Literal["text", "picture"] | None:
    """What a file's suffix says it holds; None: nothing that is known."""
    suffix = Path(name).suffix.lower()
    return "text" if suffix in TEXT_SUFFIXES else "picture" if suffix in picture_suffixes() else None


def encoding_of(data: bytes) -> tuple[bytes, str, str]:
    """The byte order mark that a text begins with, its encoding's name, and Python's codec for what follows; without one UTF-8."""
    return next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark[0])), (b"", "UTF-8", "utf-8"))


def decode(data: bytes, name: str, expected: str = "text") -> str:
    """UTF-8, or UTF-16 and UTF-32 where they begin with a byte order mark.

    Args:
        data: what a file holds.
        name: what to call it in messages.
        expected: what it might have been, for the message: "{name} is {expected} in UTF-8"; "text": "{name} is not text in UTF-8".

    Raises InputError, one sentence, for other encodings, for what holds a NUL character, and for PDF.
    """
    if data.startswith(b"%PDF-"):
        raise InputError(f'{name} is a PDF, not text; give it as {{"pdf": ...}}, and for its text with "as": "text".')
    mark, encoding, codec = encoding_of(data)
    try:
        text = data[len(mark) :].decode(codec)
    except UnicodeDecodeError as error:
        lead = f"not {expected}" if expected == "text" else expected
        raise InputError(f"{name} is {lead} in {encoding} at byte {error.start + len(mark)}.") from None
    return check_text(text, name)


def check_text(text: str, name: str) -> str:
    """The same text. Raises InputError where it holds a NUL, as files do that are no text, and UTF-16 without its mark."""
    if (place := text.find("\0")) >= 0:
        raise InputError(
            f"{name} is not text, for it holds a NUL at character {place}; UTF-16 is read where it begins with a byte order mark."
        )
    return text


def read_bytes(path: Path, pipes: bool = False) -> bytes:
    """What a file holds. `pipes`: also what is no file, such as a pipe, which may block. Raises InputError, one sentence."""
    try:
        if not pipes and path.exists() and not path.is_dir() and not path.is_file():
            raise InputError(f"{path} is not a file, but a device, pipe or socket.")
        return path.read_bytes()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, not a text.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}.") from None


def read_text(path: Path) -> str:
    """The text that a file holds, whatever its name. Raises InputError, one sentence."""
    return decode(read_bytes(path), str(path))


# --- files that a user has opened ---------------------------------------------------------------------------------------


def is_open_file(value: Any) -> bool:
    """Whether it is read from as from an open file."""
    return callable(getattr(value, "read", None)) and not isinstance(value, PathLike)


def is_opened_as_text(file: Any) -> bool:
    return isinstance(file, io.TextIOBase) or getattr(file, "encoding", None) is not None


def name_of_file(file: Any) -> str:
    """The name under which it was opened, else what kind of object it is."""
    name = getattr(file, "name", None)  # of a temporary file a number
    return (
        f"the file {os.fsdecode(name)}" if isinstance(name, str | bytes | PathLike) and name else f"the {type(file).__name__}"
    )


def read_open_file(file: Any) -> str | bytes:
    """What an open file holds from its position on, to which it then goes back, so that it can be read again. It stays open.

    Text where it was opened as text. Raises InputError, one sentence, where it is closed, cannot go back, or has nothing left.
    """
    name = name_of_file(file)
    if getattr(file, "closed", False) is True:
        raise InputError(f"{name} is closed.")
    with _reading_lock:  # several threads may be given the same file
        try:
            position = file.tell()
            file.seek(position)
        except Exception:  # each kind of file that cannot has an error of its own
            raise InputError(f"{name} cannot go back to be read again; give what its read() gives.") from None
        try:
            content = file.read()
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not text in {error.encoding}; a picture is opened with 'rb'.") from None
        except Exception as error:
            raise InputError(f"{name} cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from None
        finally:
            with contextlib.suppress(Exception):  # it could a moment ago
                file.seek(position)
    if inspect.iscoroutine(content):
        content.close()
    if not isinstance(content, str | bytes | bytearray):
        raise InputError(f"{name} gives {type(content).__name__} when it is read, but must give bytes or text.")
    if not content:
        raise InputError(f"{name} is empty" + (" from its position on; seek(0) goes back." if position else "."))
    return check_text(content, name) if isinstance(content, str) else bytes(content)


def read_open_text(file: Any) -> str:
    """The text of an open file, decoded where it was opened as bytes. Raises InputError, one sentence."""
    content = read_open_file(file)
    return content if isinstance(content, str) else decode(content, name_of_file(file))
