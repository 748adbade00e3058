"""Look inside the model and intervene: every activation by name, by word and by box; experiments on top."""

from m0.interp.cache import Activation, Cache, Recording
from m0.interp.edits import Edit, Editing, add, mean, replace, resample, scale, zero
from m0.interp.positions import Selector, document, everything, image, query, score_token, template, tokens
from m0.interp.session import forward, prompts
from m0.interp.taps import Tap, all_taps, find_taps

__all__ = [
    "Activation", "Cache", "Edit", "Editing", "Recording", "Selector", "Tap", "add", "all_taps", "document", "everything",
    "find_taps", "forward", "image", "mean", "prompts", "query", "replace", "resample", "scale", "score_token", "template",
    "tokens", "zero",
]  # fmt: skip
