"""Calibration: the example prompts that a model runs before its layers are quantized, a few in several languages or the user's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from PIL import Image

from m0.engine.batch import Batch
from m0.engine.batching import batches
from m0.engine.host import Host
from m0.engine.quantize import Quantization, check_quantization, quantize
from m0.errors import InputError
from m0.inputs.images import ImageSettings
from m0.inputs.prompt import Limits, whole_number
from m0.inputs.reading import encode_pairs
from m0.locks import level_of_caller
from m0.model.fused import fuse, is_fused

_EXAMPLE_TEXTS = (
    "how to install the system",
    "Ein Apfel am Tag, sagt man, erspart den Arzt.",
    "人工智能",
    "def open(path): ...",
    "музыка",
)
EXAMPLE_PAIRS = [
    (query, document)
    for query in _EXAMPLE_TEXTS
    for document in (" ".join(_EXAMPLE_TEXTS), {"image": Image.linear_gradient("L")})
]
"""(query, document) pairs that calibrate a model when the user gives none."""
EXAMPLE_BATCH_TOKENS = 1024
"""Of it at a time, for gradients keep every layer's outputs."""
DEFAULT_UNQUANTIZED_SHARE = 0.3
"""Share of the weights that stays unquantized when the user gives none."""


def quantize_with_examples(
    host: Host,
    how: Quantization,
    examples: Iterable[tuple[Any, Any]] | None,
    groups: int,
    unquantized_share: float | None,
    plain: float | None = None,
) -> None:
    """As `Reranker.quantize`. `plain`: the old name of `unquantized_share`."""
    if plain is not None:
        if unquantized_share is not None:
            raise InputError("unquantized_share is given twice, the second time by its old name, plain; give it once.")
        warnings.warn(
            "plain is now unquantized_share; the old name goes with the next version.",
            DeprecationWarning,
            stacklevel=level_of_caller(),
        )
        unquantized_share = plain
    whole_number(groups, "groups")
    if host.sessions:
        raise InputError("a model cannot be quantized inside record() or edit().")
    if host.open_sessions.elsewhere:
        raise InputError("a model cannot be quantized while another thread is inside record() or edit().")
    if unquantized_share is None:
        unquantized_share = 0.0 if how == "float8" else DEFAULT_UNQUANTIZED_SHARE
    check_quantization(host.model, how, unquantized_share)
    example_batches = []
    if how != "float8":  # which needs no examples, and has no groups
        settings = host.image_settings
        if examples is None:  # which are no bombs, whatever is told of others
            settings = replace(settings, max_image_pixels=ImageSettings.max_image_pixels)
        encodings = encode_pairs(host.prompt, EXAMPLE_PAIRS if examples is None else examples, Limits(), settings)
        example_batches = [
            Batch.of([encodings[i] for i in members], share=False, device=host.model.device)
            for members in batches(encodings, EXAMPLE_BATCH_TOKENS, (), share=False)
        ]
    quantize(host.model, how, example_batches, groups, unquantized_share)
    if is_fused(host.model):  # so that what is new is compiled, too
        fuse(host.model)
