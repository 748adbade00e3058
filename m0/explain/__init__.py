"""Why a document got its score: attribution to words and picture regions, one result type for every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from m0.errors import InputError
from m0.explain.attention import attention_gradient, raw_attention, rollout
from m0.explain.contrast import Difference, Evidence, minimal_evidence
from m0.explain.explanation import Explanation, Interaction, PictureRelevance, Word
from m0.explain.gradient import attnlrp, frozen_gradient, gradient_input, integrated_gradients, smooth_grad
from m0.explain.perturb import occlusion, shapley
from m0.interp.session import Scorer
from m0.prompt import Encoding

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
DEFAULT_METHOD = "attnlrp"
"""Recommended by the table of docs/explaining.md."""


def explain(
    reranker: Scorer, encoding: Encoding, method: str = DEFAULT_METHOD, target: str = "logit", **options: Any
) -> Explanation:
    """Explain one prompt's score.

    Args:
        method: one of `METHODS`; `options` are that function's.
        target: "logit", the model's raw output: the sigmoid behind it only bends the scale.

    Raises InputError.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}, but must be one of {', '.join(METHODS)}.")
    if target != "logit":
        raise InputError(f"target is {target!r}, but must be 'logit'.")
    try:
        return METHODS[method](reranker, encoding, **options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise InputError(f"{method}: {str(error).partition(') ')[2] or str(error)}.") from None
        raise


__all__ = [
    "DEFAULT_METHOD", "METHODS", "Difference", "Evidence", "Explanation", "Interaction", "PictureRelevance", "Word", "explain",
    "minimal_evidence",
]  # fmt: skip
