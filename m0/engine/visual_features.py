"""Visual features: the vision tower's output for each picture, computed once a call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from m0.checkpoints.mapped_memory import release
from m0.engine.prefix_cache import DocumentCache
from m0.engine.watching import WatchingSession, compute_missing_features
from m0.inputs.images import Picture
from m0.model.reranker_model import RerankerModel

MAX_CACHED_VISUAL_TOKENS = 16384
"""Visual tokens that are cached during a call, for pairs that show the same pictures again."""
MIN_TOKENS_TO_RELEASE = 512
"""From so many visual tokens to compute on, memory-mapped weights of tower and decoder are in memory one after the other; reading
weights again costs a tenth of a second."""


class VisualFeatures:
    """The vision tower's output for each different picture of a call, computed when first asked for and cached, the last used ones."""

    def __init__(self, model: RerankerModel, sessions: Sequence[WatchingSession]) -> None:
        self.model, self.sessions = model, sessions
        self.features: OrderedDict[bytes, Tensor] = OrderedDict()
        self.document_cache_call: tuple[DocumentCache | None, int | None] = (None, None)
        """The prefix cache that this call uses, and the call's number there (`CacheCall`)."""

    def get_or_compute(self, pictures: list[Picture]) -> Tensor | None:
        """Visual tokens of these pictures, end to end; None for none."""
        missing_tokens = sum({p.digest: p.num_tokens for p in pictures if p.digest not in self.features}.values())
        releases_weights = missing_tokens >= MIN_TOKENS_TO_RELEASE and self.model.device.type == "cpu"
        if releases_weights:
            release(self.model.decoder.layers.parameters())
        result = compute_missing_features(self.model, self.sessions, pictures, self.features)
        if releases_weights:
            release(self.model.vision.parameters())
        for picture in pictures:
            self.features.move_to_end(picture.digest)
        while sum(map(len, self.features.values())) > MAX_CACHED_VISUAL_TOKENS and len(self.features) > 1:
            self.features.popitem(last=False)
        return result
