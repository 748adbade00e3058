"""Explanations by gradients: gradient x input, integrated gradients, SmoothGrad, and relevance by AttnLRP.

Each can be asked for at the tokens, visual tokens included, or through the vision tower for every pixel.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.explain.edges import DEFAULT_MATRIX_BYTES, AttentionTensors, compute_interaction, record_attention_tensors
from m0.explain.explanation import Explanation, Interaction
from m0.explain.flow import (
    AttentionPatterns,
    ModelInputs,
    build_explanation,
    compute_inputs,
    compute_logits,
    pattern_bytes,
    record_patterns,
)
from m0.explain.rules import attnlrp_rules, frozen_rules, halve_derivative
from m0.inputs.prompt import Encoding, whole_number
from m0.interp.positions import document, image, query
from m0.interp.taps import Tap
from m0.model.reranker_model import RerankerModel

BASELINE_TEXT = "."
"""The text whose first token stands for no word. Not a line break, which is also the template's: m0-nano takes a document of line
breaks for no document at all and scores it high."""
BASELINE_BRIGHTNESS = 127
"""Brightness of the picture that stands for no picture."""
NODE_COUNTS = (32, 64, 128, 256)
"""How many points integrated gradients tries, one after the other."""


def gradient_input(reranker: Scorer, encoding: Encoding, pixels: bool = False) -> Explanation:
    """Gradient x input (Shrikumar et al. 2017): the logit's derivative by each embedding (each pixel), times it. Signed; its sum is
    not the logit, since the model is not linear, and the ledger shows by how much."""
    start = compute_inputs(reranker, encoding)
    leaves = _leaf_tensors(start, pixels)
    with torch.enable_grad():
        logit = compute_logits(reranker, encoding, *leaves)[0]
        gradients = torch.autograd.grad(logit, leaves)
    tokens, pixel_relevance = _input_times_gradient(encoding, leaves, gradients)
    total = float(tokens.sum())
    ledger = {"inputs": total, "logit": float(logit.detach()), "gap": float(logit.detach()) - total}
    return build_explanation(
        reranker, "gradient_input", encoding, logit, tokens, True, pixel_relevance=pixel_relevance, ledger=ledger
    )


def smooth_grad(
    reranker: Scorer, encoding: Encoding, samples: int = 16, noise: float = 0.1, seed: int = 0, pixels: bool = False
) -> Explanation:
    """SmoothGrad (Smilkov et al. 2017) times input: the mean gradient over inputs with noise. Signed; no sum is promised.

    Args:
        samples: how many noisy versions.
        noise: its standard deviation, as a share of that of the input's own numbers.
        seed: of the noise.

    Raises InputError where one of these cannot be used.
    """
    whole_number(samples, "samples")
    if not isinstance(noise, int | float) or not 0 <= noise < math.inf:
        raise InputError(f"noise is {noise!r}, but must be a number of at least 0.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed is {seed!r}, but must be a whole number.")
    start = compute_inputs(reranker, encoding)
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
        return x + noise * x.std() * drawn

    sums: list[Tensor] = []
    for _ in range(samples):
        leaves = [noisy(tensor).requires_grad_() for tensor in start.as_arguments(pixels)]
        with torch.enable_grad():
            gradients = torch.autograd.grad(compute_logits(reranker, encoding, *leaves)[0], leaves)
        sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
    with torch.no_grad():
        logit = compute_logits(reranker, encoding, *start.as_arguments(pixels))[0]
    tokens, pixel_relevance = _input_times_gradient(encoding, start.as_arguments(pixels), [total / samples for total in sums])
    return build_explanation(reranker, "smooth_grad", encoding, logit, tokens, True, pixel_relevance=pixel_relevance)


def integrated_gradients(
    reranker: Scorer,
    encoding: Encoding,
    nodes: int | None = None,
    gap: float = 0.05,
    pixels: bool = False,
    batch_tokens: int = 4096,
) -> Explanation:
    """Integrated gradients (Sundararajan et al. 2017) along a straight line from a prompt that says nothing, by Gauss-Legendre.

    The baseline has a full stop's embedding for every token of query and document, and a grey picture in every picture's place;
    the template stays. Zeros would be a bad baseline: RMSNorm is ill-behaved there. Signed; the sum is the difference of the two
    logits but for `ledger["gap"]`.

    Args:
        nodes: points on the line; None: 32, 64, 128, 256 until the gap is small enough.
        gap: how much of the logits' difference may be missing. If it is still more, a note says so.
        batch_tokens: tokens that go through the model at a time.

    Raises InputError where one of these cannot be used.
    """
    whole_number(batch_tokens, "batch_tokens")
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not 0 <= gap < math.inf:
        raise InputError(f"gap is {gap!r}, but must be a number of at least 0.")
    baseline, start = (
        compute_baseline(reranker, encoding).as_arguments(pixels),
        compute_inputs(reranker, encoding).as_arguments(pixels),
    )
    with torch.no_grad():
        baseline_logit, logit = (float(compute_logits(reranker, encoding, *end)[0]) for end in (baseline, start))
    difference = logit - baseline_logit
    tries = NODE_COUNTS if nodes is None else (whole_number(nodes, "nodes"),)
    for count in tries:
        means = _integrate(reranker, encoding, baseline, start, count, batch_tokens)
        tokens, pixel_relevance = _input_times_gradient(encoding, [b - a for a, b in zip(baseline, start, strict=True)], means)
        gap_left = difference - float(tokens.sum())
        if abs(gap_left) <= gap * abs(difference):
            break
    ledger = {"inputs": float(tokens.sum()), "baseline": baseline_logit, "logit": logit, "gap": gap_left, "nodes": float(count)}
    notes = []
    if difference <= 0:
        notes.append(f"the prompt that says nothing has the logit {baseline_logit:.3g}, no less than this one's {logit:.3g}.")
    if abs(gap_left) > gap * abs(difference):
        notes.append(f"{abs(gap_left):.3g} of the logits' difference {difference:.3g} is not accounted for at {count} nodes.")
    return build_explanation(
        reranker,
        "integrated_gradients",
        encoding,
        logit,
        tokens,
        True,
        pixel_relevance=pixel_relevance,
        ledger=ledger,
        notes=tuple(notes),
    )


def _integrate(
    reranker: Scorer, encoding: Encoding, baseline: list[Tensor], start: list[Tensor], count: int, batch_tokens: int
) -> list[Tensor]:
    """Mean gradients over the line, weighted as Gauss-Legendre does: of the embeddings, and of the patches where asked."""
    points, weights = np.polynomial.legendre.leggauss(count)
    nodes_at_a_time = max(1, batch_tokens // len(encoding))
    alphas, shares = (torch.tensor(x, device=start[0].device).split(nodes_at_a_time) for x in ((points + 1) / 2, weights / 2))
    totals: list[Tensor] = []
    for alpha, weight in zip(alphas, shares, strict=True):
        ends = zip(baseline, start, strict=True)
        between = [(a + alpha.to(a.dtype)[:, None, None] * (b - a)).requires_grad_() for a, b in ends]
        with torch.enable_grad():
            gradients = torch.autograd.grad(compute_logits(reranker, encoding, *between).sum(), between)
        parts = [(weight[:, None, None] * gradient.double()).sum(0, keepdim=True) for gradient in gradients]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    return totals


def compute_baseline(reranker: Scorer, encoding: Encoding) -> ModelInputs:
    """A prompt of the same shape that says nothing: a full stop for every token of a text, grey for pictures."""
    blank = [replace(picture, pixels=np.full_like(picture.pixels, BASELINE_BRIGHTNESS)) for picture in encoding.pictures]
    ids = encoding.token_ids.clone()
    baseline_token = reranker.prompt.tokenizer.encode(BASELINE_TEXT, add_special_tokens=False).ids[0]
    ids[[origin.kind == "text" for origin in encoding.origins]] = baseline_token
    return compute_inputs(reranker, replace(encoding, token_ids=ids, pictures=blank))


def attnlrp(reranker: Scorer, encoding: Encoding, pixels: bool = False, matrix: bool = True) -> Explanation:
    """AttnLRP (Achtibat et al. 2024): relevance carried back from the logit by the rules of `m0.explain.rules`. Signed.

    The ledger: inputs, biases and the softmax remainder add up to the logit. `matrix`: also give the interaction.
    """
    with attnlrp_rules(reranker.model):
        return _explain_with_ledger(reranker, encoding, "attnlrp", pixels, matrix, None)


def frozen_gradient(
    reranker: Scorer, encoding: Encoding, pixels: bool = False, matrix: bool = True, matrix_bytes: int = DEFAULT_MATRIX_BYTES
) -> Explanation:
    """Gradient x input with norm scales, attention patterns and gates held as they are: the rules for LayerNorm and attention heads
    of Ali et al. 2022, and the same for the gate. Signed.

    The model is then linear in its input, so the ledger closes: inputs and biases add up to the logit.

    Args:
        matrix: also find the interaction.
        matrix_bytes: what that may take; the pieces that it is computed in fit this.

    Raises InputError where `matrix_bytes` is below 1.
    """
    whole_number(matrix_bytes, "matrix_bytes")
    with frozen_rules(reranker.model):
        return _explain_with_ledger(reranker, encoding, "frozen_gradient", pixels, matrix, matrix_bytes)


def _explain_with_ledger(
    reranker: Scorer, encoding: Encoding, method: str, pixels: bool, matrix: bool, matrix_bytes: int | None
) -> Explanation:
    """`matrix_bytes` None: the rule has a part of the derivative go through the patterns, which are kept; else they are constants."""
    start = compute_inputs(reranker, encoding)
    model, pixels = reranker.model, pixels and start.patches is not None
    leaves, biases = _leaf_tensors(start, pixels), _bias_parameters(model, pixels)
    decoder, vision, constants, attention = AttentionPatterns(), AttentionPatterns(), list[Tensor](), AttentionTensors()
    # Constant patterns are found again from what they were made of, unless an edit has changed them since.
    edited = any(session.watches_patterns for session in reranker.sessions if not session.records)
    with contextlib.ExitStack() as opened:
        opened.enter_context(torch.enable_grad())
        opened.enter_context(_require_gradients(biases))

        def hold(_: Tap, pattern: Tensor) -> Tensor:
            constants.append(pattern.detach().requires_grad_())
            return constants[-1]

        if matrix_bytes is None:
            decoder = opened.enter_context(record_patterns(model, encoding, lambda _, x: halve_derivative(x)))
            if pixels:
                vision = opened.enter_context(record_patterns(model, encoding, lambda _, x: halve_derivative(x), "vision"))
        elif matrix and not edited:
            attention = opened.enter_context(record_attention_tensors(model))
        elif matrix and pattern_bytes(model, encoding) <= matrix_bytes:
            opened.enter_context(record_patterns(model, encoding, hold))
        logit = compute_logits(reranker, encoding, *leaves)[0]
        scores, patterns = [*decoder.scores, *vision.scores], [*decoder.patterns, *vision.patterns]
        wanted = [*leaves, *biases, *scores, *patterns, *constants, *attention.outputs]
        gradients = iter(torch.autograd.grad(logit, wanted, materialize_grads=True))
    inputs, by_bias, by_scores, by_patterns, by_constant, by_outputs = (
        [next(gradients) for _ in group] for group in (leaves, biases, scores, patterns, constants, attention.outputs)
    )
    tokens, pixel_relevance = _input_times_gradient(encoding, leaves, inputs)
    bias_sum = sum(float((bias.detach().double() * of.double()).sum()) for bias, of in zip(biases, by_bias, strict=True))
    remainder = 0.0
    for score, pattern, of_score, of_pattern in zip(scores, patterns, by_scores, by_patterns, strict=True):
        remainder += float((pattern.detach().double() * of_pattern.double()).sum())
        allowed = score.detach().double().masked_fill(score.isneginf(), 0.0)  # where it is not, nothing flows
        remainder -= float((allowed * of_score.double()).sum())
    total = float(tokens.sum())
    ledger = {"inputs": total, "biases": bias_sum}
    if matrix_bytes is None:
        ledger["softmax remainder"] = remainder
    ledger |= {"logit": float(logit.detach()), "gap": float(logit.detach()) - total - bias_sum - remainder}
    interaction, notes = None, tuple[str, ...]()
    if matrix and attention.outputs and matrix_bytes is not None:
        interaction, pieces = compute_interaction(encoding, attention, by_outputs, matrix_bytes)
        if pieces > 1:
            size = _format_bytes(matrix_bytes)
            notes = (f"the matrix of query and document was computed in {pieces} pieces, each within {size}.",)
    elif matrix and (through := decoder.patterns or constants):
        interaction = _interaction_of_patterns(encoding, through, by_patterns[: len(decoder.patterns)] or by_constant)
    if matrix and interaction is None:
        size = _format_bytes(matrix_bytes or 0)
        notes = (f"the matrix of query and document was left out, for it takes more than {size}.",)
    more = {"pixel_relevance": pixel_relevance, "ledger": ledger, "interaction": interaction, "notes": notes}
    return build_explanation(reranker, method, encoding, logit, tokens, True, **more)


def _format_bytes(count: int) -> str:
    """A number of bytes as it is read: 1 GiB, 200 MiB, 9.8 KiB."""
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 2 ** (10 * power):.4g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _interaction_of_patterns(encoding: Encoding, patterns: list[Tensor], gradients: list[Tensor]) -> Interaction:
    """Relevance that goes through the attention from each of the query's tokens to each of the document's, all layers and heads."""
    query_tokens, document_tokens = query.all(encoding), document.all(encoding)
    total = torch.zeros(len(query_tokens), len(document_tokens), dtype=torch.float64)
    for pattern, gradient in zip(patterns, gradients, strict=True):
        if pattern.shape[-2] == len(encoding):
            product = (pattern.detach().double() * gradient.double())[0].sum(0).cpu()
            total += product[query_tokens][:, document_tokens]
    return Interaction(total, query_tokens, document_tokens)


def _bias_parameters(model: RerankerModel, pixels: bool) -> list[nn.Parameter]:
    parts: list[nn.Module] = [model.decoder, model.head, *([model.vision] if pixels else [])]
    return [parameter for part in parts for name, parameter in part.named_parameters() if name.endswith("bias")]


@contextlib.contextmanager
def _require_gradients(parameters: list[nn.Parameter]) -> Any:
    """Gradients by these parameters, whatever they are set to. Several explanations may ask for the same ones at a time; the last of
    them puts them back."""
    with _REQUIRES_GRAD_LOCK:
        for parameter in parameters:
            count, before = _REQUIRES_GRAD_USERS.get(parameter, (0, parameter.requires_grad))
            _REQUIRES_GRAD_USERS[parameter] = count + 1, before
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        with _REQUIRES_GRAD_LOCK:
            for parameter in parameters:
                count, before = _REQUIRES_GRAD_USERS.pop(parameter)
                if count > 1:
                    _REQUIRES_GRAD_USERS[parameter] = count - 1, before
                else:
                    parameter.requires_grad_(before)


_REQUIRES_GRAD_LOCK = threading.Lock()
_REQUIRES_GRAD_USERS: dict[nn.Parameter, tuple[int, bool]] = {}
"""Parameters by which gradients are asked for: by how many explanations at a time, and what they were set to before."""


# --- what the methods share -------------------------------------------------------------------------------------------


def _leaf_tensors(inputs: ModelInputs, pixels: bool) -> list[Tensor]:
    """Embeddings (1, tokens, hidden), and where asked patches (1, patches, 1176), to take gradients by."""
    return [tensor.detach().requires_grad_() for tensor in inputs.as_arguments(pixels)]


def _input_times_gradient(
    encoding: Encoding, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Input times gradient: of each token, and of each pixel where patches are given; a visual token then has what its pixels
    have together."""
    products = [(x.detach().double() * gradient.double())[0].cpu() for x, gradient in zip(inputs, gradients, strict=True)]
    tokens = products[0].sum(-1)
    if len(products) == 1:
        return tokens, None
    # (patches, channel, frame, row, column): a still picture is shown twice, so both frames count for its pixels.
    pixel_relevance, start, cells = [], 0, []
    for picture in encoding.pictures:
        settings = picture.settings
        size, merge = settings.patch_size, settings.merge_size
        rows, columns = picture.grid
        own = products[1][start : start + rows * columns]
        start += rows * columns
        blocks = own.view(rows // merge, columns // merge, merge, merge, -1, size, size).sum(4)
        pixel_relevance.append(blocks.permute(0, 2, 4, 1, 3, 5).reshape(rows * size, columns * size))
        cells.append(blocks.sum((2, 3, 4, 5)).flatten())
    tokens[image(encoding)] = torch.cat(cells)
    return tokens, tuple(pixel_relevance)
