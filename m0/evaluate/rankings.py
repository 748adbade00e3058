"""Rankings of many queries: the best documents of each, as a TREC run or as JSON lines."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from m0.checkpoints.files import write_atomically
from m0.errors import InputError
from m0.evaluate.runs import Run, format_run
from m0.inputs.passages import Passage
from m0.model.head import relevance

Format = Literal["trec", "jsonl"]
Entry = tuple[float, int, str, Passage | None, Mapping[str, Any] | None]
"""Logit, negative number of the document (which tells all apart), its id, passage and metadata."""


@dataclass(frozen=True)
class QueryResult:
    """One document of a query's ranking."""

    id: str
    """The document's."""
    score: float
    """Relevance between 0 and 1: sigmoid(logit - 2.65)."""
    logit: float
    """The model's raw output."""
    index: int
    """The document's place among those that were given."""
    passage: Passage | None = None
    """Which page or piece of the document stands for it. None: the document is one piece."""
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    """Of a `Document`, untouched."""


@dataclass(frozen=True)
class QueryRankings:
    """The best documents of each query, and what could not be used."""

    results: dict[str, list[QueryResult]]
    """By query, best first; ties keep the order given."""
    failed: dict[str, str] = field(default_factory=dict)
    """Documents, queries ("query ID") and pairs ("QUERY DOCUMENT") that could not be used, with the reason."""
    remarks: tuple[str, ...] = ()
    """Sentences on what to know of the candidates."""
    scored: int = 0
    """Pairs that were scored now."""
    reused: int = 0
    """Pairs whose scores were in the log."""

    @property
    def run(self) -> Run:
        """Raw logits by query and document, for `write_run` and `Evaluation.of`."""
        return {query: {result.id: result.logit for result in results} for query, results in self.results.items()}

    def lines(self, form: Format = "trec") -> Iterator[str]:
        """As text, a line at a time: "trec" is a line for each result, "jsonl" one for each query. Raises InputError for an id that a TREC
        run cannot keep."""
        if form == "trec":
            yield from format_run(self.run)
            return
        for query, results in self.results.items():
            yield _dump({"query": query, "results": [_told(result) for result in results]})

    def write(self, path: Path, form: Format = "trec") -> None:
        """Write a file whole or not at all. Raises InputError where the disk refuses, and as `lines`."""
        data = "".join(line + "\n" for line in self.lines(form)).encode("utf-8")
        try:
            write_atomically(path, lambda temporary: Path(temporary).write_bytes(data))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None


class Best:
    """The best documents of one query so far: at most `top_n`, or all."""

    def __init__(self, top_n: int | None) -> None:
        self.top_n = top_n
        self.heap: list[Entry] = []
        """The worst one first."""

    def add(self, logit: float, index: int, key: str, passage: Passage | None, metadata: Mapping[str, Any] | None) -> None:
        """Rank one more document; `index` is its place among those given."""
        self.merge([(logit, -index, key, passage, metadata)])

    def merge(self, entries: Iterable[Entry]) -> None:
        """Rank what another one has kept."""
        for entry in entries:
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        if self.top_n is None or len(self.heap) < self.top_n:
            heapq.heappush(self.heap, entry)
        elif entry[:2] > self.heap[0][:2]:
            heapq.heapreplace(self.heap, entry)

    def results(self, logit_bias: float, dtype: torch.dtype) -> list[QueryResult]:
        """Best first."""
        entries = sorted(self.heap, key=lambda entry: entry[:2], reverse=True)
        scores = relevance(torch.tensor([entry[0] for entry in entries], dtype=dtype), logit_bias).tolist()
        return [
            QueryResult(key, score, logit, -place, passage, metadata)
            for (logit, place, key, passage, metadata), score in zip(entries, scores, strict=True)
        ]


def _told(result: QueryResult) -> dict[str, Any]:
    told: dict[str, Any] = {"id": result.id, "score": result.score, "logit": result.logit}
    if result.passage is not None:
        told["passage"] = result.passage.to_json()
    if result.metadata is not None:
        told["metadata"] = dict(result.metadata)
    return told


def _dump(value: Any) -> str:
    """What JSON does not know, such as a time in the metadata, is written as text. File names need not be Unicode."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    return text
