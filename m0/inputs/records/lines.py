"""A file's text piece by piece: lines with their numbers, or chunks; in whatever encoding. It is never held as a whole."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from m0.errors import InputError
from m0.inputs.texts import BYTE_ORDER_MARKS

MAX_LINE_BYTES = 256 * 2**20
"""A longer line is no record, but another kind of file."""
CHUNK_BYTES = 2**16
LONGEST_MARK = 4
OTHER = " (--encoding, or encoding= in Python, names another)"


class Line(NamedTuple):
    """A line of a file, with its line end."""

    number: int
    text: str
    error: str | None = None
    """Why it cannot be read as text. `text` then has U+FFFD in it."""


def open_binary(path: Path) -> BinaryIO:
    """A file opened for reading, from front to back; it may be a pipe. Raises InputError, one sentence."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, not a file of records.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}.") from None


def check_encoding(encoding: str | None) -> str:
    """Python's name of an encoding; None: UTF-8. Raises InputError for what is no encoding of text."""
    if encoding is None:
        return "utf-8"
    try:
        " ".encode(encoding)  # an empty text would be taken by any codec
        return codecs.lookup(encoding).name
    except (LookupError, ValueError, TypeError):
        raise InputError(f"{encoding!r} is not an encoding that Python knows, such as utf-8, cp1252 or utf-16-le.") from None


def _codec_of(begin: bytes, encoding: str | None) -> tuple[bytes, str]:
    """The byte order mark that a file begins with, and the codec for what follows. A mark counts more than `encoding`."""
    for mark, _, codec in BYTE_ORDER_MARKS:
        if begin.startswith(mark):
            return mark, codec
    codec = check_encoding(encoding)
    # Without a mark Python would take the machine's own order, which says nothing of a file.
    return b"", {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}.get(codec, codec)


def read_lines(file: BinaryIO, encoding: str | None = None) -> Iterator[Line]:
    """The lines of a file that ends them by a line feed, with or without a carriage return. Each keeps its end.

    A line whose bytes are not in the encoding says so and spoils no other, but in UTF-16 and UTF-32, where it is the last one that is read.
    """
    begin = file.read(LONGEST_MARK)
    mark, codec = _codec_of(begin, encoding)
    rest = begin[len(mark) :]
    if codec.startswith(("utf-16", "utf-32")):
        yield from split_lines(_decoded(file, rest, codec, len(mark)))
        return
    number = 0
    # What was read already may hold line ends.
    *whole, rest = rest.split(b"\n")
    for number, line in enumerate(whole, 1):
        yield _line(number, line + b"\n", codec)
    while data := rest + file.readline(MAX_LINE_BYTES - len(rest)):
        rest, number = b"", number + 1
        if len(data) >= MAX_LINE_BYTES and not data.endswith(b"\n"):
            while (more := file.readline(CHUNK_BYTES)) and not more.endswith(b"\n"):
                pass
            yield Line(number, "", f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB.")
        else:
            yield _line(number, data, codec)


def _line(number: int, data: bytes, codec: str) -> Line:
    try:
        return Line(number, data.decode(codec))
    except UnicodeDecodeError as error:
        return Line(number, data.decode(codec, "replace"), f"the line is not {codec.upper()} at its byte {error.start}{OTHER}.")


def split_lines(chunks: Iterator[str]) -> Iterator[Line]:
    """The lines of a text that comes in chunks. Bytes that are not in its encoding end it."""
    number, pieces, length = 0, [""], 0
    try:
        for chunk in chunks:
            first, *others = chunk.split("\n")
            pieces.append(first)
            length += len(first)
            if others:
                *whole, last = others
                for text in ("".join(pieces), *whole):
                    number += 1
                    yield Line(number, text + "\n")
                pieces, length = [last], len(last)
            if length > MAX_LINE_BYTES:
                yield Line(number + 1, "", f"the line is longer than {MAX_LINE_BYTES:,} characters; what follows is not read.")
                return
    except UnicodeDecodeError as error:
        yield Line(number + 1, "", undecodable(error))
        return
    if rest := "".join(pieces):
        yield Line(number + 1, rest)


def undecodable(error: UnicodeDecodeError) -> str:
    """The sentence for bytes that `read_chunks` could not decode."""
    return f"the file is not {error.encoding.upper()} {error.reason}{OTHER}; what follows is not read."


def read_chunks(file: BinaryIO, encoding: str | None = None) -> Iterator[str]:
    """A file's text, some at a time. Raises UnicodeDecodeError, for `undecodable`, at bytes that are not in its encoding."""
    begin = file.read(LONGEST_MARK)
    mark, codec = _codec_of(begin, encoding)
    return _decoded(file, begin[len(mark) :], codec, len(mark))


def _decoded(file: BinaryIO, begin: bytes, codec: str, skipped: int) -> Iterator[str]:
    """`begin`: what was read already, less its first `skipped` bytes."""
    decoder = codecs.getincrementaldecoder(codec)()
    place = skipped
    data, is_last = begin, False
    while not is_last:
        if not data:
            data = file.read(CHUNK_BYTES)
            is_last = not data
        try:
            text = decoder.decode(data, final=is_last)
        except UnicodeDecodeError as error:
            at = place - (len(error.object) - len(data)) + error.start  # what was left of the chunk before comes first
            raise UnicodeDecodeError(codec, error.object, error.start, error.end, f"at byte {at}") from None
        if text:
            yield text
        place, data = place + len(data), b""
