"""Explanations read from attention patterns: raw, rolled out, and weighted by their gradient.

The first two say where the model looked, not what of it counted; they are here to compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m0.errors import InputError
from m0.explain.explanation import Explanation, Interaction
from m0.explain.flow import explained, inputs_of, logits_of, watching
from m0.interp.positions import document, query
from m0.interp.session import Scorer
from m0.prompt import Encoding


def raw_attention(reranker: Scorer, encoding: Encoding, layer: int | None = None, head: int | None = None) -> Explanation:
    """What the score token looks at: its pattern in one layer and head, or the mean over all of them. Not signed; adds up to 1."""
    with torch.no_grad():
        logit, patterns, _ = _patterns(reranker, encoding)
    layers, heads = len(patterns), patterns[0].shape[0]
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count):
            raise InputError(f"{name} is {value!r}, but must be a number between 0 and {count - 1}.")
    chosen = patterns if layer is None else [patterns[layer]]
    rows = torch.stack([pattern[:, -1] if head is None else pattern[[head], -1] for pattern in chosen]).double()
    between = [pattern if head is None else pattern[[head]] for pattern in chosen if pattern.shape[1] == len(encoding)]
    interaction = _between(encoding, torch.cat(between).double().mean(0).cpu()) if between else None
    return explained(reranker, "attention", encoding, logit, rows.mean((0, 1)), False, interaction=interaction)


def rollout(reranker: Scorer, encoding: Encoding) -> Explanation:
    """Attention rollout (Abnar & Zuidema 2020): patterns of all layers multiplied, half of each token staying where it is."""
    with torch.no_grad():
        logit, patterns, _ = _patterns(reranker, encoding)
        size = len(encoding)
        total = torch.eye(size, dtype=torch.float64)
        for pattern in patterns:
            mean = pattern.double().mean(0).cpu()
            if len(mean) == size:
                total = (0.5 * mean + 0.5 * torch.eye(size, dtype=torch.float64)) @ total
        last = patterns[-1].double().mean(0).cpu()[-1]
        row = 0.5 * last @ total + 0.5 * total[-1] if len(patterns[-1][0]) != size else total[-1]
    return explained(reranker, "rollout", encoding, logit, row, False, interaction=_between(encoding, total))


def attention_gradient(reranker: Scorer, encoding: Encoding) -> Explanation:
    """Attention times its gradient, carried through the layers (Chefer et al. 2021): R <- R + mean over heads of
    (gradient x attention, positive part) R, from the identity; the score token's row. Not signed."""
    logit, patterns, gradients = _patterns(reranker, encoding, gradient=True)
    size = len(encoding)
    total = torch.eye(size, dtype=torch.float64)
    products = [(pattern * gradient).double().cpu() for pattern, gradient in zip(patterns, gradients, strict=True)]
    for product in products[:-1]:
        total = total + product.clamp_min(0).mean(0) @ total
    row = total[-1] + products[-1][:, -1].clamp_min(0).mean(0) @ total
    row[-1] -= 1  # the score token's own start
    return explained(reranker, "attention_gradient", encoding, logit, row, False, interaction=_between(encoding, total))


def _patterns(reranker: Scorer, encoding: Encoding, gradient: bool = False) -> tuple[float, list[Tensor], list[Tensor]]:
    """Logit, patterns (heads, queries, keys) of every layer, and where asked the logit's gradients by them."""
    embeddings = inputs_of(reranker, encoding).embeddings[None]
    with torch.set_grad_enabled(gradient), watching(reranker.model, encoding) as kept:
        logit = logits_of(reranker, encoding, embeddings.requires_grad_(gradient))[0]
    gradients = torch.autograd.grad(logit, kept.patterns) if gradient else ()
    return float(logit.detach()), [pattern.detach()[0] for pattern in kept.patterns], [some[0] for some in gradients]


def _between(encoding: Encoding, matrix: Tensor) -> Interaction:
    """What a method's matrix over tokens says from each of the query's to each of the document's."""
    asked, shown = query.all(encoding), document.all(encoding)
    return Interaction(matrix[asked][:, shown], asked, shown)
