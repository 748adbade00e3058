"""m0: jina-reranker-m0 in pure PyTorch."""

__version__ = "0.1.0"
