"""A ranking with its best documents explained, on one page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from m0.engine.host import Host
from m0.engine.options import RunOptions
from m0.engine.passages import encode_passage
from m0.engine.ranking import rank, remove_documents
from m0.engine.results import Ranking
from m0.errors import InputError
from m0.explain import explain, method_of, note_ranking_score, of_passage
from m0.explain.html import page
from m0.explain.originals import keep_originals
from m0.inputs.lists import to_list
from m0.inputs.passages import PAGES, Passages
from m0.inputs.prompt import Limits
from m0.inputs.reading import read_parts
from m0.paths import path_of


def explain_ranking(
    host: Host,
    query: Any,
    documents: Sequence[Any],
    path: str | os.PathLike[str],
    top_n: int | None,
    method: str,
    names: Iterable[str] | None,
    on_error: Literal["raise", "skip"],
    limits: Limits,
    options: dict[str, Any],
    passages: Passages = PAGES,
) -> Ranking:
    """As `Reranker.explain_ranking`. Raises InputError (of a document with its number)."""
    method_of(method, options)
    path, names = path_of(path), None if names is None else to_list(names, "names")
    if names is not None and len(names) != len(documents):
        raise InputError(f"there are {len(names)} names for {len(documents)} documents.")
    ranking = rank(host, query, documents, top_n, on_error, None, limits, RunOptions(), passages)
    settings = keep_originals(host.image_settings)
    asked = read_parts(query, "query", settings)
    explained, lost = [], {}
    for result in ranking:
        try:
            encoding = encode_passage(host, asked, result.document, limits, result.passage, passages, settings)
            found = of_passage(explain(host, encoding, method, **options), result.passage)
        except InputError as error:
            if on_error == "raise":
                raise type(error)(f"document {result.index}: {error}") from None
            lost[result.index] = str(error)
            continue
        explained.append(note_ranking_score(found, result.logit, result.score))
    ranking = remove_documents(ranking, lost)
    page(explained, path, names=[str(r.index) if names is None else names[r.index] for r in ranking])
    return ranking
