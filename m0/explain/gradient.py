"""Explanations by gradients: gradient x input, integrated gradients, SmoothGrad, and relevance by AttnLRP.

Each can be asked for at the tokens, visual tokens included, or through the vision tower for every pixel.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m0.errors import InputError
from m0.explain.explanation import Explanation, Interaction
from m0.explain.flow import Inputs, Patterns, inputs_of, logits_of, relevance_of, watching
from m0.explain.rules import attn_lrp, frozen, half
from m0.images import Picture
from m0.interp.positions import document, query
from m0.interp.session import Scorer
from m0.model import RerankerModel
from m0.prompt import Encoding, whole_number

GREY = 127
"""Brightness of the picture that stands for no picture."""
NODES = (32, 64, 128, 256)
"""How many points integrated gradients tries, one after the other."""


def gradient_input(reranker: Scorer, encoding: Encoding, pixels: bool = False) -> Explanation:
    """Gradient x input (Shrikumar et al. 2017): the logit's derivative by each embedding (each pixel), times it. Signed; its sum is
    not the logit, since the model is not linear, and the ledger shows by how much."""
    start = inputs_of(reranker, encoding)
    text, patches = _leaves(start, pixels)
    with torch.enable_grad():
        logit = logits_of(reranker, encoding, text, patches)[0]
        gradients = torch.autograd.grad(logit, [text, *_some(patches)])
    tokens, fine = _relevance(encoding, text, patches, gradients)
    total = float(tokens.sum())
    ledger = {"inputs": total, "logit": float(logit.detach()), "gap": float(logit.detach()) - total}
    return _explanation(reranker, "gradient_input", encoding, logit, tokens, fine, ledger)


def smooth_grad(
    reranker: Scorer, encoding: Encoding, samples: int = 16, noise: float = 0.1, seed: int = 0, pixels: bool = False
) -> Explanation:
    """SmoothGrad (Smilkov et al. 2017) times input: the mean gradient over inputs with noise. Signed; no sum is promised.

    Args:
        samples: how many noisy versions.
        noise: its standard deviation, as a share of that of the input's own numbers.
        seed: of the noise.
    """
    whole_number(samples, "samples")
    if not isinstance(noise, int | float) or noise < 0:
        raise InputError(f"noise is {noise!r}, but must be a number of at least 0.")
    start = inputs_of(reranker, encoding)
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
        return x + noise * x.std() * drawn

    sums: list[Tensor] = []
    for _ in range(samples):
        version = Inputs(noisy(start.embeddings), None if start.patches is None or not pixels else noisy(start.patches))
        text, patches = _leaves(version, pixels)
        with torch.enable_grad():
            logit = logits_of(reranker, encoding, text, patches)[0]
            gradients = torch.autograd.grad(logit, [text, *_some(patches)])
        sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
    with torch.no_grad():
        text, patches = _leaves(start, pixels)
        logit = logits_of(reranker, encoding, text, patches)[0]
    tokens, fine = _relevance(encoding, text, patches, [total / samples for total in sums])
    return _explanation(reranker, "smooth_grad", encoding, logit, tokens, fine, {})


def integrated_gradients(
    reranker: Scorer,
    encoding: Encoding,
    nodes: int | None = None,
    gap: float = 0.05,
    pixels: bool = False,
    batch_tokens: int = 4096,
) -> Explanation:
    """Integrated gradients (Sundararajan et al. 2017) along a straight line from a prompt that says nothing, by Gauss-Legendre.

    The baseline has a line break's embedding for every token of query and document, and a grey picture in every picture's place;
    the template stays. Zeros would be a bad baseline: RMSNorm is ill-behaved there. Signed; the sum is the difference of the two
    logits but for `ledger["gap"]`.

    Args:
        nodes: points on the line; None: 32, 64, 128, 256 until the gap is small enough.
        gap: how much of the logits' difference may be missing. If it is still more, a note says so.
        batch_tokens: tokens that go through the model at a time.
    """
    start, baseline = inputs_of(reranker, encoding), baseline_of(reranker, encoding)
    if pixels and start.patches is None:
        pixels = False
    with torch.no_grad():
        ends = [
            logits_of(reranker, encoding, inputs.embeddings[None], _batched(inputs.patches, pixels))[0]
            for inputs in (baseline, start)
        ]
    difference = float(ends[1] - ends[0])
    tries = NODES if nodes is None else (whole_number(nodes, "nodes"),)
    for count in tries:
        means = _line(reranker, encoding, baseline, start, count, pixels, batch_tokens)
        text = (start.embeddings - baseline.embeddings)[None]
        patches = None
        if pixels:
            assert start.patches is not None
            assert baseline.patches is not None
            patches = (start.patches - baseline.patches)[None]
        tokens, fine = _relevance(encoding, text, patches, means)
        missing = difference - float(tokens.sum())
        if abs(missing) <= gap * abs(difference):
            break
    ledger = {
        "inputs": float(tokens.sum()),
        "baseline": float(ends[0]),
        "logit": float(ends[1]),
        "gap": missing,
        "nodes": float(count),
    }
    notes: tuple[str, ...] = ()
    if difference <= 0:
        notes = (
            *notes,
            f"the prompt that says nothing has the logit {float(ends[0]):.3g}, no less than this one's {float(ends[1]):.3g}.",
        )
    if abs(missing) > gap * abs(difference):
        notes = (
            *notes,
            f"{abs(missing):.3g} of the logits' difference {difference:.3g} is not accounted for at {count} nodes.",
        )
    return _explanation(reranker, "integrated_gradients", encoding, ends[1], tokens, fine, ledger, notes)


def _line(
    reranker: Scorer, encoding: Encoding, baseline: Inputs, start: Inputs, count: int, pixels: bool, batch_tokens: int
) -> list[Tensor]:
    """Mean gradients over the line, weighted as Gauss-Legendre does: of the embeddings, and of the patches where asked."""
    points, weights = np.polynomial.legendre.leggauss(count)
    alphas = torch.tensor((points + 1) / 2, device=start.embeddings.device)
    shares = torch.tensor(weights / 2, device=start.embeddings.device)
    at_once = max(1, batch_tokens // len(encoding))
    totals: list[Tensor] = []
    for first in range(0, count, at_once):
        some, weight = alphas[first : first + at_once], shares[first : first + at_once]

        def between(a: Tensor, b: Tensor, some: Tensor = some) -> Tensor:
            share = some.to(a.dtype)[:, None, None]
            return (a + share * (b - a)).requires_grad_()

        text = between(baseline.embeddings, start.embeddings)
        patches = None
        if pixels:
            assert start.patches is not None
            assert baseline.patches is not None
            patches = between(baseline.patches, start.patches)
        with torch.enable_grad():
            logits = logits_of(reranker, encoding, text, patches)
            gradients = torch.autograd.grad(logits.sum(), [text, *_some(patches)])
        parts = [(weight[:, None, None] * gradient.double()).sum(0, keepdim=True) for gradient in gradients]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    return totals


def baseline_of(reranker: Scorer, encoding: Encoding) -> Inputs:
    """A prompt of the same shape that says nothing: a line break for every token of a text, grey for pictures."""
    blank = [
        Picture(np.full_like(picture.pixels, GREY), picture.original_size, picture.settings) for picture in encoding.pictures
    ]
    ids = encoding.token_ids.clone()
    neutral = reranker.prompt.tokenizer.encode("\n", add_special_tokens=False).ids[0]
    ids[[origin.kind == "text" for origin in encoding.origins]] = neutral
    return inputs_of(reranker, Encoding(ids, encoding.origins, blank, encoding.runs))


def attnlrp(reranker: Scorer, encoding: Encoding, pixels: bool = False) -> Explanation:
    """AttnLRP (Achtibat et al. 2024): relevance carried back from the logit by the rules of `m0.explain.rules`. Signed.

    The ledger: inputs, biases and the softmax remainder add up to the logit.
    """
    with attn_lrp(reranker.model):
        return _ledgered(reranker, encoding, "attnlrp", pixels, keep_patterns=True)


def frozen_gradient(reranker: Scorer, encoding: Encoding, pixels: bool = False) -> Explanation:
    """Gradient x input with norm scales, attention patterns and gates held as they are: the rules for LayerNorm and attention heads
    of Ali et al. 2022, and the same for the gate. Signed.

    The model is then linear in its input, so the ledger closes: inputs and biases add up to the logit.
    """
    with frozen(reranker.model):
        return _ledgered(reranker, encoding, "frozen_gradient", pixels, keep_patterns=False)


def _ledgered(reranker: Scorer, encoding: Encoding, method: str, pixels: bool, keep_patterns: bool) -> Explanation:
    start = inputs_of(reranker, encoding)
    model, pixels = reranker.model, pixels and start.patches is not None
    text, patches = _leaves(start, pixels)
    biases = _biases(model, pixels)
    with contextlib.ExitStack() as opened:
        opened.enter_context(torch.enable_grad())
        opened.enter_context(_gradients_of(biases))
        kept, seen = Patterns(), Patterns()
        if keep_patterns:
            kept = opened.enter_context(watching(model, encoding, lambda _, x: half(x)))
            seen = opened.enter_context(watching(model, encoding, lambda _, x: half(x), "vision")) if pixels else seen
        logit = logits_of(reranker, encoding, text, patches)[0]
        scores, patterns = [*kept.scores, *seen.scores], [*kept.patterns, *seen.patterns]
        wanted = [text, *_some(patches), *biases, *scores, *patterns]
        gradients = torch.autograd.grad(logit, wanted, materialize_grads=True)
    inputs, rest = gradients[: 1 + len(_some(patches))], list(gradients[1 + len(_some(patches)) :])
    tokens, fine = _relevance(encoding, text, patches, inputs)
    by_bias, by_scores, by_patterns = (
        rest[: len(biases)],
        rest[len(biases) : len(biases) + len(scores)],
        rest[len(biases) + len(scores) :],
    )
    bias_sum = sum(
        float((bias.detach().double() * gradient.double()).sum()) for bias, gradient in zip(biases, by_bias, strict=True)
    )
    remainder = 0.0
    for score, pattern, of_score, of_pattern in zip(scores, patterns, by_scores, by_patterns, strict=True):
        remainder += float((pattern.detach().double() * of_pattern.double()).sum())
        allowed = score.detach().double().masked_fill(score.isneginf(), 0.0)  # where it is not, nothing flows
        remainder -= float((allowed * of_score.double()).sum())
    total = float(tokens.sum())
    ledger = {"inputs": total, "biases": bias_sum}
    if keep_patterns:
        ledger["softmax remainder"] = remainder
    ledger |= {"logit": float(logit.detach()), "gap": float(logit.detach()) - total - bias_sum - remainder}
    interaction = None
    if keep_patterns:
        of_patterns = by_patterns[: len(kept.patterns)]
        interaction = _edges(encoding, kept.patterns, of_patterns)
    return _explanation(reranker, method, encoding, logit, tokens, fine, ledger, interaction=interaction)


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
    """Gradients by these parameters, whatever they are set to."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, state in zip(parameters, before, strict=True):
            parameter.requires_grad_(state)


# --- what the methods share -------------------------------------------------------------------------------------------


def _leaves(inputs: Inputs, pixels: bool) -> tuple[Tensor, Tensor | None]:
    """Embeddings (1, tokens, hidden), and where asked patches (1, patches, 1176), to take gradients by."""
    patches = _batched(inputs.patches, pixels)
    return inputs.embeddings.detach()[None].requires_grad_(), None if patches is None else patches.detach().requires_grad_()


def _batched(patches: Tensor | None, pixels: bool) -> Tensor | None:
    return patches[None] if pixels and patches is not None else None


def _some(patches: Tensor | None) -> list[Tensor]:
    return [] if patches is None else [patches]


def _relevance(
    encoding: Encoding, text: Tensor, patches: Tensor | None, gradients: Any
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Input times gradient: of each token, and of each pixel where patches are given; a visual token then has what its pixels
    have together."""
    tokens = (text.detach().double() * gradients[0].double()).sum(-1)[0].cpu()
    if patches is None:
        return tokens, None
    # (patches, channel, frame, row, column): a still picture is shown twice, so both frames count for its pixels.
    products = (patches.detach().double() * gradients[1].double())[0].cpu()
    fine, start, cells = [], 0, []
    for picture in encoding.pictures:
        settings = picture.settings
        size, merge = settings.patch_size, settings.merge_size
        rows, columns = picture.grid
        own = products[start : start + rows * columns]
        start += rows * columns
        blocks = own.view(rows // merge, columns // merge, merge, merge, -1, size, size).sum(4)
        fine.append(blocks.permute(0, 2, 4, 1, 3, 5).reshape(rows * size, columns * size))
        cells.append(blocks.sum((2, 3, 4, 5)).flatten())
    shown = [i for i, origin in enumerate(encoding.origins) if origin.kind == "image"]
    tokens[shown] = torch.cat(cells)
    return tokens, tuple(fine)


def _explanation(
    reranker: Scorer,
    method: str,
    encoding: Encoding,
    logit: Tensor,
    tokens: Tensor,
    fine: tuple[Tensor, ...] | None,
    ledger: dict[str, float],
    notes: tuple[str, ...] = (),
    interaction: Interaction | None = None,
) -> Explanation:
    score = relevance_of(reranker, float(logit.detach()))
    return Explanation(method, encoding, float(logit.detach()), score, tokens, True, "logit", ledger, notes, interaction, fine)
