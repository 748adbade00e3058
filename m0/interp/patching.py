"""Which activations carry the difference between two prompts: patching from a clean run into a corrupted one.

Activation patching (Vig et al. 2020; Meng et al. 2022), its linear approximation (Nanda 2023, attribution patching), and
patching of single paths between heads (Wang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from m0.engine.batch import tokens_at_a_time
from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.inputs.prompt import Encoding
from m0.interp.cache import Cache, Recording
from m0.interp.edits import Edit, Editing, replace
from m0.interp.grid import Axis, Grid, agreement
from m0.interp.positions import Selector, check_selector, everything, tokens
from m0.interp.session import forward, prompts
from m0.interp.taps import Tap, check_heads, find_taps
from m0.locks import uses_model
from m0.model.linear import is_quantized

Head = tuple[int, int]
"""Layer and head."""
Receiver = tuple[int, int, Literal["query", "key", "value"]]
"""Layer, head (of keys and values: key/value head), and which of its inputs."""


@uses_model
def activation_patching(
    reranker: Scorer,
    clean: Any,
    corrupted: Any,
    taps: str | Iterable[str] = "decoder.layers.*.residual.before",
    positions: Mapping[str, Selector] | None = None,
    by_head: bool | None = None,
    batch_tokens: int | None = None,
) -> Grid:
    """What share of the difference between clean and corrupted logit comes back when one activation of the corrupted run is
    replaced by the clean run's (Vig et al. 2020, Meng et al. 2022).

    Args:
        clean, corrupted: pairs (query, document), or prompts, of equally many tokens.
        taps: shell patterns; one row each. Of the decoder.
        positions: groups of tokens by name, one column each, looked up in the clean prompt; None: every token by itself, or all
            together where heads are told apart.
        by_head: tell heads apart (rows are then layer and head); None: where the taps have heads.
        batch_tokens: tokens that go through the model at a time; None: what suits the device.

    Returns: (logit - corrupted) / (clean - corrupted), 0 where nothing comes back and 1 where all does. Raises InputError where
    the two prompts have different lengths or equal logits.
    """
    experiment = _PatchingExperiment(reranker, clean, corrupted, taps, positions, by_head)
    variants = []
    for tap, heads in experiment.rows:
        value = experiment.cache[tap.name].tensor
        for where in experiment.groups.values():
            put = _replace_with_rows(value, tap, where(experiment.clean), heads)
            variants.append([(tap, Edit(put, at=where, heads=heads))])
    logits = run_variants(reranker, experiment.corrupted, variants, batch_tokens)
    return experiment.grid("activation patching", logits - experiment.corrupted_logit)


@uses_model
@torch.inference_mode(False)
def attribution_patching(
    reranker: Scorer,
    clean: Any,
    corrupted: Any,
    taps: str | Iterable[str] = "decoder.layers.*.residual.before",
    positions: Mapping[str, Selector] | None = None,
    by_head: bool | None = None,
    exact: Grid | None = None,
) -> Grid:
    """The first-order approximation of `activation_patching` from one gradient: (clean - corrupted) times the corrupted run's
    gradient, summed (Nanda 2023). Two forward passes and one backward pass in all.

    Args:
        exact: what `activation_patching` found for the same; how well the two agree then stands in the result's notes.

    Other arguments and result as there. Raises InputError as that does, where `exact` has other axes, and for a quantized model,
    which has no gradient.
    """
    if is_quantized(reranker.model):
        raise InputError("attribution patching needs gradients, which a quantized model has not; activation patching does not.")
    experiment = _PatchingExperiment(reranker, clean, corrupted, taps, positions, by_head)
    (start,) = find_taps(reranker.model.config, "decoder.embeddings")
    leaf = {start: [Edit(lambda x: x.detach().requires_grad_())]}  # a gradient whatever the parameters are set to
    taps_read = list(dict.fromkeys(tap for tap, _ in experiment.rows))
    recording = Recording(reranker, taps_read, every_token=True)
    with torch.enable_grad(), Editing(reranker, leaf, every_token=True), recording as cache:
        logit = forward(reranker, [experiment.corrupted], record=recording)[0]
        values = {name: cache[name].tensor for name in cache.names}
    gradients = dict(zip(values, torch.autograd.grad(logit, list(values.values()), materialize_grads=True), strict=True))
    results = []
    for tap, heads in experiment.rows:
        difference = experiment.cache[tap.name].tensor.double() - values[tap.name].detach().double()
        if tap.how == "scores":  # what causality forbids is minus infinity in both runs
            difference = difference.masked_fill(values[tap.name].isneginf(), 0.0)
        products = difference * gradients[tap.name].double()
        if heads is not None:
            products = products[heads] if tap.is_pattern else products[:, heads]
        for where in experiment.groups.values():
            rows = where(experiment.clean)
            results.append((products[..., rows, :] if tap.is_pattern else products[rows]).sum())
    grid = experiment.grid("attribution patching", torch.stack(results).cpu())
    return grid if exact is None else Grid(grid.title, grid.axes, grid.values, grid.notes | vars(agreement(grid, exact)))


@uses_model
def path_patching(
    reranker: Scorer,
    clean: Any,
    corrupted: Any,
    receivers: Sequence[Receiver] | None = None,
    senders: Sequence[Head] | None = None,
) -> Grid:
    """What a head of the corrupted run would change by its clean output, along the direct paths to some receivers alone (Wang et al. 2023).

    All other heads keep what they had in the corrupted run, so that the sender's change reaches the receivers through the
    residual stream and MLPs only. What the receivers take in is then put into a corrupted run that is otherwise free.

    Args:
        clean, corrupted: pairs (query, document), or prompts, of equally many tokens.
        receivers: inputs of later heads; None: the logit itself.
        senders: heads to try; None: all.

    Returns: the recovered share of the logit, as for `activation_patching`, by sender, one row "layer.head" each. A sender that stands
    behind every receiver recovers 0. Raises InputError where senders or receivers are not there, or the prompts do not match.
    """
    decoder = reranker.model.config.decoder
    experiment = _PatchingExperiment(reranker, clean, corrupted, "decoder.layers.*.attention.z", {"all": everything}, True)
    layers = range(decoder.num_layers)
    chosen = [(layer, head) for layer in layers for head in range(decoder.num_heads)] if senders is None else list(senders)
    if not chosen:
        raise InputError("the list of senders is empty.")
    z_taps = find_taps(reranker.model.config, "decoder.layers.*.attention.z")
    for layer, head in chosen:
        if not (0 <= layer < decoder.num_layers and 0 <= head < decoder.num_heads):
            raise InputError(f"the sender ({layer}, {head}) is not a head of the decoder.")
    inputs: dict[Tap, list[int]] = {}
    for receiver in receivers or ():
        if (
            not isinstance(receiver, tuple | list)
            or len(receiver) != 3
            or receiver[2] not in ("query", "key", "value")
            or not 0 <= receiver[0] < decoder.num_layers
        ):
            raise InputError(f"the receiver {receiver!r} is not (layer, head, 'query', 'key' or 'value') of the decoder.")
        layer, head, part = receiver
        (tap,) = find_taps(reranker.model.config, f"decoder.layers.{layer}.attention.{part}")
        check_heads(tap, [head])
        inputs.setdefault(tap, []).append(head)
    results = []
    seen: dict[bytes, Tensor] = {}
    corrupted_cache, _ = record_activations(reranker, [experiment.corrupted], z_taps)
    with torch.no_grad():
        for layer, head in chosen:
            edits = {tap: [Edit(replace(corrupted_cache[tap.name].tensor))] for tap in z_taps}
            clean_z = experiment.cache[z_taps[layer].name].tensor[:, [head]]
            edits[z_taps[layer]].append(Edit(replace(clean_z), at=everything, heads=[head]))
            recording = Recording(reranker, list(inputs), every_token=True)
            with Editing(reranker, edits, every_token=True), recording as receiver_cache:
                logit = forward(reranker, [experiment.corrupted], seen, recording)[0]
            if inputs:
                receiver_edits = {
                    tap: [Edit(replace(receiver_cache[tap.name].tensor[:, heads]), at=everything, heads=heads)]
                    for tap, heads in inputs.items()
                }
                with Editing(reranker, receiver_edits, every_token=True):
                    logit = forward(reranker, [experiment.corrupted], seen, record=False)[0]
            results.append(logit.double().cpu() - experiment.corrupted_logit)
    labels = [f"{layer}.{head}" for layer, head in chosen]
    values = torch.stack(results) / (experiment.clean_logit - experiment.corrupted_logit)
    return Grid("path patching", (Axis("sender", labels),), values, experiment.notes)


@uses_model
def run_variants(
    reranker: Scorer, encoding: Encoding, variants: Sequence[Sequence[tuple[Tap, Edit]]], batch_tokens: int | None = None
) -> Tensor:
    """Logits of one prompt under different edits of the decoder, (variants,), float64: many at a time, each a sequence of its own.
    Its pictures are looked at once."""
    variants_at_a_time = max(1, tokens_at_a_time(batch_tokens, reranker.model.device) // len(encoding))
    results = []
    seen: dict[bytes, Tensor] = {}
    for start in range(0, len(variants), variants_at_a_time):
        chunk = variants[start : start + variants_at_a_time]
        edits: dict[Tap, list[Edit]] = {}
        for pair, variant in enumerate(chunk):
            for tap, edit in variant:
                edits.setdefault(tap, []).append(Edit(edit.function, edit.at, edit.to, edit.heads, pair))
        with torch.no_grad(), Editing(reranker, edits, every_token=True):
            results.append(forward(reranker, [encoding] * len(chunk), seen, record=False).double().cpu())
    return torch.cat(results)


@uses_model
def record_activations(reranker: Scorer, encodings: Sequence[Encoding], taps: Sequence[Tap]) -> tuple[Cache, Tensor]:
    """Activations at every token, without gradients, and logits, (prompts,)."""
    recording = Recording(reranker, taps, every_token=True)
    with torch.no_grad(), recording as cache:
        logits = forward(reranker, encodings, record=recording)
    return cache, logits


def _replace_with_rows(value: Tensor, tap: Tap, rows: list[int], heads: Sequence[int] | None) -> Any:
    if tap.is_pattern:
        value = value if heads is None else value[list(heads)]
        return replace(value[..., rows, :])
    return replace(value[rows] if heads is None else value[rows][:, list(heads)])


class _PatchingExperiment:
    """Two prompts that differ, the activations of the clean one, and the axes of the grid."""

    def __init__(
        self,
        reranker: Scorer,
        clean: Any,
        corrupted: Any,
        taps: str | Iterable[str],
        positions: Mapping[str, Selector] | None,
        by_head: bool | None,
    ) -> None:
        self.clean, self.corrupted = prompts(reranker, [clean, corrupted])
        if len(self.clean) != len(self.corrupted):
            raise InputError(
                f"the clean prompt has {len(self.clean)} tokens and the corrupted one {len(self.corrupted)}, but activations are "
                "exchanged token by token; choose words of as many tokens."
            )
        matching_taps = find_taps(reranker.model.config, taps)
        if any(tap.rows != "tokens" for tap in matching_taps):
            raise InputError("patching is of the decoder's activations; a picture's visual tokens are in decoder.embeddings.")
        heads = all(tap.heads for tap in matching_taps) if by_head is None else by_head
        if heads and not all(tap.heads for tap in matching_taps):
            raise InputError("by_head is asked for, but some of the taps have no heads.")
        self.rows: list[tuple[Tap, list[int] | None]] = [
            (tap, numbers) for tap in matching_taps for numbers in ([[head] for head in range(tap.heads)] if heads else [None])
        ]
        groups = self._default_groups(heads) if positions is None else positions
        if not isinstance(groups, Mapping) or not groups:
            raise InputError("positions must be a mapping of names to selectors, and not an empty one.")
        for name, where in groups.items():
            check_selector(where, f"position {name!r}")
        # Words may be found in the clean prompt alone: what counts is where they stand there.
        self.groups = {name: tokens(*where.found(self.clean)) for name, where in groups.items()}
        self.cache, logits = record_activations(reranker, [self.clean], matching_taps)
        self.clean_logit = float(logits[0])
        # Computed as the variants are, with all tokens of the last layer.
        self.corrupted_logit = float(run_variants(reranker, self.corrupted, [[]])[0])
        if self.clean_logit == self.corrupted_logit:
            raise InputError("the clean and the corrupted prompt have the same logit, so there is nothing to recover.")
        self.notes = {"clean": self.clean_logit, "corrupted": self.corrupted_logit}

    def _default_groups(self, heads: bool) -> dict[str, Selector]:
        if heads:
            return {"all": everything}
        return {token_label(self.clean, i): tokens(i) for i in range(len(self.clean))}

    def grid(self, title: str, differences: Tensor) -> Grid:
        names = [tap.name.removeprefix("decoder.") + ("" if heads is None else f" head {heads[0]}") for tap, heads in self.rows]
        values = differences.double().view(len(self.rows), len(self.groups)) / (self.clean_logit - self.corrupted_logit)
        return Grid(title, (Axis("activation", names), Axis("tokens", list(self.groups))), values, self.notes)


def token_label(encoding: Encoding, number: int) -> str:
    """A token's number and what it shows: its text, its cell, or "template"."""
    origin = encoding.origins[number]
    if number == len(encoding) - 1:
        return f"{number} score"
    if origin.kind == "image":
        return f"{number} ({origin.row}, {origin.column})"
    if origin.kind == "template":
        return f"{number} template"
    assert origin.part is not None
    part = encoding.parts[origin.side][origin.part]  # type: ignore[index]
    assert isinstance(part, str)
    return f"{number} {part[origin.start : origin.end].strip() or '_'}"
