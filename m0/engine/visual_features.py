"""Visual features: the vision tower's output for each picture, computed once a call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from m0.checkpoints.mapped_memory import release_pages
from m0.engine.prefix_cache import DocumentCache
from m0.engine.watching import WatchingSession, visual_features_of
from m0.inputs.images import Picture
from m0.model.reranker_model import RerankerModel

KEPT_VISUAL_TOKENS = 16384
"""Visual tokens of pictures whose features are kept during a call, for pairs that show them again."""
RELEASE_TOKENS = 512
"""Visual tokens to compute for which tower and decoder take turns in memory; reading weights again costs a tenth of a second."""


class VisualFeatures:
    """Vision output of each different picture, computed when first asked for and kept while it is likely to be asked for again."""

    def __init__(self, model: RerankerModel, sessions: Sequence[WatchingSession]) -> None:
        self.model, self.sessions = model, sessions
        self.features: OrderedDict[bytes, Tensor] = OrderedDict()
        self.asked: tuple[DocumentCache | None, int | None] = (None, None)
        """The cache that the call they are of has asked for documents, and the call's number there."""

    def gather(self, pictures: list[Picture]) -> Tensor | None:
        """Visual tokens of these pictures, end to end; None for none."""
        unseen = sum({p.digest: p.num_tokens for p in pictures if p.digest not in self.features}.values())
        long = unseen >= RELEASE_TOKENS and self.model.device.type == "cpu"
        if long:
            release_pages(self.model.decoder.layers.parameters())
        result = visual_features_of(self.model, self.sessions, pictures, self.features)
        if long:
            release_pages(self.model.vision.parameters())
        for picture in pictures:
            self.features.move_to_end(picture.digest)
        while sum(map(len, self.features.values())) > KEPT_VISUAL_TOKENS and len(self.features) > 1:
            self.features.popitem(last=False)
        return result
