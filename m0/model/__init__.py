"""The whole network, and nothing else: no files, no adapters, no pictures. `reranker_model` is the place to begin."""

from m0.model.reranker_model import RerankerModel

__all__ = ["RerankerModel"]
