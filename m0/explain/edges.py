"""The interaction of query and document, by the attention between them, in bounded memory.

Where patterns are constants (`m0.explain.rules.frozen`), what goes through one edge of the attention, from a query token i to a
document token j, is pattern[i, j] (g[i] · v[j]), with g the logit's gradient by the attention's output and v the value. Queries, keys,
values and outputs are kept, which are small; the patterns, which are not, are formed again for some of the query's rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m0.explain.explanation import Interaction
from m0.inputs.prompt import Encoding
from m0.interp.positions import document, query
from m0.interp.taps import HookHandles, Tap, attach_hook, find_taps
from m0.model.attention import Block
from m0.model.reranker_model import RerankerModel

DEFAULT_MATRIX_BYTES = 2**30
"""What the interaction may take, unless told otherwise."""
SCORE_COPIES = 4
"""Of a row of scores, that are in memory at a time: scores, masked, pattern, product."""


@dataclass
class AttentionTensors:
    """What each of the decoder's layers multiplied, in order. Rows are tokens; of outputs in the last layer the score token alone."""

    queries: list[Tensor] = field(default_factory=list)
    """(tokens, heads, head_dim), rotated"""
    keys: list[Tensor] = field(default_factory=list)
    """(tokens, key/value heads, head_dim), rotated"""
    values: list[Tensor] = field(default_factory=list)
    """(tokens, key/value heads, head_dim)"""
    outputs: list[Tensor] = field(default_factory=list)
    """(tokens, heads, head_dim), in the graph: the logit's gradients by these are asked for."""


@contextmanager
def record_attention_tensors(model: RerankerModel) -> Iterator[AttentionTensors]:
    """Keep what the decoder's attention multiplies while one prompt runs."""
    handles, recorded = HookHandles(), AttentionTensors()
    places = {"rotated_query": recorded.queries, "rotated_key": recorded.keys, "value": recorded.values, "z": recorded.outputs}
    try:
        for name, place in places.items():
            for tap in find_taps(model.config, f"decoder.layers.*.attention.{name}"):

                def hook(x: Tensor, _: Block | None, tap: Tap = tap, place: list[Tensor] = place) -> Tensor:
                    if place is not recorded.outputs:
                        place.append(x.detach())
                        return x
                    place.append(x.view_as(x))  # on the way to the logit, which what is looked at is not
                    return place[-1]

                attach_hook(model, tap, hook, handles)
        yield recorded
    finally:
        handles.remove()


def compute_interaction(
    encoding: Encoding, tensors: AttentionTensors, gradients: Sequence[Tensor], max_bytes: int
) -> tuple[Interaction | None, int]:
    """Relevance that goes through the attention from each of the query's tokens to each of the document's, all layers and heads.

    Args:
        gradients: of the logit by `tensors.outputs`, (tokens, heads, head_dim) of each layer.
        max_bytes: what it may take.

    Returns: the interaction, None where not even one row fits; and in how many pieces it was computed.
    """
    query_tokens, document_tokens = query.all(encoding), document.all(encoding)
    full_layers = [number for number, output in enumerate(tensors.outputs) if len(output) == len(encoding)]
    heads = tensors.outputs[0].shape[1]
    width = torch.promote_types(tensors.outputs[0].dtype, torch.float32).itemsize
    row, result = SCORE_COPIES * heads * len(encoding) * width, 8 * len(query_tokens) * len(document_tokens)
    if result + row > max_bytes:
        return None, 0
    step = (max_bytes - result) // row
    total = torch.zeros(len(query_tokens), len(document_tokens), dtype=torch.float64)
    for start in range(0, len(query_tokens), step):
        chunk = query_tokens[start : start + step]
        for number in full_layers:
            layer_tensors = (tensors.queries[number], tensors.keys[number], tensors.values[number], gradients[number])
            total[start : start + step] += _edge_relevance(*layer_tensors, chunk, document_tokens).cpu()
    return Interaction(total, query_tokens, document_tokens), -(-len(query_tokens) // step)


def _edge_relevance(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, query_tokens: list[int], document_tokens: list[int]
) -> Tensor:
    """Of one layer, (query tokens, document tokens), float64. Arguments as in `AttentionTensors`."""
    groups, working = key.shape[1], torch.promote_types(query.dtype, torch.float32)
    asking, flowing = (x[query_tokens].to(working).unflatten(1, (groups, -1)).permute(1, 2, 0, 3) for x in (query, gradient))
    keys, values = (
        key.to(working).transpose(0, 1),
        value[document_tokens].to(working).transpose(0, 1),
    )  # (groups, tokens, head_dim)
    scores = asking @ keys[:, None].transpose(-1, -2) / query.shape[-1] ** 0.5  # (groups, heads of each, query tokens, tokens)
    places = torch.arange(len(key), device=key.device)
    scores = scores.masked_fill(places > torch.tensor(query_tokens, device=key.device)[:, None], -torch.inf)
    pattern = scores.softmax(-1)[..., document_tokens]
    return (pattern.double() * (flowing @ values[:, None].transpose(-1, -2))).sum((0, 1))
