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
from m0.explain.edges import MATRIX_BYTES, AttentionEdges, interaction_of, keeping_edges
from m0.explain.explanation import Explanation, Interaction
from m0.explain.flow import Inputs, Patterns, explained, inputs_of, logits_of, pattern_bytes, watching
from m0.explain.rules import attn_lrp, frozen, half
from m0.inputs.prompt import Encoding, whole_number
from m0.interp.positions import document, image, query
from m0.interp.taps import Tap
from m0.model.reranker_model import RerankerModel

NEUTRAL = "."
"""The text whose first token stands for no word. Not a line break, which is also the template's: m0-nano takes a document of line
breaks for no document at all and scores it high."""
GREY = 127
"""Brightness of the picture that stands for no picture."""
NODES = (32, 64, 128, 256)
"""How many points integrated gradients tries, one after the other."""


def gradient_input(reranker: Scorer, encoding: Encoding, pixels: bool = False) -> Explanation:
    """Gradient x input (Shrikumar et al. 2017): the logit's derivative by each embedding (each pixel), times it. Signed; its sum is
    not the logit, since the model is not linear, and the ledger shows by how much."""
    start = inputs_of(reranker, encoding)
    leaves = _leaves(start, pixels)
    with torch.enable_grad():
        logit = logits_of(reranker, encoding, *leaves)[0]
        gradients = torch.autograd.grad(logit, leaves)
    tokens, fine = _relevance(encoding, leaves, gradients)
    total = float(tokens.sum())
    ledger = {"inputs": total, "logit": float(logit.detach()), "gap": float(logit.detach()) - total}
    return explained(reranker, "gradient_input", encoding, logit, tokens, True, fine=fine, ledger=ledger)


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
    start = inputs_of(reranker, encoding)
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
        return x + noise * x.std() * drawn

    sums: list[Tensor] = []
    for _ in range(samples):
        leaves = [noisy(side).requires_grad_() for side in start.sides(pixels)]
        with torch.enable_grad():
            gradients = torch.autograd.grad(logits_of(reranker, encoding, *leaves)[0], leaves)
        sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
    with torch.no_grad():
        logit = logits_of(reranker, encoding, *start.sides(pixels))[0]
    tokens, fine = _relevance(encoding, start.sides(pixels), [total / samples for total in sums])
    return explained(reranker, "smooth_grad", encoding, logit, tokens, True, fine=fine)


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
    baseline, start = baseline_of(reranker, encoding).sides(pixels), inputs_of(reranker, encoding).sides(pixels)
    with torch.no_grad():
        nothing, logit = (float(logits_of(reranker, encoding, *end)[0]) for end in (baseline, start))
    difference = logit - nothing
    tries = NODES if nodes is None else (whole_number(nodes, "nodes"),)
    for count in tries:
        means = _line(reranker, encoding, baseline, start, count, batch_tokens)
        tokens, fine = _relevance(encoding, [b - a for a, b in zip(baseline, start, strict=True)], means)
        missing = difference - float(tokens.sum())
        if abs(missing) <= gap * abs(difference):
            break
    ledger = {"inputs": float(tokens.sum()), "baseline": nothing, "logit": logit, "gap": missing, "nodes": float(count)}
    notes = []
    if difference <= 0:
        notes.append(f"the prompt that says nothing has the logit {nothing:.3g}, no less than this one's {logit:.3g}.")
    if abs(missing) > gap * abs(difference):
        notes.append(f"{abs(missing):.3g} of the logits' difference {difference:.3g} is not accounted for at {count} nodes.")
    return explained(
        reranker, "integrated_gradients", encoding, logit, tokens, True, fine=fine, ledger=ledger, notes=tuple(notes)
    )


def _line(
    reranker: Scorer, encoding: Encoding, baseline: list[Tensor], start: list[Tensor], count: int, batch_tokens: int
) -> list[Tensor]:
    """Mean gradients over the line, weighted as Gauss-Legendre does: of the embeddings, and of the patches where asked."""
    points, weights = np.polynomial.legendre.leggauss(count)
    at_once = max(1, batch_tokens // len(encoding))
    alphas, shares = (torch.tensor(x, device=start[0].device).split(at_once) for x in ((points + 1) / 2, weights / 2))
    totals: list[Tensor] = []
    for some, weight in zip(alphas, shares, strict=True):
        ends = zip(baseline, start, strict=True)
        between = [(a + some.to(a.dtype)[:, None, None] * (b - a)).requires_grad_() for a, b in ends]
        with torch.enable_grad():
            gradients = torch.autograd.grad(logits_of(reranker, encoding, *between).sum(), between)
        parts = [(weight[:, None, None] * gradient.double()).sum(0, keepdim=True) for gradient in gradients]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    return totals


def baseline_of(reranker: Scorer, encoding: Encoding) -> Inputs:
    """A prompt of the same shape that says nothing: a full stop for every token of a text, grey for pictures."""
    blank = [replace(picture, pixels=np.full_like(picture.pixels, GREY)) for picture in encoding.pictures]
    ids = encoding.token_ids.clone()
    neutral = reranker.prompt.tokenizer.encode(NEUTRAL, add_special_tokens=False).ids[0]
    ids[[origin.kind == "text" for origin in encoding.origins]] = neutral
    return inputs_of(reranker, replace(encoding, token_ids=ids, pictures=blank))


def attnlrp(reranker: Scorer, encoding: Encoding, pixels: bool = False, matrix: bool = True) -> Explanation:
    """AttnLRP (Achtibat et al. 2024): relevance carried back from the logit by the rules of `m0.explain.rules`. Signed.

    The ledger: inputs, biases and the softmax remainder add up to the logit. `matrix`: also give the interaction.
    """
    with attn_lrp(reranker.model):
        return _ledgered(reranker, encoding, "attnlrp", pixels, matrix, None)


def frozen_gradient(
    reranker: Scorer, encoding: Encoding, pixels: bool = False, matrix: bool = True, matrix_bytes: int = MATRIX_BYTES
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
    with frozen(reranker.model):
        return _ledgered(reranker, encoding, "frozen_gradient", pixels, matrix, matrix_bytes)


def _ledgered(
    reranker: Scorer, encoding: Encoding, method: str, pixels: bool, matrix: bool, matrix_bytes: int | None
) -> Explanation:
    """`matrix_bytes` None: the rule has a part of the derivative go through the patterns, which are kept; else they are constants."""
    start = inputs_of(reranker, encoding)
    model, pixels = reranker.model, pixels and start.patches is not None
    leaves, biases = _leaves(start, pixels), _biases(model, pixels)
    kept, seen, constant, edges = Patterns(), Patterns(), list[Tensor](), AttentionEdges()
    # Constant patterns are found again from what they were made of, unless an edit has changed them since.
    edited = any(session.watches_patterns for session in reranker.sessions if not session.records)
    with contextlib.ExitStack() as opened:
        opened.enter_context(torch.enable_grad())
        opened.enter_context(_gradients_of(biases))

        def hold(_: Tap, pattern: Tensor) -> Tensor:
            constant.append(pattern.detach().requires_grad_())
            return constant[-1]

        if matrix_bytes is None:
            kept = opened.enter_context(watching(model, encoding, lambda _, x: half(x)))
            seen = opened.enter_context(watching(model, encoding, lambda _, x: half(x), "vision")) if pixels else seen
        elif matrix and not edited:
            edges = opened.enter_context(keeping_edges(model))
        elif matrix and pattern_bytes(model, encoding) <= matrix_bytes:
            opened.enter_context(watching(model, encoding, hold))
        logit = logits_of(reranker, encoding, *leaves)[0]
        scores, patterns = [*kept.scores, *seen.scores], [*kept.patterns, *seen.patterns]
        wanted = [*leaves, *biases, *scores, *patterns, *constant, *edges.outputs]
        gradients = iter(torch.autograd.grad(logit, wanted, materialize_grads=True))
    inputs, by_bias, by_scores, by_patterns, by_constant, by_outputs = (
        [next(gradients) for _ in some] for some in (leaves, biases, scores, patterns, constant, edges.outputs)
    )
    tokens, fine = _relevance(encoding, leaves, inputs)
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
    if matrix and edges.outputs and matrix_bytes is not None:
        interaction, pieces = interaction_of(encoding, edges, by_outputs, matrix_bytes)
        if pieces > 1:
            size = _in_bytes(matrix_bytes)
            notes = (f"the matrix of query and document was computed in {pieces} pieces, each within {size}.",)
    elif matrix and (through := kept.patterns or constant):
        interaction = _edges(encoding, through, by_patterns[: len(kept.patterns)] or by_constant)
    if matrix and interaction is None:
        size = _in_bytes(matrix_bytes or 0)
        notes = (f"the matrix of query and document was left out, for it takes more than {size}.",)
    more = {"fine": fine, "ledger": ledger, "interaction": interaction, "notes": notes}
    return explained(reranker, method, encoding, logit, tokens, True, **more)


def _in_bytes(count: int) -> str:
    """A number of bytes as it is read: 1 GiB, 200 MiB, 9.8 KiB."""
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 2 ** (10 * power):.4g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _edges(encoding: Encoding, patterns: list[Tensor], gradients: list[Tensor]) -> Interaction:
    """Relevance that goes through the attention from each of the query's tokens to each of the document's, all layers and heads."""
    asked, shown = query.all(encoding), document.all(encoding)
    total = torch.zeros(len(asked), len(shown), dtype=torch.float64)
    for pattern, gradient in zip(patterns, gradients, strict=True):
        if pattern.shape[-2] == len(encoding):
            product = (pattern.detach().double() * gradient.double())[0].sum(0).cpu()
            total += product[asked][:, shown]
    return Interaction(total, asked, shown)


def _biases(model: RerankerModel, pixels: bool) -> list[nn.Parameter]:
    parts: list[nn.Module] = [model.decoder, model.head, *([model.vision] if pixels else [])]
    return [parameter for part in parts for name, parameter in part.named_parameters() if name.endswith("bias")]


@contextlib.contextmanager
def _gradients_of(parameters: list[nn.Parameter]) -> Any:
    """Gradients by these parameters, whatever they are set to. Several explanations may ask for the same ones at a time; the last of
    them puts them back."""
    with _ASKING:
        for parameter in parameters:
            count, before = _ASKED.get(parameter, (0, parameter.requires_grad))
            _ASKED[parameter] = count + 1, before
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        with _ASKING:
            for parameter in parameters:
                count, before = _ASKED.pop(parameter)
                if count > 1:
                    _ASKED[parameter] = count - 1, before
                else:
                    parameter.requires_grad_(before)


_ASKING = threading.Lock()
_ASKED: dict[nn.Parameter, tuple[int, bool]] = {}
"""Parameters by which gradients are asked for: by how many explanations at a time, and what they were set to before."""


# --- what the methods share -------------------------------------------------------------------------------------------


def _leaves(inputs: Inputs, pixels: bool) -> list[Tensor]:
    """Embeddings (1, tokens, hidden), and where asked patches (1, patches, 1176), to take gradients by."""
    return [side.detach().requires_grad_() for side in inputs.sides(pixels)]


def _relevance(
    encoding: Encoding, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Input times gradient: of each token, and of each pixel where patches are given; a visual token then has what its pixels
    have together."""
    products = [(x.detach().double() * gradient.double())[0].cpu() for x, gradient in zip(inputs, gradients, strict=True)]
    tokens = products[0].sum(-1)
    if len(products) == 1:
        return tokens, None
    # (patches, channel, frame, row, column): a still picture is shown twice, so both frames count for its pixels.
    fine, start, cells = [], 0, []
    for picture in encoding.pictures:
        settings = picture.settings
        size, merge = settings.patch_size, settings.merge_size
        rows, columns = picture.grid
        own = products[1][start : start + rows * columns]
        start += rows * columns
        blocks = own.view(rows // merge, columns // merge, merge, merge, -1, size, size).sum(4)
        fine.append(blocks.permute(0, 2, 4, 1, 3, 5).reshape(rows * size, columns * size))
        cells.append(blocks.sum((2, 3, 4, 5)).flatten())
    tokens[image(encoding)] = torch.cat(cells)
    return tokens, tuple(fine)
