"""The pairs of an evaluation, scored chunk by chunk: each document is opened once for all its queries, one with pages page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError, MissingExtraError, TooLongError
from m0.evaluate.cuts import cuts_of
from m0.evaluate.dataset import Dataset
from m0.evaluate.store import Pair, Scores
from m0.inputs.ahead import units_of
from m0.inputs.images import ImageSettings
from m0.inputs.passages import PAGES
from m0.inputs.prompt import Encoding
from m0.inputs.reading import pages_of
from m0.inputs.stream import Part
from m0.reranker import Reranker

MIN_CHUNK_PAIRS = 256
"""Least number of pairs that are scored between two writes to disk; a document's pairs stay together."""


def split_into_chunks(unscored: list[tuple[str, list[str]]]) -> Iterator[list[tuple[str, list[str]]]]:
    """Documents with their queries, so many at a time as make `MIN_CHUNK_PAIRS` pairs."""
    chunk: list[tuple[str, list[str]]] = []
    count = 0
    for item in unscored:
        chunk.append(item)
        count += len(item[1])
        if count >= MIN_CHUNK_PAIRS:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def score_chunk(
    reranker: Reranker,
    dataset: Dataset,
    chunk: list[tuple[str, list[str]]],
    options: Mapping[str, Any],
    pictures: VisualFeatures,
) -> Scores:
    """Scores of a chunk's pairs. A document with pages has the score of its best page."""
    failed: dict[str, str] = {}
    opened_queries: dict[str, Any] = {}
    for query in dict.fromkeys(query for _, queries in chunk for query in queries):
        try:
            opened_queries[query] = reranker.read(dataset.queries[query], "query")
        except InputError as error:
            failed[f"query {query}"] = str(error)
    limits = {name: value for name, value in options.items() if name.startswith("max_")}
    run_options = {name: value for name, value in options.items() if name not in limits}
    encodings: dict[Pair, list[Encoding]] = {}
    for document, queries in chunk:
        try:
            passages = _open(reranker, dataset.corpus[document])  # pictures are opened once
        except (InputError, MissingExtraError) as error:
            failed[document] = str(error)
            continue
        for query in queries:
            if query not in opened_queries:
                continue
            try:
                encodings[query, document] = [reranker.encode(opened_queries[query], parts, **limits) for parts in passages]
            except TooLongError as error:
                failed[f"{query} {document}"] = str(error)
    if not encodings:
        return Scores(failed=failed)
    every = [encoding for some in encodings.values() for encoding in some]
    logits = iter(reranker.logits_of(every, pictures=pictures, **run_options))
    scores = Scores(failed=failed)
    for pair, some in encodings.items():
        scores.logits[pair], best = PAGES.combine(list(islice(logits, len(some))))
        if some[best].cut:
            scores.cuts[pair] = cuts_of(some[best])
    return scores


def _open(reranker: Reranker, content: Any) -> list[list[Part]]:
    """What each page of a document shows; of one without pages all of it. Raises InputError, MissingExtraError."""
    if isinstance(content, Mapping) and "pdf" in content:
        return [unit.read() for unit in units_of(content, reranker.image_settings)]
    return [reranker.read(content, "document")]


def remarks_on_pages(dataset: Dataset, settings: ImageSettings) -> list[str]:
    """What draws the pages of the dataset's PDFs, for figures change with it."""
    for content in dataset.corpus.values():
        if isinstance(content, Mapping) and "pdf" in content:
            try:
                info = (pages_of(content, settings) or [])[0].info_for(settings)
            except (InputError, MissingExtraError):
                continue
            if info.renderer is not None:
                return [
                    f"a PDF has the score of its best page; pages were drawn by {info.renderer} at {info.dpi or 200:.0f} dpi, "
                    "less where a page is too large."
                ]
    return []
