"""Evaluation data in BEIR's layout (Thakur et al. 2021), with pictures.

    corpus.jsonl        {"_id": "d1", "title": "...", "text": "...", "image": "pages/1.png", "language": "de"}
    queries.jsonl       {"_id": "q1", "text": "...", "image": "...", "language": "fr"}
    qrels/test.tsv      query-id <tab> corpus-id <tab> score, with that header line or without; or TREC's four columns

Title, text and image may each be left out or null. An image is a path relative to the dataset, or, as for `Reranker.rank`, an http(s)
URL, a data URI or base64 text. The language may also stand under "metadata", and is used for tables by language only.

Published sets have gaps: ArguAna judges a document that its corpus lacks, FiQA's corpus has empty documents. Such a set is loaded,
and the gaps are listed. What can only be damage is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.evaluate.files import format_count, format_ids, read_judgements, read_rows, row_content, row_language
from m0.paths import path_of

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"


@dataclass(frozen=True)
class Dataset:
    """Documents, queries, and which documents are relevant to which query."""

    name: str
    corpus: Mapping[str, Any]
    """Documents as `Reranker.rank` takes them, by id; not those without content."""
    queries: Mapping[str, Any]
    """Only those that have judgements and content, by id."""
    qrels: Mapping[str, Mapping[str, int]]
    """Relevance by query and document; 0 and below: judged not relevant. These queries are measured, those without content too.
    Documents that the corpus lacks stay: they count as not found."""
    languages: Mapping[str, str]
    """Of queries, by id, where known."""
    fingerprint: str
    """SHA-256 of the files read."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Documents and queries ("query ID") that the files name and that nothing can be done with, with the reason: judged and not
    there, or without content."""
    notes: tuple[str, ...] = ()
    """A sentence on each kind of gap, with its count."""

    @classmethod
    def load(cls, directory: str | Path, split: str = "test") -> Dataset:
        """Read a dataset's directory. Raises InputError naming file and line."""
        directory = path_of(directory)
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory with a dataset in it.")
        digest = hashlib.sha256()
        qrels_path = directory / QRELS / f"{split}.tsv"
        judgements = read_judgements(qrels_path, digest)
        corpus = _Side.read(directory / CORPUS, digest)
        queries = _Side.read(directory / QUERIES, digest, only=judgements)
        if not corpus.contents:
            raise InputError(f"{directory / CORPUS} has only documents with neither title, text nor image.")
        if not queries.contents:
            raise InputError(
                f"{directory / QUERIES} has nothing to ask for any of the {len(judgements)} queries of {qrels_path}."
            )
        qrels = {query: documents for query, documents in judgements.items() if query in queries.places}
        relevant = {document for documents in qrels.values() for document, grade in documents.items() if grade > 0}
        if not relevant:
            raise InputError(f"{qrels_path} judges no document as relevant to a query of {QUERIES}.")
        if not relevant & corpus.places.keys():
            raise InputError(f"{qrels_path} judges none of the documents of {CORPUS} as relevant, as if it were another set's.")
        missing = list(
            dict.fromkeys(document for judged in qrels.values() for document in judged if document not in corpus.places)
        )
        unusable = dict.fromkeys(missing, f"{qrels_path} judges it, but {CORPUS} does not have it.")
        unusable |= {document: _EMPTY_MESSAGE.format(where) for document, where in corpus.empty.items()}
        unusable |= {f"query {query}": _EMPTY_MESSAGE.format(where) for query, where in queries.empty.items()}
        notes = _notes(corpus, queries, missing, [query for query in judgements if query not in qrels], qrels)
        fingerprint = digest.hexdigest()
        return cls(directory.name, corpus.contents, queries.contents, qrels, queries.languages, fingerprint, unusable, notes)

    def refusal(self, why: str) -> InputError:
        """For where there will be no figures beside which the dataset's gaps are said: an error that says them, too."""
        return InputError(" ".join((why, *(("The dataset has gaps:", *self.notes) if self.notes else ()))))

    def text(self, document: Any) -> str:
        """The words of a query or document, for BM25; pictures have none."""
        parts = document if isinstance(document, list) else [document]
        return "\n".join(part if isinstance(part, str) else part.get("text", "") for part in parts).strip()


_EMPTY_MESSAGE = "{}: has neither title, text nor image."


@dataclass
class _Side:
    """The contents of corpus.jsonl or queries.jsonl."""

    contents: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """File and line by id."""
    empty: dict[str, str] = field(default_factory=dict)
    """The same, of those without content."""
    languages: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    """Ids that stand there again with the same content."""

    @classmethod
    def read(cls, path: Path, digest: Any, only: Mapping[str, Any] | None = None) -> _Side:
        """`only`: ids that count. Raises InputError naming the line."""
        side = cls()
        for key, row, where in read_rows(path, digest):
            if only is not None and key not in only:
                continue
            content = row_content(row, path.parent, where)
            if key in side.places:
                if side.contents.get(key) != content:
                    raise InputError(f"{where}: the id {key!r} stands here a second time, with other content.")
                side.repeated.append(key)
                continue
            side.places[key] = where
            if content is None:
                side.empty[key] = where
            else:
                side.contents[key] = content
            if language := row_language(row):
                side.languages[key] = language
        return side


def _notes(
    corpus: _Side, queries: _Side, missing: list[str], missing_queries: list[str], qrels: Mapping[str, Mapping[str, int]]
) -> tuple[str, ...]:
    """A sentence on each kind of gap that there is."""
    without_relevant = [query for query, documents in qrels.items() if all(grade <= 0 for grade in documents.values())]
    kinds = (
        (f"{CORPUS} lacks", "judged", missing, "documents", "counted as not found"),
        (f"{CORPUS} has", "empty", list(corpus.empty), "documents", "not ranked"),
        (f"{QUERIES} lacks", "judged", missing_queries, "queries", "left out of the figures"),
        (f"{QUERIES} has", "empty", list(queries.empty), "queries", "counted as 0"),
        (f"{QUERIES} has", "", without_relevant, "queries", "without any relevant document, counted as 0"),
        (f"{CORPUS} repeats", "", corpus.repeated, "documents", "counted once"),
        (f"{QUERIES} repeats", "", queries.repeated, "queries", "counted once"),
    )
    return tuple(
        f"{start} {format_count(len(ids), noun, kind)}, {what}: {format_ids(ids)}.".replace(", without", " without")
        for start, kind, ids, noun, what in kinds
        if ids
    )
