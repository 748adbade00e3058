"""Records in CSV and TSV: a header that names the columns, and a record a row."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import BinaryIO

from m0.errors import InputError
from m0.inputs.records.fields import Fields, list_names
from m0.inputs.records.json_text import NOT_READ, MakeDocument
from m0.inputs.records.lines import Line, read_lines
from m0.inputs.records.record import Record
from m0.inputs.records.shapes import NAME_ONE, is_known

MAX_FIELD_CHARACTERS = 32 * 2**20
DELIMITERS = (",", "\t", ";", "|")
DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_csv_limit = threading.Lock()


def read_table(
    file: BinaryIO, make: MakeDocument, delimiter: str, fields: Fields, name: str, encoding: str | None = None
) -> Iterator[Record]:
    """One record a row, all its fields text. Quoted fields may hold the delimiter and line ends.

    Args:
        file: opened as bytes. It is read from front to back, so that it may be a pipe.
        make: makes the document out of a row. It may raise InputError.
        delimiter: what the name's suffix says. Where the header does not have it, it is one of `DELIMITERS` that the header has, as
            where Excel writes semicolons, or what Excel's line "sep=;" says.
        name: the file's, for messages.

    Raises InputError, one sentence, where the header is missing, names a column twice, or lacks one that is needed.
    """
    lines = _Lines(read_lines(file, encoding))
    header, delimiter = _read_header(lines, delimiter, fields, name)
    for number, row in _read_rows(lines, delimiter):
        if isinstance(row, InputError):
            yield Record(number, "line", row)
        elif len(row) != len(header):
            yield Record(number, "line", InputError(_ragged(len(row), len(header), delimiter)))
        else:
            try:
                yield Record(number, "line", make(dict(zip(header, row, strict=True))))
            except InputError as error:
                yield Record(number, "line", error)


def check_columns(columns: Sequence[str], fields: Fields, name: str, hint: str = "", known: bool = False) -> None:
    """Whether a table's columns are enough for documents. `known`: whether a column that has no known name holds pictures.

    Raises InputError, one sentence.
    """
    twice = [column for place, column in enumerate(columns) if column in columns[:place]]
    if twice:
        raise InputError(f"{name} has more than one column {twice[0]!r}{hint}.")
    for field in fields.named():
        if field not in columns and field.partition(".")[0] not in columns:
            raise InputError(f"{name} has no column {field!r}, only {list_names(columns)}{hint}.")
    if fields.text is None and fields.image is None and not known and not is_known(columns):
        raise InputError(
            f"{name} has no column that is known to hold text or a picture, only {list_names(columns)}; name one {NAME_ONE}{hint}."
        )


class _Lines:
    """Lines as the csv module takes them: their texts. Remembers where it is and what could not be decoded."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self.lines, self.number = lines, 0
        self.error: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, text, error = next(self.lines)
        if error is None and "\0" in text:
            error = "the line holds a NUL, so that the file is no text in this encoding."
        self.error = self.error or error
        return text.replace("\0", "\ufffd") if error else text


def _read_header(lines: _Lines, delimiter: str, fields: Fields, name: str) -> tuple[list[str], str]:
    line = ""
    for line in lines:
        if lines.error:
            raise InputError(f"{name}, line {lines.number}: {lines.error}")
        text = line.strip("\r\n ")
        if text[:4].lower() == "sep=" and len(text) == 5 and lines.number == 1:
            delimiter = text[4]
        elif text:
            break
    else:
        raise InputError(f"{name} has no header that names its columns.")
    if "\r" in line.rstrip("\r\n"):
        raise InputError(f"{name} ends its lines by carriage returns alone, as old Macs did; save it with line feeds.")
    first = next(_read_rows(lines, delimiter, chain([line], lines)))[1]  # a name may hold line ends
    if not isinstance(first, InputError) and len(first) == 1 and first[0].strip() not in fields.named():
        others = [other for other in DELIMITERS if other != delimiter and other in line]
        if others and not is_known([first[0].strip()]):
            delimiter = max(others, key=line.count)
            first = next(_read_rows(lines, delimiter, iter([line])))[1]
    if isinstance(first, InputError):
        raise InputError(f"{name}, line {lines.number}: {first}")
    columns = [column.strip() or f"column {number}" for number, column in enumerate(first, 1)]
    check_columns(columns, fields, name, ", where the first line must name the columns")
    return columns, delimiter


def _read_rows(
    lines: _Lines, delimiter: str, given: Iterator[str] | None = None
) -> Iterator[tuple[int, list[str] | InputError]]:
    """Rows that are not blank, with the numbers of their first lines. `given`: texts in place of those of `lines`."""
    reader = csv.reader(lines if given is None else given, delimiter=delimiter, strict=True)
    while True:
        number, lines.error = lines.number + 1, None
        try:
            with _large_fields():
                row: list[str] | InputError = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong, is_end = _why(str(error))
            yield number, InputError(lines.error or wrong)
            if is_end:
                return
            continue
        if lines.error:
            row = InputError(lines.error)
        if row:
            yield number, row


@contextmanager
def _large_fields() -> Iterator[None]:
    """The csv module's own limit is global, and too low for pictures in base64."""
    with _csv_limit:
        limit = csv.field_size_limit(MAX_FIELD_CHARACTERS)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _why(error: str) -> tuple[str, bool]:
    """A sentence on what the csv module says, and whether the file cannot be read any further."""
    if "unexpected end" in error:
        return "a quotation mark opens a field and none closes it.", True
    if "field larger" in error:
        return (
            f"a field is longer than {MAX_FIELD_CHARACTERS:,} characters, as where a quotation mark is not closed{NOT_READ}",
            True,
        )
    if "expected after" in error:
        return "a quotation mark closes within a field; one that belongs to the text is written twice.", False
    if "new-line character" in error:
        return "a carriage return stands within a field that is not quoted.", False
    return f"the row cannot be read: {error.rstrip('.')}.", False


def _ragged(found: int, wanted: int, delimiter: str) -> str:
    return (
        f"the row has {found} field{'s' * (found != 1)} by {DELIMITER_NAMES.get(delimiter, repr(delimiter))}, "
        f"but the header names {wanted} column{'s' * (wanted != 1)}."
    )
