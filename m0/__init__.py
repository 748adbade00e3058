"""m0: jina-reranker-m0, the multilingual, multimodal reranker, in pure PyTorch.

from m0 import Reranker

reranker = Reranker.from_pretrained("m0-nano")
ranking = reranker.rank("red heart", ["ein rotes Herz", {"image": "heart.png"}])
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from m0._moved import MovedModules

if TYPE_CHECKING:
    from m0.checkpoints.adapters.config import LoRAConfig
    from m0.engine.cascade import Cascade
    from m0.engine.options import RunOptions
    from m0.engine.prefix_cache import DocumentCache
    from m0.engine.results import FailedDocument, RankedDocument, Ranking
    from m0.errors import M0Error
    from m0.inputs.document import Document
    from m0.inputs.passages import Passages
    from m0.inputs.policy import SourcePolicy
    from m0.inputs.prompt import Limits
    from m0.model.config import DecoderConfig, RerankerConfig, VisionConfig
    from m0.model.reranker_model import RerankerModel
    from m0.reranker import Reranker

__version__ = "0.2.0"
__all__ = [
    "Cascade",
    "DecoderConfig",
    "Document",
    "DocumentCache",
    "FailedDocument",
    "Limits",
    "LoRAConfig",
    "M0Error",
    "Passages",
    "RankedDocument",
    "Ranking",
    "Reranker",
    "RerankerConfig",
    "RerankerModel",
    "RunOptions",
    "SourcePolicy",
    "VisionConfig",
]
_HOMES = {
    "engine.cascade": ("Cascade",),
    "model.config": ("DecoderConfig", "RerankerConfig", "VisionConfig"),
    "engine.prefix_cache": ("DocumentCache",),
    "errors": ("M0Error",),
    "checkpoints.adapters.config": ("LoRAConfig",),
    "model": ("RerankerModel",),
    "engine.options": ("RunOptions",),
    "engine.results": ("FailedDocument", "RankedDocument", "Ranking"),
    "inputs.document": ("Document",),
    "inputs.passages": ("Passages",),
    "inputs.policy": ("SourcePolicy",),
    "inputs.prompt": ("Limits",),
    "reranker": ("Reranker",),
}
if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    """Imported when first asked for, so that the command line answers before PyTorch is loaded."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"m0.{home}"), name)
    raise AttributeError(f"module 'm0' has no attribute {name!r}")
