"""Logits of lists of documents and queries."""

from __future__ import annotations

from nano.tokens import Piece, pack
from torch import Tensor

from m0.model.reranker_model import RerankerModel


def score_grids(model: RerankerModel, grids: list[tuple[list[Piece], list[Piece]]]) -> list[Tensor]:
    """Logits of every query against every document of its list, (queries, documents), each document computed once."""
    pieces: list[Piece] = []
    parents: list[int | None] = []
    spans = []
    for queries, documents in grids:
        first = len(pieces)
        pieces += [*documents, *queries * len(documents)]
        parents += [None] * len(documents)
        parents += [first + document for document in range(len(documents)) for _ in queries]
        spans.append((first + len(documents), len(pieces)))
    logits = model.head(model.decoder(*pack(model, pieces, parents)))
    return [
        logits[start:end].view(len(documents), len(queries)).T
        for (start, end), (queries, documents) in zip(spans, grids, strict=True)
    ]
