"""Which heads do what: detectors that read attention patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.inputs.prompt import Encoding
from m0.interp.grid import Grid, layer_head_axes
from m0.interp.patching import record_activations
from m0.interp.positions import document, image, query, score_token
from m0.interp.session import prompts
from m0.interp.taps import find_taps
from m0.interp.words import assign_tokens_to_spans, find_words
from m0.locks import uses_model


@dataclass(frozen=True)
class HeadRoles:
    """For each job, how much of their attention heads spend on it, by layer and head; mean over pairs where the job exists."""

    same_word: Grid
    """From a query's word to the same word in the document: soft term-frequency heads."""
    same_word_by_chance: Grid
    """What the same heads would spend on these words if they looked at all tokens before them alike."""
    score_to_query: Grid
    """From the score token to the query."""
    query_to_picture: Grid
    """From the query to the document's pictures."""

    def __str__(self) -> str:
        return "\n\n".join(str(grid) for grid in (self.same_word, self.score_to_query, self.query_to_picture))


@uses_model
def head_roles(reranker: Scorer, pairs: Sequence[Any]) -> HeadRoles:
    """Look for heads that match words, gather the query, or look at pictures.

    Args:
        pairs: (query, document), or prompts. The more, the surer.

    Raises InputError where there is no pair. A job that no pair has (no shared word, no picture) is NaN everywhere.
    """
    encodings = prompts(reranker, pairs)
    if not encodings:
        raise InputError("the list of pairs is empty.")
    taps = find_taps(reranker.model.config, "decoder.layers.*.attention.pattern")
    roles: dict[str, Callable[[Encoding, Tensor], Tensor | None]] = {
        "same word": _same_word_attention,
        "same word, by chance": _uniform_attention,
        "score to query": lambda encoding, pattern: _mean_attention(pattern, score_token(encoding), query.all(encoding)),
        "query to picture": lambda encoding, pattern: _mean_attention(
            pattern, query.all(encoding), (image.all & document.all)(encoding)
        ),
    }
    values_by_role: dict[str, list[Tensor]] = {role: [] for role in roles}
    for encoding in encodings:
        cache, _ = record_activations(reranker, [encoding], taps)
        pattern = torch.stack([cache[tap.name].tensor for tap in taps]).double().cpu()  # (layers, heads, queries, keys)
        for role, measure in roles.items():
            if (share := measure(encoding, pattern)) is not None:
                values_by_role[role].append(share)
    heads = reranker.model.config.decoder.num_heads
    axes = layer_head_axes(len(taps), heads)
    grids = {}
    for role, pair_values in values_by_role.items():
        values = (
            torch.stack(pair_values).mean(0) if pair_values else torch.full((len(taps), heads), torch.nan, dtype=torch.float64)
        )
        grids[role] = Grid(f"share of attention: {role}", axes, values, {"pairs": float(len(pair_values))})
    return HeadRoles(grids["same word"], grids["same word, by chance"], grids["score to query"], grids["query to picture"])


def _mean_attention(pattern: Tensor, queries: list[int], keys: list[int]) -> Tensor | None:
    if not queries or not keys:
        return None
    return pattern[:, :, queries][..., keys].sum(-1).mean(-1)


def _same_word_tokens(encoding: Encoding) -> dict[int, list[int]]:
    """Tokens of the query's words, and for each the document's tokens of the same word, upper and lower case alike."""
    spans = find_words(encoding)
    tokens_by_span: dict[int, list[int]] = {}
    for token, span_index in enumerate(assign_tokens_to_spans(encoding, spans)):
        if span_index is not None and any(character.isalnum() for character in spans[span_index].text):
            tokens_by_span.setdefault(span_index, []).append(token)
    document_tokens: dict[str, list[int]] = {}
    for span_index, tokens in tokens_by_span.items():
        if spans[span_index].side == "document":
            document_tokens.setdefault(spans[span_index].text.casefold(), []).extend(tokens)
    return {
        token: document_tokens[spans[span_index].text.casefold()]
        for span_index, tokens in tokens_by_span.items()
        if spans[span_index].side == "query" and spans[span_index].text.casefold() in document_tokens
        for token in tokens
    }


def _same_word_attention(encoding: Encoding, pattern: Tensor) -> Tensor | None:
    shares = [pattern[:, :, i, tokens].sum(-1) for i, tokens in _same_word_tokens(encoding).items()]
    return torch.stack(shares).mean(0) if shares else None


def _uniform_attention(encoding: Encoding, pattern: Tensor) -> Tensor | None:
    shares = [len(tokens) / (i + 1) for i, tokens in _same_word_tokens(encoding).items()]
    return torch.full(pattern.shape[:2], sum(shares) / len(shares), dtype=torch.float64) if shares else None
