"""Which documents are ranked for which of many queries, and whether their ids can be told apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from m0.errors import InputError
from m0.evaluate.files import format_count, format_ids
from m0.evaluate.runs import check_id
from m0.inputs.document import Document
from m0.inputs.lists import TextLike, to_list
from m0.inputs.pages import Page
from m0.inputs.texts import is_open_file


class Given(NamedTuple):
    """A document with its place among those that were given, and its id."""

    number: int
    id: str
    content: Any


def given_queries(queries: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Queries by id. Raises InputError where there are none, and for an id that occurs twice."""
    found: dict[str, Any] = {}
    for one in _numbered(queries if isinstance(queries, Mapping) else to_list(queries, "queries")):
        if one.id in found:
            raise InputError(f"the query id {one.id!r} occurs twice.")
        found[one.id] = one.content.content if isinstance(one.content, Document) else one.content
    if not found:
        raise InputError("there are no queries.")
    return found


@dataclass
class Selection:
    """The candidates by document, and the ids of the documents that were met."""

    queries: dict[str, int]
    """Numbers of the queries by id."""
    by_document: dict[str, list[int]] | None
    """Numbers of the queries that have a document among their candidates; None: all have all."""
    for_trec: bool
    """Whether ids must be such as a TREC run can keep."""
    unknown_queries: list[str] = field(default_factory=list)
    """That have candidates, and are not among the queries."""
    queries_without: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    """Of all documents."""

    @classmethod
    def of(cls, asked: Mapping[str, Any], candidates: Mapping[str, Iterable[str]] | None, for_trec: bool) -> Selection:
        """Raises InputError where the candidates are of none of the queries."""
        selection = cls({key: number for number, key in enumerate(asked)}, None, for_trec)
        if for_trec:
            for key in asked:
                _check_for_trec("query", key)
        if candidates is None:
            return selection
        if not isinstance(candidates, Mapping):
            raise InputError(
                f"candidates is {type(candidates).__name__}, but must be a mapping of queries to ids of documents."
            )
        selection.by_document = {}
        for query, some in candidates.items():
            if isinstance(some, str) or not isinstance(some, Iterable):
                raise InputError(f"the candidates of {query} are {type(some).__name__}, but must be ids of documents.")
            if query not in selection.queries:
                selection.unknown_queries.append(query)
                continue
            for document in dict.fromkeys(some):
                selection.by_document.setdefault(document, []).append(selection.queries[query])
        selection.queries_without = [query for query in asked if not candidates.get(query)]
        if not selection.by_document:
            example = f", but such as {next(iter(candidates))!r}" if candidates else ""
            raise InputError(f"the candidates name no document for any of the queries{example}.")
        for numbers in selection.by_document.values():
            numbers.sort()
        return selection

    def queries_of(self, document: str) -> Iterable[int]:
        """Numbers of the queries that a document is ranked for."""
        return range(len(self.queries)) if self.by_document is None else self.by_document.get(document, ())

    def meet(self, documents: Iterable[Any]) -> Iterator[Given]:
        """Documents with their ids. Raises InputError for an id that occurs twice, and for one that the output cannot keep."""
        self.ids.clear()
        for one in _numbered(documents):
            if one.id in self.ids:
                raise InputError(f"the document id {one.id!r} occurs twice; a ranking could not tell the two apart.")
            self.ids.add(one.id)
            if self.for_trec and self.queries_of(one.id):
                _check_for_trec("document", one.id)
            yield one

    def missing(self) -> list[str]:
        """Candidates that are not among the documents."""
        return [] if self.by_document is None else [document for document in self.by_document if document not in self.ids]

    def check_met(self) -> None:
        """Raises InputError where there was no document, or none of the candidates."""
        if not self.ids:
            raise InputError("there are no documents.")
        if self.by_document is not None and len(missing := self.missing()) == len(self.by_document):
            raise InputError(f"the candidates hold none of the documents, but such as {missing[0]!r}.")

    def remarks(self) -> Iterator[str]:
        """Sentences on candidates that lead nowhere."""
        if missing := self.missing():
            yield f"the candidates hold {format_count(len(missing), 'documents')} that {_are(missing)} not there, not ranked: {format_ids(missing)}."
        if unknown := self.unknown_queries:
            yield f"the candidates are of {format_count(len(unknown), 'queries')} that {_are(unknown)} not asked, too: {format_ids(unknown)}."
        if without := self.queries_without:
            yield f"{format_count(len(without), 'queries')} without candidates, for which nothing is ranked: {format_ids(without)}."

    def refuse_nothing(self, failed: Mapping[str, str]) -> None:
        """Raises InputError, which says why nothing was ranked."""
        what, why = next(iter(failed.items()), ("", ""))
        raise InputError(f"nothing could be scored, beginning with {what}: {why}" if what else "nothing could be scored.")


def passes_over(documents: Any, selection: Selection) -> tuple[Iterator[Given], int | None]:
    """The documents, to go through once; and how many of them are ranked, where they can be gone through twice: then all that can be wrong
    with their ids shows before anything is scored. Raises InputError."""
    if isinstance(documents, Iterator):
        return _checked_at_the_end(selection.meet(documents), selection), None
    if not isinstance(documents, Mapping) and not _is_stream(documents):
        documents = to_list(documents)
    total = sum(bool(selection.queries_of(one.id)) for one in selection.meet(documents))
    selection.check_met()
    return selection.meet(documents), total


def _is_stream(documents: Any) -> bool:
    """Whether it gives documents one by one, and need not be made a list, as what is not quite an iterable of documents must."""
    others = TextLike | os.PathLike | np.ndarray
    if isinstance(documents, others) or is_open_file(documents):
        return False
    return isinstance(documents, Iterable) and not hasattr(documents, "columns") and not hasattr(documents, "to_pylist")


def _checked_at_the_end(documents: Iterator[Given], selection: Selection) -> Iterator[Given]:
    yield from documents
    selection.check_met()


def _numbered(values: Mapping[str, Any] | Iterable[Any]) -> Iterator[Given]:
    if isinstance(values, Mapping):
        for number, (key, content) in enumerate(values.items()):
            yield Given(number, str(key), content)
        return
    for number, content in enumerate(values):
        yield Given(number, _id_of(content, number), content)


def _id_of(content: Any, number: int) -> str:
    if isinstance(content, Document):
        return content.id if content.id is not None else _id_of(content.content, number)
    if isinstance(content, Page):
        return content.name
    return os.fsdecode(content) if isinstance(content, os.PathLike) else str(number)


def _check_for_trec(what: str, key: str) -> None:
    try:
        check_id(key)
    except InputError as error:
        raise InputError(f"{what} {key!r}: {str(error).rstrip('.')}; JSON lines can (.jsonl, --json).") from None


def _are(some: list[str]) -> str:
    return "is" if len(some) == 1 else "are"
