"""The score read early, and the score split exactly over what wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m0.engine.watching import Scorer, silence
from m0.interp.cache import Recording
from m0.interp.grid import Axis, Grid
from m0.interp.patching import record_activations, token_label
from m0.interp.positions import Selector, check_selector, score_token
from m0.interp.session import forward, prompts
from m0.interp.taps import effective_weight_and_bias, find_taps
from m0.locks import uses_model
from m0.model.rotary import working_dtype


@uses_model
def score_lens(reranker: Scorer, pair: Any, where: Selector = score_token) -> Grid:
    """The ranking head read at every layer's residual stream, as if the layers behind it did nothing (nostalgebraist 2020, the
    logit lens).

    Args:
        pair: (query, document), or a prompt.
        where: tokens whose stream is read; the head was trained on the score token's.

    Returns: logits by layer (what goes into each, then the last one's output) and token.
    """
    (encoding,) = prompts(reranker, [pair])
    check_selector(where, "where")
    labels = [token_label(encoding, number) for number in where.found(encoding)]
    model = reranker.model
    last = model.config.decoder.num_layers - 1
    names = ["decoder.layers.*.residual.before", f"decoder.layers.{last}.residual.after"]
    cache, (logit,) = record_activations(reranker, [encoding], find_taps(model.config, names))
    with torch.no_grad(), silence(reranker.sessions):
        read = [model.head(model.decoder.norm(cache[name].at(where))).double().cpu() for name in cache.names]
    layers = [*(f"before {i}" for i in range(last + 1)), "end"]
    return Grid("score lens", (Axis("layer", layers), Axis("token", labels)), torch.stack(read), {"logit": float(logit)})


@dataclass(frozen=True)
class DirectAttribution:
    """The logit as a sum: with the final norm's scale and the head's ReLU pattern held fixed, the logit is linear in what the
    embedding, every head and every MLP wrote to the score token's stream (Elhage et al. 2021)."""

    logit: float
    embedding: float
    heads: Tensor
    """(layers, heads), float64"""
    mlps: Tensor
    """(layers,), float64"""
    bias: float
    """Of the head's two linear layers."""

    @property
    def total(self) -> float:
        """The sum of all terms, which is the logit but for rounding."""
        return self.embedding + float(self.heads.sum()) + float(self.mlps.sum()) + self.bias

    @property
    def magnitude(self) -> float:
        """Sum of the absolute terms: what rounding errors are measured by."""
        return abs(self.embedding) + float(self.heads.abs().sum()) + float(self.mlps.abs().sum()) + abs(self.bias)

    @property
    def grid(self) -> Grid:
        """The terms as a table: a row for each layer, a column for each head and one for the MLP."""
        columns = [*(f"head {i}" for i in range(self.heads.shape[1])), "mlp"]
        values = torch.cat([self.heads, self.mlps[:, None]], dim=1)
        notes = {"logit": self.logit, "embedding": self.embedding, "bias": self.bias, "gap": self.logit - self.total}
        axes = (Axis("layer", [str(i) for i in range(len(self.mlps))]), Axis("part", columns))
        return Grid("direct logit attribution", axes, values, notes)

    def plot(self, path: Any = None) -> Any:
        """As `Grid.plot`."""
        return self.grid.plot(path)

    def __str__(self) -> str:
        return str(self.grid)


@uses_model
def direct_logit_attribution(reranker: Scorer, pair: Any) -> DirectAttribution:
    """Split a pair's logit over everything that writes to the score token's residual stream. `pair`: (query, document), or a
    prompt."""
    (encoding,) = prompts(reranker, [pair])
    model = reranker.model
    end = f"decoder.layers.{model.config.decoder.num_layers - 1}.residual.after"
    names = ["decoder.embeddings", "decoder.layers.*.attention.result", "decoder.layers.*.mlp.out", end, "head.pre"]
    with torch.no_grad():
        recording = Recording(reranker, find_taps(model.config, names), at=score_token)
        with recording as cache:
            logit = forward(reranker, [encoding], record=recording)[0]
        (first, first_bias), (last, last_bias) = (
            [part.double() for part in effective_weight_and_bias(model.head[i])] for i in (0, 2)
        )
        stream = cache[end].tensor[0]
        wide = stream.to(working_dtype(stream.dtype))
        norm = model.decoder.norm
        scale = torch.rsqrt(wide.pow(2).mean() + norm.eps).double() * norm.weight.double()  # (hidden,)
        active_units = (cache["head.pre"].tensor[0] > 0).double() * last[:, 0]
        direction = (first @ active_units) * scale  # what a number in the stream adds to the logit
        bias = float(active_units @ first_bias + last_bias[0])
        embedding = float(cache["decoder.embeddings"].tensor[0].double() @ direction)
        heads, mlps = [], []
        for name in cache.names:
            if name.endswith("attention.result"):
                heads.append(cache[name].tensor[0].double() @ direction)
            elif name.endswith("mlp.out"):
                mlps.append(cache[name].tensor[0].double() @ direction)
    return DirectAttribution(float(logit), embedding, torch.stack(heads).cpu(), torch.stack(mlps).cpu(), bias)
