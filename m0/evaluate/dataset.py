"""Evaluation data in BEIR's layout (Thakur et al. 2021), with pictures.

    corpus.jsonl        {"_id": "d1", "title": "...", "text": "...", "image": "pages/1.png", "language": "de"}
    queries.jsonl       {"_id": "q1", "text": "...", "image": "...", "language": "fr"}
    qrels/test.tsv      query-id <tab> corpus-id <tab> score, with that header line

Title, text and image may each be left out, but not all; an image is a path relative to the dataset. The language may also
stand under "metadata", and is used for tables by language only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.paths import path_of

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
MAX_GRADE = 1000
"""Of a judgement; trec_eval makes tables as long as the highest."""


@dataclass(frozen=True)
class Dataset:
    """Documents, queries, and which documents are relevant to which query."""

    name: str
    corpus: Mapping[str, Any]
    """Documents as `Reranker.rank` takes them, by id."""
    queries: Mapping[str, Any]
    """Only those that have judgements, by id."""
    qrels: Mapping[str, Mapping[str, int]]
    """Relevance by query and document; 0 and below: judged not relevant."""
    languages: Mapping[str, str]
    """Of queries, by id, where known."""
    fingerprint: str
    """SHA-256 of the files read."""

    @classmethod
    def load(cls, directory: str | Path, split: str = "test") -> Dataset:
        """Read a dataset's directory. Raises InputError naming file and line."""
        directory = path_of(directory)
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory with a dataset in it.")
        digest = hashlib.sha256()
        qrels = _qrels(directory / QRELS / f"{split}.tsv", digest)
        corpus = {key: _document(row, directory, where) for key, row, where in _rows(directory / CORPUS, digest)}
        queries, languages = {}, {}
        for key, row, where in _rows(directory / QUERIES, digest):
            if key in qrels:
                queries[key] = _document(row, directory, where)
                metadata = row.get("metadata")
                language = row.get("language") or (metadata.get("language") if isinstance(metadata, dict) else None)
                if language:
                    languages[key] = str(language)
        for query, judged in qrels.items():
            if query not in queries:
                raise InputError(f"{directory / QRELS / split}.tsv judges the query {query!r}, which {QUERIES} does not have.")
            for document in judged:
                if document not in corpus:
                    raise InputError(f"{directory / QRELS / split}.tsv judges {document!r}, which {CORPUS} does not have.")
        return cls(directory.name, corpus, queries, qrels, languages, digest.hexdigest())

    def text(self, document: Any) -> str:
        """The words of a query or document, for BM25; pictures have none."""
        parts = document if isinstance(document, list) else [document]
        return "\n".join(part if isinstance(part, str) else part.get("text", "") for part in parts).strip()


def _rows(path: Path, digest: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Id, content and place of each line."""
    seen = set()
    for number, line in enumerate(_read(path, digest).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not a line of JSON: {error}.") from None
        if not isinstance(row, dict) or not isinstance(row.get("_id"), str | int):
            raise InputError(f'{where}: lacks "_id".')
        key = str(row["_id"])
        if key in seen:
            raise InputError(f"{where}: the id {key!r} stands here a second time.")
        if any(character.isspace() or "\ud800" <= character <= "\udfff" for character in key) or not key:
            raise InputError(
                f"{where}: the id {key!r} is empty or holds blanks or lone surrogates, which TREC files cannot keep."
            )
        seen.add(key)
        yield key, row, where
    if not seen:
        raise InputError(f"{path} is empty.")


def _document(row: Mapping[str, Any], directory: Path, where: str) -> Any:
    title, text, image = (row.get(name) or "" for name in ("title", "text", "image"))
    if not all(isinstance(value, str) for value in (title, text, image)):
        raise InputError(f'{where}: "title", "text" and "image" must be text.')
    words = f"{title}\n{text}".strip() if title else text
    if not image:
        if not words.strip():
            raise InputError(f"{where}: has neither title, text nor image.")
        return words
    picture = {"image": str(path_of(image, folder=directory))}
    return [words, picture] if words else [picture]


def _qrels(path: Path, digest: Any) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_read(path, digest).split("\n"), 1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and cells[-1].strip() == "score"):
            continue
        try:
            query, document, score = (cell.strip() for cell in cells)
            grade = int(score)
        except ValueError:
            raise InputError(f"{path}, line {number}: must be query-id, corpus-id and a whole number, by tabs.") from None
        if abs(grade) > MAX_GRADE:
            raise InputError(f"{path}, line {number}: the score is {score}, but must lie between -{MAX_GRADE} and {MAX_GRADE}.")
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise InputError(
                f"{path}, line {number}: judges {document} for {query} as {grade}, but an earlier line as {qrels[query][document]}."
            )
    if not qrels:
        raise InputError(f"{path} has no judgements.")
    return qrels


def _read(path: Path, digest: Any) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    digest.update(data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}.") from None
