"""Which documents meet which queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m0.errors import InputError
from m0.evaluate.dataset import Dataset
from m0.evaluate.files import counted, few
from m0.inputs.lists import to_list


@dataclass
class Candidates:
    """What is to be scored, and what was asked for and cannot be."""

    wanted: dict[str, list[str]] = field(default_factory=dict)
    """Document -> the queries that meet it."""
    absent: dict[str, str] = field(default_factory=dict)
    """Documents that the corpus lacks, with the reason."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Documents that are among the dataset's own gaps, with the reason."""
    met: set[str] = field(default_factory=set)
    """Queries with a document that can be ranked, be it the one of their own id."""
    named: set[str] = field(default_factory=set)
    """Queries for which any document was named."""

    @classmethod
    def of(cls, dataset: Dataset, candidates: Mapping[str, Any] | None, ignore_identical_ids: bool) -> Candidates:
        """Arguments as for `evaluate`. Raises InputError, also where nothing is left to be scored."""
        if not isinstance(candidates, Mapping | None):
            raise InputError(f"candidates is {type(candidates).__name__}, but must map queries to documents.")
        found = cls()
        for query in dataset.queries:
            documents = dataset.corpus if candidates is None else candidates.get(query, ())
            ids = documents if isinstance(documents, Mapping) else to_list(documents, f"the candidates of {query}")
            if strange := [one for one in ids if not isinstance(one, str)]:
                raise InputError(f"the candidates of {query} hold {strange[0]!r}, but must hold ids, which are text.")
            for document in dict.fromkeys(ids):
                found._add(dataset, query, document, ignore_identical_ids)
        if not found.wanted:
            raise dataset.refusal(found._why_nothing(dataset, {} if candidates is None else candidates))
        return found

    def _add(self, dataset: Dataset, query: str, document: str, ignore_identical_ids: bool) -> None:
        self.named.add(query)
        if document in dataset.corpus:
            self.met.add(query)
            if document != query or not ignore_identical_ids:
                self.wanted.setdefault(document, []).append(query)
        elif document in dataset.unusable:
            self.unusable.setdefault(document, dataset.unusable[document])
        else:
            self.absent.setdefault(document, f"the candidates of {query} hold it, but the corpus does not have it.")

    def _why_nothing(self, dataset: Dataset, candidates: Mapping[str, Any]) -> str:
        if self.met:
            return "no query meets any document but the one of its own id, which is left out (ignore_identical_ids)."
        if self.unusable:
            document, why = next(iter(self.unusable.items()))
            others = f", and {counted(len(self.absent), 'documents')} that the corpus lacks" if self.absent else ""
            return f"the candidates hold only documents that cannot be ranked{others}, beginning with {document}: {why}"
        if self.absent:
            return f"the candidates hold none of the dataset's documents, but such as {next(iter(self.absent))!r}."
        if known := [query for query in candidates if query in dataset.queries]:
            return f"the candidates name no document for any of the dataset's queries, beginning with {known[0]}."
        if known := [query for query in candidates if f"query {query}" in dataset.unusable]:
            why = dataset.unusable[f"query {known[0]}"]
            return f"the candidates hold only queries that cannot be asked, beginning with {known[0]}: {why}"
        such = f", but such as {next(iter(candidates))!r}" if candidates else ""
        return f"the candidates hold none of the dataset's queries that have judgements{such}."

    def remarks(self, dataset: Dataset) -> list[str]:
        """What to know of them."""
        found = []
        total = len(dataset.queries)
        if alone := [query for query in dataset.queries if query not in self.named]:
            found.append(f"{counted(len(alone), 'queries')} of {total} without candidates, counted as 0: {few(alone)}.")
        if alone := [query for query in dataset.queries if query in self.named - self.met]:
            some = counted(len(alone), "queries")
            found.append(f"{some} of {total} with only candidates that cannot be ranked, counted as 0: {few(alone)}.")
        if self.absent:
            some = counted(len(self.absent), "documents")
            found.append(f"the candidates hold {some} that the corpus lacks, not ranked: {few(self.absent)}.")
        return found
