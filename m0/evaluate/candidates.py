"""Which documents are scored for which queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m0.errors import InputError
from m0.evaluate.dataset import Dataset
from m0.evaluate.files import format_count, format_ids
from m0.inputs.listed import listed


@dataclass
class Candidates:
    """Documents to score for each query, and candidates that cannot be scored."""

    queries_by_document: dict[str, list[str]] = field(default_factory=dict)
    """Document -> the queries that it is scored for."""
    missing_documents: dict[str, str] = field(default_factory=dict)
    """Documents that the corpus lacks, with the reason."""
    unusable_documents: dict[str, str] = field(default_factory=dict)
    """Candidates that are gaps of the dataset itself (`Dataset.unusable`), with the reason."""
    rankable_queries: set[str] = field(default_factory=set)
    """Queries with at least one candidate that can be ranked, even if it is only the document of their own id."""
    queries_with_candidates: set[str] = field(default_factory=set)
    """Queries with at least one candidate, whether or not it can be ranked."""

    @classmethod
    def of(cls, dataset: Dataset, candidates: Mapping[str, Any] | None, ignore_identical_ids: bool) -> Candidates:
        """Arguments as for `evaluate`. Raises InputError, also where nothing is left to be scored."""
        if not isinstance(candidates, Mapping | None):
            raise InputError(f"candidates is {type(candidates).__name__}, but must map queries to documents.")
        result = cls()
        for query in dataset.queries:
            documents = dataset.corpus if candidates is None else candidates.get(query, ())
            ids = documents if isinstance(documents, Mapping) else listed(documents, f"the candidates of {query}")
            if wrong_ids := [document_id for document_id in ids if not isinstance(document_id, str)]:
                raise InputError(f"the candidates of {query} hold {wrong_ids[0]!r}, but must hold ids, which are text.")
            for document in dict.fromkeys(ids):
                result._add(dataset, query, document, ignore_identical_ids)
        if not result.queries_by_document:
            raise dataset.refusal(result._reason_for_nothing(dataset, {} if candidates is None else candidates))
        return result

    def _add(self, dataset: Dataset, query: str, document: str, ignore_identical_ids: bool) -> None:
        self.queries_with_candidates.add(query)
        if document in dataset.corpus:
            self.rankable_queries.add(query)
            if document != query or not ignore_identical_ids:
                self.queries_by_document.setdefault(document, []).append(query)
        elif document in dataset.unusable:
            self.unusable_documents.setdefault(document, dataset.unusable[document])
        else:
            self.missing_documents.setdefault(document, f"the candidates of {query} hold it, but the corpus does not have it.")

    def _reason_for_nothing(self, dataset: Dataset, candidates: Mapping[str, Any]) -> str:
        """Why there is nothing to score, as a sentence."""
        if self.rankable_queries:
            return "no query meets any document but the one of its own id, which is left out (ignore_identical_ids)."
        if self.unusable_documents:
            document, reason = next(iter(self.unusable_documents.items()))
            others = (
                f", and {format_count(len(self.missing_documents), 'documents')} that the corpus lacks"
                if self.missing_documents
                else ""
            )
            return f"the candidates hold only documents that cannot be ranked{others}, beginning with {document}: {reason}"
        if self.missing_documents:
            return f"the candidates hold none of the dataset's documents, but such as {next(iter(self.missing_documents))!r}."
        if known_queries := [query for query in candidates if query in dataset.queries]:
            return f"the candidates name no document for any of the dataset's queries, beginning with {known_queries[0]}."
        if known_queries := [query for query in candidates if f"query {query}" in dataset.unusable]:
            reason = dataset.unusable[f"query {known_queries[0]}"]
            return f"the candidates hold only queries that cannot be asked, beginning with {known_queries[0]}: {reason}"
        example = f", but such as {next(iter(candidates))!r}" if candidates else ""
        return f"the candidates hold none of the dataset's queries that have judgements{example}."

    def remarks(self, dataset: Dataset) -> list[str]:
        """Sentences on queries without candidates and on candidates that are missing."""
        sentences = []
        total = len(dataset.queries)
        if queries := [query for query in dataset.queries if query not in self.queries_with_candidates]:
            sentences.append(
                f"{format_count(len(queries), 'queries')} of {total} without candidates, counted as 0: {format_ids(queries)}."
            )
        if queries := [query for query in dataset.queries if query in self.queries_with_candidates - self.rankable_queries]:
            count = format_count(len(queries), "queries")
            sentences.append(
                f"{count} of {total} with only candidates that cannot be ranked, counted as 0: {format_ids(queries)}."
            )
        if self.missing_documents:
            count = format_count(len(self.missing_documents), "documents")
            sentences.append(
                f"the candidates hold {count} that the corpus lacks, not ranked: {format_ids(self.missing_documents)}."
            )
        return sentences
