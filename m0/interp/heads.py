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
from m0.interp.grid import Grid, layers_and_heads
from m0.interp.patching import recorded
from m0.interp.positions import document, image, query, score_token
from m0.interp.session import prompts
from m0.interp.taps import find_taps
from m0.interp.words import owners_of, words_of
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
    jobs: dict[str, Callable[[Encoding, Tensor], Tensor | None]] = {
        "same word": _same_word,
        "same word, by chance": _by_chance,
        "score to query": lambda encoding, pattern: _share(pattern, score_token(encoding), query.all(encoding)),
        "query to picture": lambda encoding, pattern: _share(
            pattern, query.all(encoding), (image.all & document.all)(encoding)
        ),
    }
    found: dict[str, list[Tensor]] = {job: [] for job in jobs}
    for encoding in encodings:
        cache, _ = recorded(reranker, [encoding], taps)
        pattern = torch.stack([cache[tap.name].tensor for tap in taps]).double().cpu()  # (layers, heads, queries, keys)
        for job, measure in jobs.items():
            if (share := measure(encoding, pattern)) is not None:
                found[job].append(share)
    heads = reranker.model.config.decoder.num_heads
    axes = layers_and_heads(len(taps), heads)
    grids = {}
    for job, some in found.items():
        values = torch.stack(some).mean(0) if some else torch.full((len(taps), heads), torch.nan, dtype=torch.float64)
        grids[job] = Grid(f"share of attention: {job}", axes, values, {"pairs": float(len(some))})
    return HeadRoles(grids["same word"], grids["same word, by chance"], grids["score to query"], grids["query to picture"])


def _share(pattern: Tensor, who: list[int], whom: list[int]) -> Tensor | None:
    if not who or not whom:
        return None
    return pattern[:, :, who][..., whom].sum(-1).mean(-1)


def _matches(encoding: Encoding) -> dict[int, list[int]]:
    """Tokens of the query's words, and for each the document's tokens of the same word, upper and lower case alike."""
    spans = words_of(encoding)
    by_word: dict[int, list[int]] = {}
    for token, owner in enumerate(owners_of(encoding, spans)):
        if owner is not None and any(character.isalnum() for character in spans[owner].text):
            by_word.setdefault(owner, []).append(token)
    shown: dict[str, list[int]] = {}
    for owner, some in by_word.items():
        if spans[owner].side == "document":
            shown.setdefault(spans[owner].text.casefold(), []).extend(some)
    return {
        token: shown[spans[owner].text.casefold()]
        for owner, some in by_word.items()
        if spans[owner].side == "query" and spans[owner].text.casefold() in shown
        for token in some
    }


def _same_word(encoding: Encoding, pattern: Tensor) -> Tensor | None:
    shares = [pattern[:, :, i, some].sum(-1) for i, some in _matches(encoding).items()]
    return torch.stack(shares).mean(0) if shares else None


def _by_chance(encoding: Encoding, pattern: Tensor) -> Tensor | None:
    shares = [len(some) / (i + 1) for i, some in _matches(encoding).items()]
    return torch.full(pattern.shape[:2], sum(shares) / len(shares), dtype=torch.float64) if shares else None
