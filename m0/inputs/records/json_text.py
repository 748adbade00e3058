"""Records in JSON: one a line, or in one array, of which only the record at hand is held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from m0.errors import InputError
from m0.inputs.document import Document
from m0.inputs.records.lines import CHUNK_BYTES, MAX_LINE_BYTES, Line, read_chunks, read_lines, split_lines, undecodable
from m0.inputs.records.record import Record

MakeDocument = Callable[[Any], Document]
BLANK = " \t\n\r"
MAX_CUT_CHARACTERS = 16
"""An error so near to the end of what was read may come of what was not, such as half an escape."""
NOT_READ = "; what follows is not read."


def read_json_lines(
    file: BinaryIO, make: MakeDocument, encoding: str | None = None, plain_text: bool = False
) -> Iterator[Record]:
    """One record a line; blank lines are none.

    Args:
        file: opened as bytes. It is read from front to back, so that it may be a pipe.
        make: makes the document out of a line's value. It may raise InputError.
        encoding: None: UTF-8. A byte order mark counts more.
        plain_text: whether a line that is not JSON, and does not begin as an object or text of JSON does, is a document of text.
    """
    return _read_lines(read_lines(file, encoding), make, plain_text)


def read_json(file: BinaryIO, make: MakeDocument, encoding: str | None = None) -> Iterator[Record]:
    """One array of records, or, as many a .json file holds, JSON lines, or a single record. Arguments as of `read_json_lines`."""
    chunks, begun = read_chunks(file, encoding), ""
    try:
        while not begun.strip(BLANK) and (chunk := next(chunks, "")):
            begun += chunk
    except UnicodeDecodeError as error:
        yield Record(1, "record", InputError(undecodable(error)))
        return
    chunks = chain([begun], chunks)
    if begun.lstrip(BLANK)[:1] == "[":
        yield from _Array(chunks, make).records()
        return
    lines = split_lines(chunks)
    skipped: list[Line] = []
    for line in lines:
        skipped.append(line)
        if line.text.strip(BLANK) or line.error:
            yield from _read_object(skipped, lines, make) if _goes_on(line.text) else _read_lines(chain(skipped, lines), make)
            return


def _goes_on(line: str) -> bool:
    """Whether it begins an object that ends in a later line."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.lstrip(BLANK)[:1] == "{" and (error.pos >= len(line.rstrip()) or not line[error.pos :].strip())
    except (ValueError, RecursionError):
        pass
    return False


def _read_lines(lines: Iterable[Line], make: MakeDocument, plain_text: bool = False) -> Iterator[Record]:
    for number, line, error in lines:
        if error is not None:
            yield Record(number, "line", InputError(error))
            continue
        stripped = line.strip()
        if not stripped:
            continue
        try:
            value = json.loads(stripped)
        except (ValueError, RecursionError) as error_of_json:
            if plain_text and not stripped.startswith(("{", '"')):
                value = line.rstrip("\r\n")
            else:
                yield Record(number, "line", InputError(_why_no_json(error_of_json, stripped)))
                continue
        if plain_text and not isinstance(value, str | dict | list):
            value = line.rstrip("\r\n")
        if "\0" in stripped:  # JSON writes it as \\u0000
            yield Record(number, "line", InputError("the line holds a NUL, so that it is no text in this encoding."))
            continue
        yield Record(number, "line", _made(value, make))


def _made(value: Any, make: MakeDocument) -> Document | InputError:
    try:
        return make(value)
    except InputError as error:
        return error
    except RecursionError:
        return InputError("the record holds lists in lists, too deep to read.")


def _why_no_json(error: ValueError | RecursionError, text: str) -> str:
    if isinstance(error, RecursionError):
        return "the record holds lists in lists, too deep to read."
    if text in ("[", "{"):
        return "the line is not JSON by itself; a JSON array or object over several lines belongs into a .json file."
    if not isinstance(error, json.JSONDecodeError):
        return f"the line is not JSON: {str(error).partition(';')[0]}."
    return f"the line is not JSON: {_message(error)} in column {error.pos + 1}."


def _message(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")  # "Unterminated string starting at"


def _read_object(begun: list[Line], lines: Iterable[Line], make: MakeDocument) -> Iterator[Record]:
    """A single object over several lines: a single record."""
    pieces, length = [], 0
    for line in chain(begun, lines):
        pieces.append(line.text)
        length += len(line.text)
        if line.error or length > MAX_LINE_BYTES:
            why = line.error or f"the record is longer than {MAX_LINE_BYTES:,} characters."
            yield Record(1, "record", InputError(why))
            return
    try:
        value = json.loads("".join(pieces))
    except json.JSONDecodeError as error:
        yield Record(1, "record", InputError(f"the file is not JSON: {_message(error)} in line {error.lineno}."))
        return
    except (ValueError, RecursionError) as error:
        yield Record(1, "record", InputError(_why_no_json(error, "")))
        return
    document = _made(value, make)
    lists = [name for name, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if isinstance(document, InputError) and len(lists) == 1:
        document = InputError(f'the file is one object, whose records seem to stand under "{lists[0]}"; give that list alone.')
    yield Record(1, "record", document)


class _Array:
    """A JSON array read from its chunks, of which only those of the record at hand are held."""

    def __init__(self, chunks: Iterator[str], make: MakeDocument) -> None:
        self.chunks, self.make = chunks, make
        self.buffer, self.place, self.lines = "", 0, 0
        """What was read and is needed yet, where in it the next value begins, and the lines before it."""
        self.is_ended = False
        self.decoder = json.JSONDecoder()

    def records(self) -> Iterator[Record]:
        number = 0
        try:
            self._skip("[")
            while self._next() != "]" or number:
                document = _made(self._value(), self.make)
                number += 1
                yield Record(number, "record", document)
                if self._next() != ",":
                    break
                self._skip(",")
            self._skip("]")
            if self._next():
                raise InputError(f"more follows after the array's end in line {self._line(self.place)}; it is not read.")
        except UnicodeDecodeError as error:
            yield Record(number + 1, "record", InputError(undecodable(error)))
        except InputError as error:
            yield Record(number + 1, "record", error)

    def _fill(self) -> None:
        """Read on: as much again as there is, so that a long record is not begun too many times."""
        self.lines += self.buffer.count("\n", 0, self.place)
        pieces, self.place = [self.buffer[self.place :]], 0
        wanted = max(CHUNK_BYTES, len(pieces[0]))
        while wanted > 0 and not self.is_ended:
            chunk = next(self.chunks, "")
            pieces.append(chunk)
            wanted -= len(chunk)
            self.is_ended = not chunk
        self.buffer = "".join(pieces)

    def _next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place] in BLANK:
                self.place += 1
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if self.is_ended:
                return ""
            self._fill()

    def _skip(self, wanted: str) -> None:
        found = self._next()
        if found != wanted:
            what = f"{found!r} stands where {wanted!r} should" if found else "the array is cut short"
            raise InputError(f"the file is not JSON: {what} in line {self._line(self.place)}{NOT_READ if found else '.'}")
        self.place += 1

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.buffer) - MAX_CUT_CHARACTERS
                if self.is_ended or not cut:
                    raise InputError(
                        f"the file is not JSON: {_message(error)} in line {self._line(error.pos)}{NOT_READ}"
                    ) from None
                if len(self.buffer) - self.place > MAX_LINE_BYTES:
                    raise InputError(f"the record is longer than {MAX_LINE_BYTES:,} characters{NOT_READ}") from None
            except (ValueError, RecursionError) as error:
                raise InputError(_why_no_json(error, "").rstrip(".") + NOT_READ) from None
            else:
                if self.is_ended or end < len(self.buffer) or isinstance(value, dict | list | str):
                    self.place = end
                    return value
            self._fill()

    def _line(self, place: int) -> int:
        return self.lines + self.buffer.count("\n", 0, place) + 1
