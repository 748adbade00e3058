"""One prompt through the model with gradients: from its embeddings, or from its pixels, to the logit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m0.attention import Block, Packing
from m0.interp.session import Scorer
from m0.interp.taps import Handles, Tap, attach, find_taps
from m0.model import RerankerModel
from m0.prompt import Encoding


@dataclass
class Inputs:
    """What goes into the decoder, or where pixels count into the tower, of one prompt."""

    embeddings: Tensor
    """Of every token, visual tokens in place, (tokens, hidden), without gradient."""
    patches: Tensor | None
    """Of all pictures, (patches, 1176)."""


def inputs_of(model: RerankerModel, encoding: Encoding) -> Inputs:
    with torch.no_grad():
        ids, features, patches = encoding.token_ids.to(model.device), None, None
        if encoding.pictures:
            patches = torch.cat([picture.patches for picture in encoding.pictures]).to(model.device, model.dtype)
            features = model.vision(patches, [picture.grid for picture in encoding.pictures])
        return Inputs(model.embed(ids, features), patches)


def logits_of_embeddings(model: RerankerModel, encoding: Encoding, embeddings: Tensor) -> Tensor:
    """Logits of several versions of a prompt's embeddings, (versions, tokens, hidden) -> (versions,)."""
    versions = len(embeddings)
    packing = Packing([len(encoding)] * versions, causal=True, device=embeddings.device)
    positions = encoding.positions.to(embeddings.device).repeat(1, versions)
    return model.head(model.decoder(embeddings.flatten(0, 1), positions, packing))


def embeddings_of_patches(model: RerankerModel, encoding: Encoding, text: Tensor, patches: Tensor) -> Tensor:
    """Embeddings of several versions of a prompt: of the text (versions, tokens, hidden) with the pictures' visual tokens
    computed from (versions, patches, 1176) in place."""
    versions = len(patches)
    grids = [picture.grid for picture in encoding.pictures] * versions
    seen = model.vision(patches.flatten(0, 1), grids).unflatten(0, (versions, -1))  # (versions, visual tokens, hidden)
    shown = (encoding.token_ids == model.config.image_token_id).to(text.device)
    return text.masked_scatter(shown[None, :, None], seen.to(text.dtype))


@dataclass
class Patterns:
    """Scores and patterns of the decoder's layers, kept in the graph."""

    scores: list[Tensor] = field(default_factory=list)
    patterns: list[Tensor] = field(default_factory=list)
    """Each (1, heads, queries, keys); in the decoder's last layer the score token's query alone."""


@contextmanager
def watching(
    model: RerankerModel, change: Callable[[Tap, Tensor], Tensor] | None = None, part: str = "decoder"
) -> Iterator[Patterns]:
    """Keep the scores and patterns of the decoder (or the "vision" tower) while one prompt runs. `change`: what takes the place
    of a pattern after it is kept."""
    handles, kept = Handles(), Patterns()
    for tap in find_taps(model.config, [f"{part}.*.attention.scores", f"{part}.*.attention.pattern"]):

        def see(x: Tensor, _: Block | None, tap: Tap = tap) -> Tensor:
            (kept.scores if tap.how == "scores" else kept.patterns).append(x)
            return x if change is None or tap.how == "scores" else change(tap, x)

        attach(model, tap, see, handles)
    try:
        yield kept
    finally:
        handles.remove()


def relevance_of(reranker: Scorer, logit: float) -> float:
    return float(torch.sigmoid(torch.tensor(logit - reranker.model.config.logit_bias, dtype=torch.float64)))
