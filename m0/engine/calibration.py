"""What a model is shown before it is put into 8 bits: a few prompts in several languages, or the user's own."""

from __future__ import annotations

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
from m0.model.fused import fuse, is_fused

_WORDS = (
    "how to install the system",
    "Ein Apfel am Tag, sagt man, erspart den Arzt.",
    "人工智能",
    "def open(path): ...",
    "музыка",
)
EXAMPLES = [(query, document) for query in _WORDS for document in (" ".join(_WORDS), {"image": Image.linear_gradient("L")})]
"""What is shown to a model before it is quantized."""
EXAMPLE_TOKENS = 1024
"""Of it at a time, for gradients keep every layer's outputs."""
UNQUANTIZED_SHARE = 0.3
"""Share of the weights that stays unquantized without a word."""


def quantize_with_examples(
    host: Host, how: Quantization, examples: Iterable[tuple[Any, Any]] | None, groups: int, plain: float | None
) -> None:
    """As `Reranker.quantize`."""
    whole_number(groups, "groups")
    if host.sessions:
        raise InputError("a model cannot be quantized inside record() or edit().")
    if host.open_sessions.elsewhere:
        raise InputError("a model cannot be quantized while another thread is inside record() or edit().")
    plain = (0.0 if how == "float8" else UNQUANTIZED_SHARE) if plain is None else plain
    check_quantization(host.model, how, plain)
    shown = []
    if how != "float8":  # which needs no examples, and has no groups
        settings = host.image_settings
        if examples is None:  # which are no bombs, whatever is told of others
            settings = replace(settings, max_image_pixels=ImageSettings.max_image_pixels)
        encodings = encode_pairs(host.prompt, EXAMPLES if examples is None else examples, Limits(), settings)
        shown = [
            Batch.of([encodings[i] for i in members], share=False, device=host.model.device)
            for members in batches(encodings, EXAMPLE_TOKENS, (), share=False)
        ]
    quantize(host.model, how, shown, groups, plain)
    if is_fused(host.model):  # so that what is new is compiled, too
        fuse(host.model)
