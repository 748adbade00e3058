"""The scores of many queries on disk as they come, document by document, so that a ranking that was killed goes on where it stopped.

A log is a file of JSON lines. The first says whose scores follow. Then each line is a document: its id, the digest of what it holds,
numbers of queries (null: all of them, in order), their logits, and which passages they are of. A line "done" ends each group of documents that
went through the model together; lines behind the last of these are of a group that was cut short, and count as not scored.
"""

from __future__ import annotations

import glob
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from m0.errors import InputError
from m0.evaluate.files import format_count
from m0.inputs.pages import PageInfo
from m0.inputs.passages import Passage, Span
from m0.locks import level_of_caller

LOG_SUFFIX = ".scores"
VERSION = 1
END_OF_GROUP = b'"done"\n'
DIFFERENCES = {
    "model": "another model",
    "queries": "other queries",
    "limits": "other lengths",
    "passages": "other passages",
}


class _Damaged(Exception):
    """A line is not as it was written."""


class Scored(NamedTuple):
    """A document's logit for one query."""

    logit: float
    passage: Passage | None = None
    """Which passage stands for the document."""


@dataclass
class ScoredDocument:
    """A document's scores, by the number of the query."""

    id: str
    digest: str | None
    scores: dict[int, Scored] = field(default_factory=dict)


class ScoreLog:
    """The log beside the output `out`: `out` with LOG_SUFFIX, and a number for each process but the first.

    Only where each document's line stands is held in memory. Raises InputError where a log is of something else, or cannot be used.
    """

    def __init__(self, out: Path, description: Mapping[str, Any], num_queries: int, rank: int = 0) -> None:
        self.first = out.with_name(out.name + LOG_SUFFIX)
        self.path = self.first if rank == 0 else self.first.with_name(f"{self.first.name}-{rank}")
        self.description, self.num_queries = {"version": VERSION, **description}, num_queries
        self.places: dict[str, tuple[bytes, list[tuple[int, int]]]] = {}
        """Digest, and the file's number and offset of each line, by id."""
        self.files: list[BinaryIO] = []
        self._begin()

    def _begin(self) -> None:
        """Cut off what a killed process wrote half of, and say in a new file whose scores it holds."""
        try:
            end = _check(self.path, self.description) if self.path.exists() else 0
            with self.path.open("ab") as file:
                file.truncate(end)
                if not end:
                    file.write(json.dumps(self.description).encode() + b"\n")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}.") from None

    def read(self) -> None:
        """Find out what was scored before, by whatever process. Raises InputError where a log is of something else, or cannot be read."""
        for path in (self.first, *sorted(self.first.parent.glob(glob.escape(self.first.name) + "-*"))):
            if not path.exists():
                continue
            try:
                _check(path, self.description)
                file = path.open("rb")
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
            self.files.append(file)
            if damaged := self._read_file(file, len(self.files) - 1):
                warnings.warn(
                    f"{path} has {format_count(damaged, 'lines')} that {'is' if damaged == 1 else 'are'} damaged; "
                    "such documents are scored again.",
                    stacklevel=level_of_caller(),
                )

    def _read_file(self, file: BinaryIO, number: int) -> int:
        group: list[tuple[str, bytes, int]] = []
        damaged, offset = 0, len(file.readline())
        while line := file.readline():
            if line == END_OF_GROUP:
                for key, digest, place in group:
                    self._note(key, digest, (number, place))
                group.clear()
            elif (found := self._parse(line)) is not None and found.digest is not None:
                group.append((found.id, bytes.fromhex(found.digest), offset))
            elif line.endswith(b"\n"):
                damaged += 1
            offset += len(line)
        return damaged

    def _note(self, key: str, digest: bytes, place: tuple[int, int]) -> None:
        if key in self.places and self.places[key][0] == digest:
            self.places[key][1].append(place)
        else:  # it has changed since
            self.places[key] = (digest, [place])

    def find(self, key: str, digest: str | None) -> dict[int, Scored]:
        """The scores that a document has in the log, by query; none where it held something else then."""
        known = self.places.get(key)
        if known is None or digest is None or known[0] != bytes.fromhex(digest):
            return {}
        scores: dict[int, Scored] = {}
        for number, offset in known[1]:
            file = self.files[number]
            file.seek(offset)
            if (found := self._parse(file.readline())) is not None:
                scores |= found.scores
        return scores

    def write(self, documents: Iterable[ScoredDocument]) -> None:
        """Raises InputError where it cannot."""
        lines = [_line(document, self.num_queries) for document in documents if document.digest is not None and document.scores]
        if not lines:
            return
        try:
            with self.path.open("ab") as file:
                file.write(b"".join([*lines, END_OF_GROUP]))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}; what is there is kept.") from None

    def close(self) -> None:
        """Let the files go. What is written later still is."""
        for file in self.files:
            file.close()
        self.files.clear()

    def _parse(self, line: bytes) -> ScoredDocument | None:
        """What a line holds; None where it is not as `write` makes it."""
        try:
            match json.loads(line):
                case [str() as key, str() as digest, list() | None as numbers, list() as logits, *passages]:
                    bytes.fromhex(digest)
                    queries = range(self.num_queries) if numbers is None else numbers
                    if not all(isinstance(query, int) and 0 <= query < self.num_queries for query in queries):
                        return None
                    found = _passages(passages[0], len(logits)) if passages else [None] * len(logits)
                    pairs = zip(queries, map(_number, logits), found, strict=True)
                    return ScoredDocument(key, digest, {query: Scored(logit, passage) for query, logit, passage in pairs})
        except (_Damaged, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            pass
        return None


def _check(path: Path, description: Mapping[str, Any]) -> int:
    """Where the last whole group of a log ends; 0 where not even its first line is whole. Raises InputError where it is not this log."""
    with path.open("rb") as file:
        first = file.readline()
        if not first.endswith(b"\n"):
            return 0
        try:
            stored = json.loads(first)
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict) or stored.get("version") != VERSION:
            raise InputError(f"{path} is not a log of scores, or is damaged; remove it, or write the ranking elsewhere.")
        if differences := [name for key, name in DIFFERENCES.items() if stored.get(key) != description[key]]:
            raise InputError(
                f"{path} holds scores of {' and '.join(differences)}; remove it to begin anew, or write the ranking elsewhere."
            )
        end = offset = len(first)
        for line in file:
            offset += len(line)
            if line == END_OF_GROUP:
                end = offset
    return end


def _line(document: ScoredDocument, num_queries: int) -> bytes:
    queries = sorted(document.scores)
    scored = [document.scores[query] for query in queries]
    line: list[Any] = [document.id, document.digest, None if len(queries) == num_queries else queries]
    line.append([one.logit for one in scored])
    if any(one.passage is not None for one in scored):
        different = list(dict.fromkeys(one.passage for one in scored))
        places = {passage: place for place, passage in enumerate(different)}
        told = [None if passage is None else passage.to_json() for passage in different]
        line.append([told, [places[one.passage] for one in scored]])
    return json.dumps(line).encode() + b"\n"


def _passages(value: Any, count: int) -> list[Passage | None]:
    told, places = value
    different = [None if one is None else _passage(one) for one in told]
    if len(places) != count or not all(0 <= place < len(different) for place in places):
        raise _Damaged
    return [different[place] for place in places]


def _passage(value: Mapping[str, Any]) -> Passage:
    page = value["page"]
    if page is not None:
        page = PageInfo(**{**page, "size": None if page["size"] is None else tuple(page["size"])})
    return Passage(value["number"], value["count"], tuple(Span(**span) for span in value["spans"]), page)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Damaged
    return float(value)
