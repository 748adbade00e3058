"""m0: jina-reranker-m0, the multilingual, multimodal reranker, in pure PyTorch.

from m0 import Reranker

reranker = Reranker.from_pretrained("m0-nano")
ranking = reranker.rank("red heart", ["ein rotes Herz", {"image": "heart.png"}])
"""

from m0.cascade import Cascade
from m0.config import DecoderConfig, RerankerConfig, VisionConfig
from m0.documents import DocumentCache
from m0.errors import M0Error
from m0.lora import LoRAConfig
from m0.model import RerankerModel
from m0.reranker import FailedDocument, RankedDocument, Ranking, Reranker

__version__ = "0.1.0"
__all__ = [
    "Cascade",
    "DecoderConfig",
    "DocumentCache",
    "FailedDocument",
    "LoRAConfig",
    "M0Error",
    "RankedDocument",
    "Ranking",
    "Reranker",
    "RerankerConfig",
    "RerankerModel",
    "VisionConfig",
]
