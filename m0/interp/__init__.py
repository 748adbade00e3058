"""Look inside the model and intervene: every activation by name, by word and by box; experiments on top."""

from m0.interp.ablation import attention_knockout, head_ablation, standard_cuts
from m0.interp.cache import Activation, Cache, Recording
from m0.interp.edits import Edit, Editing, add, mean, replace, resample, scale, zero
from m0.interp.grid import Agreement, Axis, Grid, agreement
from m0.interp.heads import HeadRoles, head_roles
from m0.interp.lens import DirectAttribution, direct_logit_attribution, score_lens
from m0.interp.patching import activation_patching, attribution_patching, path_patching, run_variants
from m0.interp.positions import Selector, document, everything, image, query, score_token, template, tokens
from m0.interp.session import forward, prompts
from m0.interp.taps import Tap, all_taps, find_taps

__all__ = [
    "Activation", "Agreement", "Axis", "Cache", "DirectAttribution", "Edit", "Editing", "Grid", "HeadRoles", "Recording",
    "Selector", "Tap", "activation_patching", "add", "agreement", "all_taps", "attention_knockout", "attribution_patching",
    "direct_logit_attribution", "document", "everything", "find_taps", "forward", "head_ablation", "head_roles", "image", "mean",
    "path_patching", "prompts", "query", "replace", "resample", "run_variants", "scale", "score_lens", "score_token",
    "standard_cuts", "template", "tokens", "zero",
]  # fmt: skip
