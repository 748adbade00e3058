"""What the rooms of the engine need of a `Reranker`, which comes later than they."""

from __future__ import annotations

from typing import Protocol

from m0.checkpoints.adapters.switching import Adapters
from m0.engine.prefix_cache import DocumentCache
from m0.engine.watching import Scorer
from m0.inputs.images import ImageSettings


class Host(Scorer, Protocol):
    """A model with all that goes with it."""

    adapters: Adapters
    known_fingerprint: tuple[object, str] | None
    """The weights' key (`m0.engine.prefixes.weights_key`), and the fingerprint that goes with it."""

    @property
    def documents(self) -> DocumentCache: ...
    @property
    def image_settings(self) -> ImageSettings: ...
