"""One prompt through the model with gradients: from its embeddings, or from its pixels, to the logit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from m0.engine.watching import Scorer, announce_call, compute_missing_features, wants_every_token
from m0.errors import InputError
from m0.explain.explanation import Explanation
from m0.inputs.prompt import Encoding
from m0.interp.taps import HookHandles, Tap, attach_hook, find_taps
from m0.model.attention import Block, Packing
from m0.model.head import relevance
from m0.model.reranker_model import RerankerModel


@dataclass
class ModelInputs:
    """What goes into the decoder, or where pixels count into the tower, of one prompt."""

    embeddings: Tensor
    """Of every token, visual tokens in place, (tokens, hidden), without gradient."""
    patches: Tensor | None
    """Of all pictures, (patches, 1176)."""

    def as_arguments(self, pixels: bool) -> list[Tensor]:
        """What `compute_logits` takes, one version of it: embeddings, (1, tokens, hidden), and the patches, (1, patches, 1176), where pixels
        count and there are any."""
        return [self.embeddings[None], *([self.patches[None]] if pixels and self.patches is not None else [])]


def compute_inputs(reranker: Scorer, encoding: Encoding) -> ModelInputs:
    """Embeddings and patches of one prompt, without gradients; open edits change them, open recordings do not keep them."""
    model, pictures = reranker.model, encoding.pictures
    with torch.no_grad(), announce_call(reranker, [encoding], record=False):
        features = compute_missing_features(model, reranker.sessions, pictures, {})
        patches = torch.cat([p.patches_on(model.device) for p in pictures]).to(model.dtype) if pictures else None
        return ModelInputs(model.embed(encoding.token_ids.to(model.device), features), patches)


def compute_logits(reranker: Scorer, encoding: Encoding, embeddings: Tensor, patches: Tensor | None = None) -> Tensor:
    """Logits of several versions of a prompt, (versions,), through which gradients flow.

    Args:
        embeddings: of all tokens, (versions, tokens, hidden).
        patches: of all pictures, (versions, patches, 1176); the tower computes the visual tokens from them. None: visual tokens are
            those in `embeddings`.

    Open edits change every version; open recordings do not keep them.
    """
    model, versions = reranker.model, len(embeddings)
    packing = Packing([len(encoding)] * versions, causal=True, device=embeddings.device)
    with announce_call(reranker, [encoding] * versions, record=False):
        if patches is not None:
            pictures = encoding.pictures * versions
            for session in reranker.sessions:
                session.enter_vision_batch(pictures)
            features = model.vision(patches.flatten(0, 1), [picture.grid for picture in pictures]).unflatten(0, (versions, -1))
            places = (encoding.token_ids == model.config.image_token_id).to(embeddings.device)
            embeddings = embeddings.masked_scatter(places[None, :, None], features.to(embeddings.dtype))
        for session in reranker.sessions:
            session.enter_batch(range(versions), packing)
        positions = encoding.positions.to(embeddings.device).repeat(1, versions)
        every_token = wants_every_token(reranker.sessions)
        states = model.decoder(embeddings.flatten(0, 1), positions, packing, not every_token)
        return model.head(states[packing.last] if every_token else states)


@dataclass
class AttentionPatterns:
    """Scores and patterns of the decoder's layers, kept in the graph."""

    scores: list[Tensor] = field(default_factory=list)
    patterns: list[Tensor] = field(default_factory=list)
    """Each (1, heads, queries, keys); in the decoder's last layer the score token's query alone."""


MAX_PATTERN_BYTES = 8 * 2**30
"""What patterns, scores and their gradients may take."""


def pattern_bytes(model: RerankerModel, encoding: Encoding, part: str = "decoder") -> int:
    """What scores, patterns and their gradients of one prompt take, all layers together."""
    config = model.config
    squares = len(encoding) ** 2 if part == "decoder" else sum((p.grid[0] * p.grid[1]) ** 2 for p in encoding.pictures)
    size = config.decoder if part == "decoder" else config.vision
    layers = config.decoder.num_layers if part == "decoder" else config.vision.depth
    return 4 * layers * size.num_heads * squares * model.dtype.itemsize


def check_pattern_bytes(encoding: Encoding, needed: int) -> None:
    """Raises InputError where patterns would take more than MOST_BYTES."""
    if needed > MAX_PATTERN_BYTES:
        raise InputError(
            f"attention patterns of {len(encoding)} tokens would take about {needed / 2**30:.0f} GiB, "
            f"but at most {MAX_PATTERN_BYTES // 2**30} are used; frozen_gradient, integrated_gradients and occlusion do without them."
        )


@contextmanager
def visit_patterns(model: RerankerModel, encoding: Encoding, visit: Callable[[int | None, Tensor], None]) -> Iterator[None]:
    """Show the decoder's patterns, (1, heads, queries, keys), with their layer's number while one prompt runs. None is kept, so one
    layer's are in memory at a time. Raises InputError where these are too many."""
    check_pattern_bytes(encoding, pattern_bytes(model, encoding) // model.config.decoder.num_layers)
    handles = HookHandles()
    try:
        for tap in find_taps(model.config, "decoder.layers.*.attention.pattern"):

            def hook(x: Tensor, _: Block | None, tap: Tap = tap) -> Tensor:
                visit(tap.layer, x)
                return x

            attach_hook(model, tap, hook, handles)
        yield
    finally:
        handles.remove()


@contextmanager
def record_patterns(
    model: RerankerModel, encoding: Encoding, change: Callable[[Tap, Tensor], Tensor] | None = None, part: str = "decoder"
) -> Iterator[AttentionPatterns]:
    """Keep the scores and patterns, (1, heads, queries, keys), of the decoder (or the "vision" tower) while one prompt runs.
    `change`: what takes the place of a pattern after it is kept. Raises InputError where they are too many."""
    check_pattern_bytes(encoding, pattern_bytes(model, encoding, part))
    handles, recorded = HookHandles(), AttentionPatterns()
    try:
        for tap in find_taps(model.config, [f"{part}.*.attention.scores", f"{part}.*.attention.pattern"]):

            def hook(x: Tensor, _: Block | None, tap: Tap = tap) -> Tensor:
                (recorded.scores if tap.how == "scores" else recorded.patterns).append(x)
                return x if change is None or tap.how == "scores" else change(tap, x)

            attach_hook(model, tap, hook, handles)
        yield recorded
    finally:
        handles.remove()


def logit_to_score(reranker: Scorer, logit: float) -> float:
    """Relevance, between 0 and 1, of a logit."""
    return float(relevance(torch.tensor(logit, dtype=torch.float64), reranker.model.config.logit_bias))


def build_explanation(
    reranker: Scorer, method: str, encoding: Encoding, logit: float | Tensor, tokens: Tensor, signed: bool, **more: Any
) -> Explanation:
    """The result of a method. `tokens`: relevance of each token, (tokens,); `more`: the fields that it fills beyond these."""
    value = float(logit.detach()) if isinstance(logit, Tensor) else logit
    return Explanation(method, encoding, value, logit_to_score(reranker, value), tokens.double().cpu(), signed, **more)
