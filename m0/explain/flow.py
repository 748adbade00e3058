"""One prompt through the model with gradients: from its embeddings, or from its pixels, to the logit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from m0.engine.watching import Scorer, call, visual_features_of, wants_every_token
from m0.errors import InputError
from m0.explain.explanation import Explanation
from m0.inputs.prompt import Encoding
from m0.interp.taps import Handles, Tap, attach, find_taps
from m0.model.attention import Block, Packing
from m0.model.head import relevance
from m0.model.reranker_model import RerankerModel


@dataclass
class Inputs:
    """What goes into the decoder, or where pixels count into the tower, of one prompt."""

    embeddings: Tensor
    """Of every token, visual tokens in place, (tokens, hidden), without gradient."""
    patches: Tensor | None
    """Of all pictures, (patches, 1176)."""

    def sides(self, pixels: bool) -> list[Tensor]:
        """What `logits_of` takes, one version of it: embeddings, (1, tokens, hidden), and the patches, (1, patches, 1176), where pixels
        count and there are any."""
        return [self.embeddings[None], *([self.patches[None]] if pixels and self.patches is not None else [])]


def inputs_of(reranker: Scorer, encoding: Encoding) -> Inputs:
    """Embeddings and patches of one prompt, without gradients; open edits change them, open recordings do not keep them."""
    model, pictures = reranker.model, encoding.pictures
    with torch.no_grad(), call(reranker, [encoding], record=False):
        features = visual_features_of(model, reranker.sessions, pictures, {})
        patches = torch.cat([p.patches_on(model.device) for p in pictures]).to(model.dtype) if pictures else None
        return Inputs(model.embed(encoding.token_ids.to(model.device), features), patches)


def logits_of(reranker: Scorer, encoding: Encoding, text: Tensor, patches: Tensor | None = None) -> Tensor:
    """Logits of several versions of a prompt, (versions,), through which gradients flow.

    Args:
        text: embeddings of all tokens, (versions, tokens, hidden).
        patches: of all pictures, (versions, patches, 1176); the tower computes the visual tokens from them. None: visual tokens are
            those in `text`.

    Open edits change every version; open recordings do not keep them.
    """
    model, versions = reranker.model, len(text)
    packing = Packing([len(encoding)] * versions, causal=True, device=text.device)
    with call(reranker, [encoding] * versions, record=False):
        if patches is not None:
            shown = encoding.pictures * versions
            for session in reranker.sessions:
                session.enter_pictures(shown)
            seen = model.vision(patches.flatten(0, 1), [picture.grid for picture in shown]).unflatten(0, (versions, -1))
            places = (encoding.token_ids == model.config.image_token_id).to(text.device)
            text = text.masked_scatter(places[None, :, None], seen.to(text.dtype))
        for session in reranker.sessions:
            session.enter_batch(range(versions), packing)
        positions = encoding.positions.to(text.device).repeat(1, versions)
        whole = wants_every_token(reranker.sessions)
        states = model.decoder(text.flatten(0, 1), positions, packing, not whole)
        return model.head(states[packing.last_rows] if whole else states)


@dataclass
class Patterns:
    """Scores and patterns of the decoder's layers, kept in the graph."""

    scores: list[Tensor] = field(default_factory=list)
    patterns: list[Tensor] = field(default_factory=list)
    """Each (1, heads, queries, keys); in the decoder's last layer the score token's query alone."""


MOST_BYTES = 8 * 2**30
"""What patterns, scores and their gradients may take."""


def pattern_bytes(model: RerankerModel, encoding: Encoding, part: str = "decoder") -> int:
    """What scores, patterns and their gradients of one prompt take, all layers together."""
    config = model.config
    squares = len(encoding) ** 2 if part == "decoder" else sum((p.grid[0] * p.grid[1]) ** 2 for p in encoding.pictures)
    size = config.decoder if part == "decoder" else config.vision
    layers = config.decoder.num_layers if part == "decoder" else config.vision.depth
    return 4 * layers * size.num_heads * squares * model.dtype.itemsize


def check_fits(encoding: Encoding, needed: int) -> None:
    """Raises InputError where patterns would take more than MOST_BYTES."""
    if needed > MOST_BYTES:
        raise InputError(
            f"attention patterns of {len(encoding)} tokens would take about {needed / 2**30:.0f} GiB, "
            f"but at most {MOST_BYTES // 2**30} are used; frozen_gradient, integrated_gradients and occlusion do without them."
        )


@contextmanager
def seeing(model: RerankerModel, encoding: Encoding, see: Callable[[int | None, Tensor], None]) -> Iterator[None]:
    """Show the decoder's patterns, (1, heads, queries, keys), with their layer's number while one prompt runs. None is kept, so one
    layer's are in memory at a time. Raises InputError where these are too many."""
    check_fits(encoding, pattern_bytes(model, encoding) // model.config.decoder.num_layers)
    handles = Handles()
    try:
        for tap in find_taps(model.config, "decoder.layers.*.attention.pattern"):

            def look(x: Tensor, _: Block | None, tap: Tap = tap) -> Tensor:
                see(tap.layer, x)
                return x

            attach(model, tap, look, handles)
        yield
    finally:
        handles.remove()


@contextmanager
def watching(
    model: RerankerModel, encoding: Encoding, change: Callable[[Tap, Tensor], Tensor] | None = None, part: str = "decoder"
) -> Iterator[Patterns]:
    """Keep the scores and patterns, (1, heads, queries, keys), of the decoder (or the "vision" tower) while one prompt runs.
    `change`: what takes the place of a pattern after it is kept. Raises InputError where they are too many."""
    check_fits(encoding, pattern_bytes(model, encoding, part))
    handles, kept = Handles(), Patterns()
    try:
        for tap in find_taps(model.config, [f"{part}.*.attention.scores", f"{part}.*.attention.pattern"]):

            def see(x: Tensor, _: Block | None, tap: Tap = tap) -> Tensor:
                (kept.scores if tap.how == "scores" else kept.patterns).append(x)
                return x if change is None or tap.how == "scores" else change(tap, x)

            attach(model, tap, see, handles)
        yield kept
    finally:
        handles.remove()


def relevance_of(reranker: Scorer, logit: float) -> float:
    """Relevance, between 0 and 1, of a logit."""
    return float(relevance(torch.tensor(logit, dtype=torch.float64), reranker.model.config.logit_bias))


def explained(
    reranker: Scorer, method: str, encoding: Encoding, logit: float | Tensor, tokens: Tensor, signed: bool, **more: Any
) -> Explanation:
    """The result of a method. `tokens`: relevance of each token, (tokens,); `more`: the fields that it fills beyond these."""
    value = float(logit.detach()) if isinstance(logit, Tensor) else logit
    return Explanation(method, encoding, value, relevance_of(reranker, value), tokens.double().cpu(), signed, **more)
