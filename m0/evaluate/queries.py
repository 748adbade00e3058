"""Files of queries: records with ids, a query a line, or an id and a query a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.inputs.document import Document
from m0.inputs.records import Record, UnusableRecords, document_of, iterate_records
from m0.inputs.records.fields import is_absent
from m0.inputs.records.json_text import read_json, read_json_lines
from m0.inputs.records.lines import open_binary, read_lines
from m0.inputs.records.shapes import ID_FIELDS, QUERY_FIELDS, TEXT_FIELDS
from m0.paths import path_of

QUERY_ID_FIELDS = ("query_id", "query-id", "qid")
"""Names of a query's id beside those of any record."""
QUERY_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".tsv", ".txt")


def read_queries(path: Any) -> list[Document]:
    """The queries of a file, each with an id: its own, or the number of its line or record.

    Args:
        path: .jsonl, .ndjson or .json (records as those of documents, or with the query under "query" or "question", its id under
            "query_id" or "qid", too), .csv or .parquet (as for documents), .tsv (an id, a tab and a query a line, as BEIR's and MS MARCO's
            tools write it; a header line is known by its names), or .txt (a query a line).

    Raises InputError, one sentence, for a file that is missing, of another kind or empty, for a line that is no query, naming the first and
    how many there are, and for an id that stands there twice.
    """
    path = path_of(path)
    suffix = path.suffix.lower()
    if suffix not in QUERY_SUFFIXES:
        raise InputError(f"{path} is no file of queries, whose names end in {', '.join(QUERY_SUFFIXES)}.")
    unusable = UnusableRecords(str(path))
    queries: dict[str, Document] = {}
    for record in _records(path, suffix):
        unusable.add(record)
        if isinstance(record.document, InputError):
            continue
        key = record.document.id or str(record.number)
        if key in queries:
            raise InputError(f"{path}, {record.unit} {record.number}: the query id {key!r} stands here a second time.")
        queries[key] = Document(record.document.content, key, record.document.metadata)
    if unusable.count:
        raise InputError(str(unusable))
    if not queries:
        raise InputError(f"{path} holds no queries.")
    return list(queries.values())


def _records(path: Path, suffix: str) -> Iterator[Record]:
    make = partial(query_of, folder=path.parent)
    if suffix in (".csv", ".parquet"):
        yield from iterate_records(path)
        return
    with open_binary(path) as file:
        if suffix == ".json":
            yield from read_json(file, make)
        elif suffix in (".tsv", ".txt"):
            yield from _lines(read_lines(file), _of_two_columns if suffix == ".tsv" else _of_words)
        else:
            yield from read_json_lines(file, make)


def query_of(record: Any, folder: Path = Path()) -> Document:
    """One record as a query: as `document_of`, and with the names that queries have. Raises InputError."""
    if isinstance(record, Mapping):
        renamed = dict(record)
        texts = [name for name in TEXT_FIELDS if not is_absent(record.get(name))]
        questions = [name for name in QUERY_FIELDS if not is_absent(record.get(name))]
        if questions and not texts:
            for name in TEXT_FIELDS:
                renamed.pop(name, None)
            renamed["text"] = renamed.pop(questions[0])
        if not any(name in record for name in ID_FIELDS):
            for name in QUERY_ID_FIELDS:
                if not is_absent(record.get(name)):
                    renamed["_id"] = renamed.pop(name)
                    break
        record = renamed
    return document_of(record, folder=folder)


def _lines(lines: Iterator[Any], make: Callable[[str, int], Document | None]) -> Iterator[Record]:
    """A query a line; blank lines are none."""
    for line in lines:
        text = line.text.strip("\r\n")
        if line.error or "\0" in text:
            yield Record(line.number, "line", InputError(line.error or "the line holds a NUL, so that the file is no text."))
        elif text.strip():
            try:
                if (query := make(text, line.number)) is not None:
                    yield Record(line.number, "line", query)
            except InputError as error:
                yield Record(line.number, "line", error)


def _of_words(line: str, number: int) -> Document:
    return Document(line.strip())


def _of_two_columns(line: str, number: int) -> Document | None:
    """An id, a tab, and the query. None: the line is a header. Quotation marks are part of the query, as in MS MARCO's files."""
    key, tab, text = line.partition("\t")
    if not tab or not key.strip() or not text.strip():
        raise InputError("the line is not an id, a tab and a query.")
    first, second = key.strip().lower(), text.split("\t")[0].strip().lower()
    if number == 1 and first in {*ID_FIELDS, *QUERY_ID_FIELDS} and second in {*TEXT_FIELDS, *QUERY_FIELDS}:
        return None
    return Document(text.strip(), key.strip())
