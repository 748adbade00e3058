"""Why a document got its score: attribution to words and picture regions, one result type for every method."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from m0.engine.watching import OpenSessions, Scorer
from m0.errors import InputError
from m0.explain import html as html
from m0.explain import show as show
from m0.explain.attention import attention_gradient, raw_attention, rollout
from m0.explain.contrast import Difference, Evidence, minimal_evidence
from m0.explain.explanation import Explanation, Interaction, PageBox, PictureRelevance, Word
from m0.explain.gradient import attnlrp, frozen_gradient, gradient_input, integrated_gradients, smooth_grad
from m0.explain.originals import attach_page, keep_originals
from m0.explain.page_words import PageWord
from m0.explain.perturb import occlusion, shapley
from m0.inputs.passages import Passage
from m0.inputs.prompt import Encoding
from m0.interp.session import Session
from m0.interp.taps import HOOK_LOCK
from m0.locks import CallLock, uses_model
from m0.model.linear import is_quantized

METHODS: dict[str, Callable[..., Explanation]] = {
    "attention": raw_attention,
    "rollout": rollout,
    "attention_gradient": attention_gradient,
    "gradient_input": gradient_input,
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
    "attnlrp": attnlrp,
    "frozen_gradient": frozen_gradient,
    "occlusion": occlusion,
    "shapley": shapley,
}
GRADIENT_FREE_METHODS = ("attention", "rollout", "occlusion", "shapley")
"""What works on a model in 8 bits."""
DEFAULT_METHOD = "frozen_gradient"
"""See docs/explanation/explaining.md for what speaks for it."""
MAX_COPIED_PARAMETERS = 10**9
"""A model in 16 bits with at most as many is explained in float32, on a copy."""


@uses_model
def explain(
    reranker: Scorer, encoding: Encoding, method: str = DEFAULT_METHOD, target: str = "logit", **options: Any
) -> Explanation:
    """Explain one prompt's score.

    Args:
        method: one of `METHODS`; `options` are that function's.
        target: "logit", the model's raw output: the sigmoid behind it only bends the scale.

    Raises InputError.
    """
    function = method_of(method, options)
    if target != "logit":
        raise InputError(f"target is {target!r}, but must be 'logit'.")
    notes = [f"what was cut is not explained: {cut}." for cut in encoding.cut]
    if is_quantized(reranker.model):
        if method not in GRADIENT_FREE_METHODS:
            raise InputError(
                f"{method} needs gradients, which a quantized model has not; without them work {', '.join(GRADIENT_FREE_METHODS)}."
            )
        notes.append("computed in 8 bits, as it ranks.")
    elif reranker.model.dtype in (torch.bfloat16, torch.float16):
        name = str(reranker.model.dtype).removeprefix("torch.")
        if sum(p.numel() for p in reranker.model.parameters()) <= MAX_COPIED_PARAMETERS and not reranker.sessions:
            with torch.inference_mode(False):
                reranker = _Float32Scorer(reranker)
            notes.append(f"computed in float32; in {name}, as it ranks, the logit is another by its rounding.")
        else:
            notes.append(f"computed in {name}: sums are met to about 1 %, not to the last digit.")
    with torch.inference_mode(False):
        explanation = function(reranker, encoding, **options)
    return replace(explanation, notes=(*notes, *explanation.notes))


def method_of(method: str, options: Iterable[str]) -> Callable[..., Explanation]:
    """The function of a method. Raises InputError where there is none of that name, or it has no such options."""
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method is {method!r}, but must be one of {', '.join(METHODS)}.")
    known = options_of(method)
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"{method} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    return METHODS[method]


def options_of(method: str) -> list[str]:
    """Names of a method's options."""
    return [name for name in inspect.signature(METHODS[method]).parameters if name not in ("reranker", "encoding")]


def note_ranking_score(explanation: Explanation, logit: float, score: float) -> Explanation:
    """With a note where the ranking gave another score, as a model in 16 bits does."""
    if abs(explanation.logit - logit) < 5e-4 and abs(explanation.score - score) < 5e-5:  # as they are shown
        return explanation
    return replace(explanation, notes=(*explanation.notes, f"ranked by score {score:.4f}, logit {logit:.3f}."))


def __getattr__(name: str) -> Any:
    if name != "beside_ranking":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "m0.explain.beside_ranking is now note_ranking_score; the old name goes with the next version.",
        DeprecationWarning,
        stacklevel=2,
    )
    return note_ranking_score


def of_passage(explanation: Explanation, passage: Passage | None) -> Explanation:
    """Of a document with several passages: which one is explained, and a note on it; of a page also the words of its text layer, and its
    picture at its own resolution."""
    if passage is None:
        return explanation
    notes = explanation.notes
    if passage.count > 1:
        notes = (*notes, f"this is passage {passage.number} of {passage.count}, which stands for the document.")
    explanation = replace(explanation, passage=passage, notes=notes)
    return explanation if passage.source is None else attach_page(explanation, passage.source)


class _Float32Scorer:
    """The same model in float32, for as long as an explanation takes."""

    sessions: Sequence[Session] = ()

    def __init__(self, reranker: Scorer) -> None:
        with HOOK_LOCK:  # other threads may be attaching theirs, which do nothing in this one
            self.model = copy.deepcopy(reranker.model)
        self.model.float()
        self.prompt, self.encode = reranker.prompt, reranker.encode
        self.calls, self.open_sessions = CallLock(), OpenSessions([])


__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Difference",
    "Evidence",
    "Explanation",
    "Interaction",
    "PageBox",
    "PageWord",
    "PictureRelevance",
    "Word",
    "explain",
    "keep_originals",
    "method_of",
    "minimal_evidence",
    "note_ranking_score",
    "of_passage",
    "options_of",
]  # fmt: skip
