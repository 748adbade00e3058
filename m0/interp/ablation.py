"""What happens to the score without a head, and without the attention from one group of tokens to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.inputs.prompt import Encoding
from m0.interp.edits import Edit, EditFunction, mean, resample, zero
from m0.interp.grid import Axis, Grid, layer_head_axes
from m0.interp.patching import record_activations, run_variants
from m0.interp.positions import Selector, check_selector, document, everything, image, query, score_token
from m0.interp.session import prompts
from m0.interp.taps import find_taps
from m0.locks import uses_model


@uses_model
def head_ablation(
    reranker: Scorer,
    pairs: Sequence[Any],
    how: Literal["zero", "mean", "resample"] = "zero",
    reference: Sequence[Any] | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
) -> Grid:
    """How much the logit changes when a head of the decoder says nothing, or nothing of this pair; mean over the pairs.

    Args:
        pairs: (query, document), or prompts.
        how: a head's output `z` at every token becomes zero, its mean over the reference's tokens, or what it is at tokens drawn
            at random from the reference, whatever their position.
        reference: pairs for "mean" and "resample"; None: `pairs`.

    Returns: logit without the head minus logit, by layer and head. Raises InputError.
    """
    if how not in ("zero", "mean", "resample"):
        raise InputError(f"how is {how!r}, but must be 'zero', 'mean' or 'resample'.")
    encodings = prompts(reranker, pairs)
    if not encodings:
        raise InputError("the list of pairs is empty.")
    taps = find_taps(reranker.model.config, "decoder.layers.*.attention.z")
    heads = reranker.model.config.decoder.num_heads
    values: dict[str, Tensor] = {}
    if how != "zero":
        reference_encodings = encodings if reference is None else prompts(reranker, reference)
        if not reference_encodings:
            raise InputError("the list of reference pairs is empty.")
        caches = [record_activations(reranker, [reference_encoding], taps)[0] for reference_encoding in reference_encodings]
        values = {tap.name: torch.cat([cache[tap.name].tensor for cache in caches]) for tap in taps}

    def function(name: str, head: int) -> EditFunction:
        if how == "zero":
            return zero
        rows = values[name][:, [head]]
        return mean(rows) if how == "mean" else resample(rows, seed + head)

    changes = torch.zeros(len(taps), heads, dtype=torch.float64)
    for encoding in encodings:
        variants: list[list[Any]] = [[]] + [
            [(tap, Edit(function(tap.name, head), at=everything, heads=[head]))] for tap in taps for head in range(heads)
        ]
        logit, *ablated_logits = run_variants(reranker, encoding, variants, batch_tokens)
        changes += (torch.stack(ablated_logits) - logit).view_as(changes) / len(encodings)
    return Grid(f"logit without the head ({how}) minus logit", layer_head_axes(len(taps), heads), changes)


def standard_cuts(encoding: Encoding) -> dict[str, tuple[Selector, Selector]]:
    """Who looks, and where to, for the parts that a prompt has. The document stands before the query and never looks at it."""
    cuts = {
        "query -> document": (query.all, document.all),
        "query -> query": (query.all, query.all),
        "document -> document": (document.all, document.all),
        "score -> document": (score_token, document.all),
        "score -> query": (score_token, query.all),
        "score -> everything": (score_token, everything),
    }
    pictures = image.all & document.all
    if pictures(encoding):
        cuts["query -> picture"] = (query.all, pictures)
        cuts["score -> picture"] = (score_token, pictures)
        if (document.all - image.all)(encoding):
            cuts["document's text -> picture"] = (document.all - image.all, pictures)
    return cuts


@uses_model
def attention_knockout(
    reranker: Scorer,
    pair: Any,
    cuts: Mapping[str, tuple[Selector, Selector]] | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
) -> Grid:
    """How much the logit changes when some tokens may no longer look at others (Geva et al. 2023).

    Args:
        pair: (query, document), or a prompt.
        cuts: by name, who no longer looks and where to no longer; None: `standard_cuts`. A token always sees itself.
        window: cut in that many neighbouring layers at a time, one column for each place; None: in all layers at once.

    Returns: logit with the cut minus logit, by cut and layers. Raises InputError where a selector finds nothing.
    """
    (encoding,) = prompts(reranker, [pair])
    cuts_by_name = standard_cuts(encoding) if cuts is None else dict(cuts)
    if not cuts_by_name:
        raise InputError("there is no cut to make.")
    taps = find_taps(reranker.model.config, "decoder.layers.*.attention.scores")
    width = len(taps) if window is None else window
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= len(taps):
        raise InputError(f"window is {window!r}, but must be between 1 and {len(taps)}, the number of layers.")
    variants: list[list[Any]] = [[]]
    columns = [taps[start : start + width] for start in range(len(taps) - width + 1)]
    for name, (queries, keys) in cuts_by_name.items():
        for selector in (queries, keys):
            check_selector(selector, f"cut {name!r}")
        query_tokens, key_tokens = queries.found(encoding), keys.found(encoding)
        # A token that sees nothing has no softmax, so each keeps itself.
        is_self = torch.tensor(query_tokens)[:, None] == torch.tensor(key_tokens)[None, :]
        edit = Edit(_mask_all_but(is_self), at=queries, to=keys)
        variants += [[(tap, edit) for tap in window_taps] for window_taps in columns]
    logit, *cut_logits = run_variants(reranker, encoding, variants, batch_tokens)
    values = torch.stack(cut_logits).view(len(cuts_by_name), len(columns)) - logit
    names = [
        f"{window_taps[0].layer}" if width == 1 else f"{window_taps[0].layer}-{window_taps[-1].layer}"
        for window_taps in columns
    ]
    return Grid(
        "logit with the attention cut minus logit",
        (Axis("cut", list(cuts_by_name)), Axis("layers", names)),
        values,
        {"logit": float(logit)},
    )


def _mask_all_but(is_self: Tensor) -> EditFunction:
    def mask(scores: Tensor) -> Tensor:
        return torch.where(is_self.to(scores.device), scores, -torch.inf)

    return mask
