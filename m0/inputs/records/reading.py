"""The records of a file, one after the other: JSON lines, JSON, CSV, TSV and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.inputs.document import Document
from m0.inputs.records.fields import BY_SHAPE, Fields
from m0.inputs.records.json_text import read_json, read_json_lines
from m0.inputs.records.lines import check_encoding, open_binary
from m0.inputs.records.parquet import read_parquet
from m0.inputs.records.record import Record, UnusableRecords
from m0.inputs.records.shapes import document_of
from m0.inputs.records.tables import read_table
from m0.paths import path_of

LINE_SUFFIXES = (".jsonl", ".ndjson")
RECORD_SUFFIXES = (*LINE_SUFFIXES, ".json", ".csv", ".tsv", ".parquet")


def read_records(
    path: Any,
    fields: Fields = BY_SHAPE,
    encoding: str | None = None,
    report: Callable[[UnusableRecords], None] | None = None,
) -> Iterator[Document]:
    """The documents of a file of records, one a record, in order. Only some records are held at a time, whatever the file's size.

    Args:
        path: a .jsonl or .ndjson file (a record a line), .json (an array of records, JSON lines, or one record), .csv or .tsv (with a
            header), or .parquet (with the extra `records`). All but .parquet may be a pipe.
        fields: which fields hold the text, the picture and the id, where the records have no shape that `document_of` knows.
        encoding: of text that is not UTF-8, under Python's name. A byte order mark counts more.
        report: called once, after the last document, where records are no documents. None: they are an error, raised then.

    Raises InputError, one sentence: for a file that is missing, of another kind, without records or without a column that is needed, before
    the first document; and without `report` after the last one, naming the first bad record, why, and how many there are.
    MissingExtraError for .parquet without pyarrow.
    """
    unusable = UnusableRecords(str(path))
    for record in iterate_records(path, fields, encoding):
        unusable.add(record)
        if not isinstance(record.document, InputError):
            yield record.document
    if unusable.count and report is None:
        raise InputError(str(unusable))
    if unusable.count and report is not None:
        report(unusable)


def iterate_records(path: Any, fields: Fields = BY_SHAPE, encoding: str | None = None) -> Iterator[Record]:
    """Every record of a file with its number, as a document or the reason why it is none. Arguments as of `read_records`.

    Raises InputError, one sentence, before the first record, where the file is missing, of another kind, without records or without
    a column that is needed. A file that cannot be read any further ends with a record that says so.
    """
    path = path_of(path)
    suffix = path.suffix.lower()
    if suffix not in RECORD_SUFFIXES:
        raise InputError(f"{path} is no file of records, whose names end in {', '.join(RECORD_SUFFIXES)}.")
    check_encoding(encoding)
    make = partial(document_of, fields=fields, folder=path.parent)
    is_empty = True
    for record in _records(path, suffix, make, fields, encoding):
        is_empty = False
        yield record
    if is_empty:
        raise InputError(f"{path} holds no records.")


def _records(
    path: Path, suffix: str, make: Callable[[Any], Document], fields: Fields, encoding: str | None
) -> Iterator[Record]:
    if suffix == ".parquet":
        yield from read_parquet(path, make, fields)
        return
    with open_binary(path) as file:
        if suffix in LINE_SUFFIXES:
            yield from read_json_lines(file, make, encoding)
        elif suffix == ".json":
            yield from read_json(file, make, encoding)
        else:
            yield from read_table(file, make, "," if suffix == ".csv" else "\t", fields, str(path), encoding)
