"""The vendor's call, `compute_score`, as code written for its model makes it."""

from __future__ import annotations

from typing import Any

from m0.engine.batch import tokens_at_a_time
from m0.engine.host import Host
from m0.engine.progress import Progress
from m0.engine.scoring import ScoringCall, score_prompts
from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError
from m0.inputs.listed import is_row, listed_pairs
from m0.inputs.prompt import Limits, whole_number
from m0.inputs.reading import encode_pairs
from m0.model.head import relevance


def compute_score(
    host: Host,
    pairs: Any,
    batch_size: int,
    limits: Limits,
    query_type: str,
    doc_type: str,
    normalize_scores: bool,
    show_progress: bool,
) -> list[float] | float:
    """As `Reranker.compute_score`."""
    for name, value in (("query_type", query_type), ("doc_type", doc_type)):
        if value not in ("text", "image"):
            raise InputError(f"{name} is {value!r}, but must be 'text' or 'image'.")
    batch_size = whole_number(batch_size, "batch_size")
    if isinstance(pairs, list) and len(pairs) == 2 and not is_row(pairs[0]):  # a mapping is refused below
        pairs = [pairs]
    typed_pairs = [
        (_as_picture_or_text(query, query_type), _as_picture_or_text(document, doc_type))
        for query, document in listed_pairs(pairs)
    ]
    scores: list[float] = []
    batch_size = len(typed_pairs) if host.sessions else batch_size  # who watches sees all pairs in one call
    bar = Progress(len(typed_pairs), "scoring", show_progress)
    how = ScoringCall(tokens_at_a_time(None, host.model.device), pictures=VisualFeatures(host.model, host.sessions))
    for start in range(0, len(typed_pairs), batch_size):
        encodings = encode_pairs(host.prompt, typed_pairs[start : start + batch_size], limits, host.image_settings, start)
        logits = score_prompts(host, encodings, how)
        scores += (relevance(logits, host.model.config.logit_bias) if normalize_scores else logits).tolist()
        bar.advance(len(encodings))
    bar.close()
    return scores[0] if len(scores) == 1 else scores


def _as_picture_or_text(value: Any, kind: str) -> Any:
    """A value as `Reranker.rank` takes it: of kind "image" a string is a picture, not text."""
    return {"image": value} if kind == "image" and not isinstance(value, dict | list) else value
