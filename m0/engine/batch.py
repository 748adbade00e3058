"""Prompts -> one packed batch, in which a document that several queries share is computed once.

The prompt puts the document first and attention is causal, so all that precedes the query is the same for every query.
Prompts that begin with the same tokens and pictures get a common parent (`m0.model.attention.Packing`), which is computed with them
or has been computed before (`CachedPrefix`). Matching is by token, so a merge of characters across the border between
document and query can never give a wrong score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from m0.inputs.images import Picture
from m0.inputs.prompt import Encoding, whole_number
from m0.model.attention import Packing, group_equal, to_device
from m0.model.decoder import KeysValues
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import Grid

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384
"""Tokens that go through the model at a time unless told otherwise: what a CPU's cache holds, and what fills a GPU."""
MIN_SHARED_TOKENS = 8
"""Sharing less than this does not pay for the bookkeeping."""
Precision = Literal["same", "bfloat16", "int8"]
"""How cached keys and values are stored: in the model's type, rounded to bfloat16, or as whole numbers from -127 to 127 times a
scale for each token and head."""


def tokens_at_a_time(batch_tokens: int | None, device: torch.device) -> int:
    """How many tokens go through the model at a time: as told, or what suits the device. Raises InputError for less than 1."""
    if batch_tokens is not None:
        return whole_number(batch_tokens, "batch_tokens")
    return CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS


class TokenSequence(Protocol):
    """A prompt or a prefix of one: its tokens, and which pictures they show. Two of them are compared by these alone."""

    @property
    def token_ids(self) -> Tensor: ...
    @property
    def runs(self) -> Sequence[int | Grid]: ...
    @property
    def digests(self) -> Sequence[bytes]: ...


@dataclass(frozen=True)
class CachedPrefix:
    """Every layer's keys and values of a document: the prefix of a prompt, up to the query, computed once and cached.

    It is good for one model with its weights as they were.
    """

    token_ids: Tensor
    """(tokens,), int64"""
    runs: tuple[int | Grid, ...]
    """Text tokens and picture grids in order."""
    digests: tuple[bytes, ...]
    """Hashes of its pictures."""
    keys_values: Tensor
    """(layers, 2, tokens, key/value heads, head_dim)"""
    scales: Tensor | None = None
    """Of int8, (layers, 2, tokens, key/value heads, 1), float32."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def bytes(self) -> int:
        parts = (self.token_ids, self.keys_values, self.scales)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def stored_as(self, precision: Precision) -> CachedPrefix:
        """The same, rounded. int8 needs half of bfloat16's memory and a little more for its scales."""
        if precision == "bfloat16":
            return replace(self, keys_values=self.keys_values.bfloat16())
        if precision == "int8":
            wide = self.keys_values.float()
            scales = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            return replace(self, keys_values=(wide / scales).round().to(torch.int8), scales=scales)
        return self

    def layer(self, number: int, tokens: int, like: Tensor) -> KeysValues:
        """Keys and values of the first `tokens` tokens in one layer, in the type and on the device of `like`."""
        both = self.keys_values[number, :, :tokens].to(like.device)
        if self.scales is not None:
            both = both.float() * self.scales[number, :, :tokens].to(like.device)
        key, value = both.to(like.dtype)
        return key, value


class CachedLayers(Sequence[KeysValues]):
    """For each layer, the keys and values of several cached prefixes end to end, concatenated when the layer is read."""

    def __init__(self, prefixes: Sequence[CachedPrefix], lengths: Sequence[int], like: Tensor) -> None:
        self.prefixes, self.lengths, self.like = prefixes, lengths, like

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        parts = [prefix.layer(number, length, self.like) for prefix, length in zip(self.prefixes, self.lengths, strict=True)]
        return torch.cat([key for key, _ in parts]), torch.cat([value for _, value in parts])

    def __len__(self) -> int:
        return len(self.prefixes[0].keys_values)


@dataclass(frozen=True)
class Batch:
    """Packed prompts, ready for a model."""

    token_ids: Tensor
    """(tokens,), int64"""
    positions: Tensor
    """M-RoPE positions, (3, tokens), int64"""
    packing: Packing
    final_sequences: Tensor
    """For each prompt, in the order given, the index of the packed sequence that holds its score token, (prompts,)."""
    pictures: list[Picture]
    """In the order of their tokens."""
    cached_prefixes: tuple[CachedPrefix, ...] = ()
    """Of the documents that prompts continue; `packing` has them first."""

    @classmethod
    def of(
        cls,
        encodings: Sequence[Encoding],
        share: bool = True,
        device: torch.device | str | None = None,
        cached_prefixes: Mapping[tuple[bytes, ...], CachedPrefix] | None = None,
    ) -> Batch:
        """Pack prompts.

        Args:
            share: compute what prompts of one document have in common once.
            device: where the tensors go.
            cached_prefixes: by `Encoding.document_key`; those of other documents are ignored.
        """
        members_by_document = group_equal(
            encoding.document_key if share else number for number, encoding in enumerate(encodings)
        )
        groups: list[tuple[list[int], int, CachedPrefix | None]] = []
        for members in members_by_document.values():
            group_encodings = [encodings[i] for i in members]
            prefix = cached_prefixes.get(group_encodings[0].document_key) if cached_prefixes else None
            if prefix is not None and (shared_tokens := _common_tokens([prefix, *group_encodings])):
                groups.append((members, shared_tokens, prefix))
            else:
                groups.append((members, _common_tokens(group_encodings), None))
        cached = [(prefix, shared_tokens) for _, shared_tokens, prefix in groups if prefix is not None]
        token_ids, positions = [], []
        lengths = [shared_tokens for _, shared_tokens in cached]
        parents: list[int | None] = [None] * len(cached)
        pictures: list[Picture] = []
        final_sequences = [0] * len(encodings)
        cached_numbers = iter(range(len(cached)))
        for members, shared_tokens, prefix in groups:
            first = encodings[members[0]]
            parent = next(cached_numbers) if prefix is not None else None
            if shared_tokens and prefix is None:
                parent = len(lengths)
                token_ids.append(first.token_ids[:shared_tokens])
                positions.append(first.positions[:, :shared_tokens])
                lengths.append(shared_tokens)
                parents.append(None)
                pictures += first.pictures[: _count_pictures(first, shared_tokens)]
            for i in members:
                encoding = encodings[i]
                final_sequences[i] = len(lengths) - len(cached)
                token_ids.append(encoding.token_ids[shared_tokens:])
                positions.append(encoding.positions[:, shared_tokens:])
                lengths.append(len(encoding) - shared_tokens)
                parents.append(parent)
                pictures += encoding.pictures[_count_pictures(encoding, shared_tokens) :]
        return cls(
            to_device(torch.cat(token_ids), device),
            to_device(torch.cat(positions, dim=1), device),
            Packing(lengths, causal=True, parents=parents, device=device, kept=len(cached)),
            to_device(torch.tensor(final_sequences), device),
            pictures,
            tuple(prefix for prefix, _ in cached),
        )

    def compute_visual_features(self, model: RerankerModel) -> Tensor | None:
        """Visual tokens of `pictures`, end to end, each different one computed once; None: there are none.

        For training and calibration: gradients flow, nothing is cached and no session is told. Scoring goes through
        `m0.engine.visual_features.VisualFeatures`.
        """
        if not self.pictures:
            return None
        unique_pictures = {id(picture): picture for picture in self.pictures}
        patches = torch.cat([picture.patches_on(model.device) for picture in unique_pictures.values()])
        features = model.vision(patches, [picture.grid for picture in unique_pictures.values()])
        parts = dict(
            zip(unique_pictures, features.split([picture.num_tokens for picture in unique_pictures.values()]), strict=True)
        )
        return torch.cat([parts[id(picture)] for picture in self.pictures])

    def score(
        self, model: RerankerModel, image_features: Tensor | None, depth: int | None = None, every_token: bool = False
    ) -> Tensor:
        """Logits of the prompts, (prompts,).

        Args:
            image_features: visual tokens of `pictures`, end to end.
            depth: read them after so many layers; None: after all.
            every_token: compute all tokens of the last layer, not only the score tokens' rows, for those who look at them.
        """
        embeddings = model.embed(self.token_ids, image_features)
        cached_layers = None
        if self.cached_prefixes:
            cached_layers = CachedLayers(self.cached_prefixes, self.packing.lengths[: len(self.cached_prefixes)], embeddings)
        hidden_states = model.decoder(embeddings, self.positions, self.packing, not every_token, cached_layers, depth)
        return model.head((hidden_states[self.packing.last] if every_token else hidden_states)[self.final_sequences])


def compute_prefixes(model: RerankerModel, encodings: Sequence[Encoding], image_features: Tensor | None) -> list[CachedPrefix]:
    """What precedes the query of each prompt, computed together. `image_features`: visual tokens of the documents' pictures."""
    lengths = [encoding.document_tokens for encoding in encodings]
    ids = torch.cat([encoding.token_ids[:length] for encoding, length in zip(encodings, lengths, strict=True)])
    positions = torch.cat([encoding.positions[:, :length] for encoding, length in zip(encodings, lengths, strict=True)], dim=1)
    embeddings = model.embed(to_device(ids, model.device), image_features)
    packing = Packing(lengths, causal=True, device=model.device)
    layers = model.decoder.keys_values(embeddings, to_device(positions, model.device), packing)
    prefixes, start = [], 0
    for encoding, length in zip(encodings, lengths, strict=True):
        keys_values = torch.stack([torch.stack([part[start : start + length] for part in layer]) for layer in layers])
        runs = tuple(_runs_of_first_tokens(encoding.runs, length))
        digests = tuple(encoding.digests[: encoding.document_pictures])
        prefixes.append(CachedPrefix(encoding.token_ids[:length].clone(), runs, digests, keys_values))
        start += length
    return prefixes


def _common_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Tokens that all prompts begin with; 0 where sharing is impossible or does not pay."""
    if len(sequences) < 2:
        return 0
    first = sequences[0]
    # Each prompt needs a token of its own; a cached prefix does not.
    shared = min(len(sequence.token_ids) - isinstance(sequence, Encoding) for sequence in sequences)
    for other in sequences[1:]:
        different = (first.token_ids[:shared] != other.token_ids[:shared]).nonzero()
        shared = int(different[0]) if len(different) else shared
    # A picture is shared whole, and only if it is the same in all.
    start = 0
    pictures = iter(range(len(first.digests)))
    for run in first.runs:
        length = run if isinstance(run, int) else run[0] * run[1]
        if not isinstance(run, int):
            number = next(pictures)
            is_same_everywhere = all(_is_same_picture(first, other, number) for other in sequences[1:])
            if start + length > shared or not is_same_everywhere:
                shared = min(shared, start)
                break
        start += length
        if start >= shared:
            break
    return shared if shared >= MIN_SHARED_TOKENS else 0


def _is_same_picture(sequence: TokenSequence, other: TokenSequence, number: int) -> bool:
    return number < len(other.digests) and sequence.digests[number] == other.digests[number]


def _count_pictures(encoding: Encoding, tokens: int) -> int:
    """How many pictures the first `tokens` tokens hold; a picture is never split."""
    return sum(not isinstance(run, int) for run in _runs_of_first_tokens(encoding.runs, tokens))


def _runs_of_first_tokens(runs: Sequence[int | Grid], tokens: int) -> list[int | Grid]:
    """The runs of the first tokens; a run of text may be split, a picture is not."""
    first_runs: list[int | Grid] = []
    for run in runs:
        if tokens <= 0:
            break
        length = run if isinstance(run, int) else run[0] * run[1]
        first_runs.append(min(length, tokens) if isinstance(run, int) else run)
        tokens -= length
    return first_runs
