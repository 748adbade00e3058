"""Explanations read from attention patterns: raw, rolled out, and weighted by their gradient.

The first two say where the model looked, not what of it counted; they are here to compare with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.explain.explanation import Explanation, Interaction
from m0.explain.flow import build_explanation, compute_inputs, compute_logits, record_patterns, visit_patterns
from m0.inputs.prompt import Encoding
from m0.interp.positions import document, query


def raw_attention(
    reranker: Scorer, encoding: Encoding, layer: int | None = None, head: int | None = None, matrix: bool = True
) -> Explanation:
    """What the score token looks at: its pattern in one layer and head, or the mean over all of them. Not signed; adds up to 1.

    Args:
        layer, head: numbers of one layer, one head; None: all.
        matrix: also give the interaction, query tokens x document tokens.

    Raises InputError where there is no such layer or head.
    """
    config = reranker.model.config.decoder
    for name, value, count in (("layer", layer, config.num_layers), ("head", head, config.num_heads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count):
            raise InputError(f"{name} is {value!r}, but must be a number between 0 and {count - 1}.")
    query_tokens, document_tokens = query.all(encoding), document.all(encoding)
    rows: list[Tensor] = []
    query_document_rows: list[Tensor] = []

    def visit(number: int, pattern: Tensor) -> None:
        if layer is not None and number != layer:
            return
        chosen = pattern if head is None else pattern[[head]]
        rows.append(chosen[:, -1].double())
        if matrix and pattern.shape[1] == len(encoding):
            query_document_rows.append(chosen[:, query_tokens][:, :, document_tokens].double().mean(0))

    logit = _run_layer_by_layer(reranker, encoding, visit)
    interaction = (
        Interaction(torch.stack(query_document_rows).mean(0).cpu(), query_tokens, document_tokens)
        if query_document_rows
        else None
    )
    return build_explanation(
        reranker, "attention", encoding, logit, torch.stack(rows).mean((0, 1)), False, interaction=interaction
    )


def rollout(reranker: Scorer, encoding: Encoding, matrix: bool = True) -> Explanation:
    """Attention rollout (Abnar & Zuidema 2020): patterns of all layers multiplied, half of each token staying where it is.

    `matrix`: also give the interaction, query tokens x document tokens.
    """
    size = len(encoding)
    total = torch.eye(size, dtype=torch.float64)
    row = total[-1]

    def visit(_: int, pattern: Tensor) -> None:
        nonlocal total, row
        mean = pattern[0].double()
        for head in pattern[1:]:  # one at a time: all of them in float64 take four times as much
            mean += head
        mean = mean.div_(len(pattern)).cpu()
        if len(mean) == size:
            total = (mean @ total).add_(total).mul_(0.5)
            row = total[-1]
        else:  # the last layer, of which only the score token's row is computed
            row = 0.5 * (mean[-1] @ total + total[-1])

    logit = _run_layer_by_layer(reranker, encoding, visit)
    interaction = _query_document_interaction(encoding, total) if matrix else None
    return build_explanation(reranker, "rollout", encoding, logit, row, False, interaction=interaction)


def _run_layer_by_layer(reranker: Scorer, encoding: Encoding, visit: Callable[[int, Tensor], None]) -> float:
    """Show each decoder layer's pattern, (heads, queries, keys), by its number, and keep none; returns the logit."""

    def visit_layer(layer: int | None, pattern: Tensor) -> None:
        assert layer is not None
        visit(layer, pattern[0])

    with torch.no_grad():
        embeddings = compute_inputs(reranker, encoding).embeddings[None]
        with visit_patterns(reranker.model, encoding, visit_layer):
            return float(compute_logits(reranker, encoding, embeddings)[0])


def attention_gradient(reranker: Scorer, encoding: Encoding, matrix: bool = True) -> Explanation:
    """Attention times its gradient, carried through the layers (Chefer et al. 2021): R <- R + mean over heads of
    (gradient x attention, positive part) R, from the identity; the score token's row. Not signed.

    `matrix`: also give the interaction, query tokens x document tokens.
    """
    logit, patterns, gradients = _patterns_and_gradients(reranker, encoding)
    size = len(encoding)
    total = torch.eye(size, dtype=torch.float64)
    products = [(pattern * gradient).double().cpu() for pattern, gradient in zip(patterns, gradients, strict=True)]
    for product in products[:-1]:
        total = total + product.clamp_min(0).mean(0) @ total
    row = total[-1] + products[-1][:, -1].clamp_min(0).mean(0) @ total
    row[-1] -= 1  # the score token's own start
    interaction = _query_document_interaction(encoding, total) if matrix else None
    return build_explanation(reranker, "attention_gradient", encoding, logit, row, False, interaction=interaction)


def _patterns_and_gradients(reranker: Scorer, encoding: Encoding) -> tuple[float, list[Tensor], list[Tensor]]:
    """Logit, patterns (heads, queries, keys) of every layer, and the logit's gradients by them."""
    embeddings = compute_inputs(reranker, encoding).embeddings[None]
    with torch.enable_grad(), record_patterns(reranker.model, encoding) as recorded:
        logit = compute_logits(reranker, encoding, embeddings.requires_grad_())[0]
    gradients = torch.autograd.grad(logit, recorded.patterns)
    return (
        float(logit.detach()),
        [pattern.detach()[0] for pattern in recorded.patterns],
        [gradient[0] for gradient in gradients],
    )


def _query_document_interaction(encoding: Encoding, matrix: Tensor) -> Interaction:
    """What a method's matrix over tokens says from each of the query's to each of the document's."""
    query_tokens, document_tokens = query.all(encoding), document.all(encoding)
    return Interaction(matrix[query_tokens][:, document_tokens], query_tokens, document_tokens)
