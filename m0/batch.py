"""Prompts -> one packed batch, in which a document that several queries meet is computed once.

The prompt puts the document first and attention is causal, so all that precedes the query is the same for every query.
Prompts that begin with the same tokens and pictures get a common parent (`m0.attention.Packing`); matching is by token, so
a merge of characters across the border between document and query can never give a wrong score.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m0.attention import Packing
from m0.images import Picture
from m0.model import RerankerModel
from m0.prompt import Encoding

MIN_SHARED_TOKENS = 8
"""Sharing less than this does not pay for the bookkeeping."""


@dataclass(frozen=True)
class Batch:
    """Packed prompts, ready for a model."""

    token_ids: Tensor
    """(tokens,), int64"""
    positions: Tensor
    """M-RoPE positions, (3, tokens), int64"""
    packing: Packing
    pairs: Tensor
    """Number of the sequence that ends each prompt, in the order given, (prompts,)."""
    pictures: list[Picture]
    """In the order of their tokens."""

    @classmethod
    def of(cls, encodings: Sequence[Encoding], share: bool = True, device: torch.device | str | None = None) -> Batch:
        """Pack prompts. `share`: compute what prompts of one document have in common once. `device`: where the tensors go."""
        groups: dict[Hashable, list[int]] = {}
        for number, encoding in enumerate(encodings):
            groups.setdefault(encoding.document_key if share else number, []).append(number)
        ids, positions = [], []
        lengths: list[int] = []
        parents: list[int | None] = []
        pictures: list[Picture] = []
        pairs = [0] * len(encodings)
        for members in groups.values():
            first = encodings[members[0]]
            shared = _common_tokens([encodings[i] for i in members])
            parent = None
            if shared:
                parent = len(lengths)
                ids.append(first.token_ids[:shared])
                positions.append(first.positions[:, :shared])
                lengths.append(shared)
                parents.append(None)
                pictures += first.pictures[: _pictures_within(first, shared)]
            for i in members:
                encoding = encodings[i]
                pairs[i] = len(lengths)
                ids.append(encoding.token_ids[shared:])
                positions.append(encoding.positions[:, shared:])
                lengths.append(len(encoding) - shared)
                parents.append(parent)
                pictures += encoding.pictures[_pictures_within(encoding, shared) :]
        return cls(
            torch.cat(ids).to(device),
            torch.cat(positions, dim=1).to(device),
            Packing(lengths, causal=True, parents=parents, device=device),
            torch.tensor(pairs, device=device),
            pictures,
        )

    def score(self, model: RerankerModel, image_features: Tensor | None) -> Tensor:
        """Logits of the prompts, (prompts,). `image_features`: visual tokens of `pictures`, end to end."""
        embeddings = model.embed(self.token_ids, image_features)
        return model.head(model.decoder(embeddings, self.positions, self.packing)[self.pairs])


def _common_tokens(encodings: Sequence[Encoding]) -> int:
    """Tokens that all prompts begin with; 0 where sharing is impossible or does not pay."""
    if len(encodings) < 2:
        return 0
    first = encodings[0]
    shared = min(len(encoding) for encoding in encodings) - 1  # each prompt keeps a token of its own
    for encoding in encodings[1:]:
        different = (first.token_ids[:shared] != encoding.token_ids[:shared]).nonzero()
        shared = int(different[0]) if len(different) else shared
    # A picture is shared whole, and only if it is the same in all.
    start = 0
    pictures = iter(range(len(first.pictures)))
    for run in first.runs:
        length = run if isinstance(run, int) else run[0] * run[1]
        if not isinstance(run, int):
            number = next(pictures)
            alike = all(_same(first, encoding, number) for encoding in encodings[1:])
            if start + length > shared or not alike:
                shared = min(shared, start)
                break
        start += length
        if start >= shared:
            break
    return shared if shared >= MIN_SHARED_TOKENS else 0


def _same(one: Encoding, other: Encoding, number: int) -> bool:
    if number >= len(other.pictures):
        return False
    a, b = one.pictures[number], other.pictures[number]
    return a is b or a.digest == b.digest


def _pictures_within(encoding: Encoding, tokens: int) -> int:
    """How many pictures the first `tokens` tokens hold; a picture is never split."""
    start = count = 0
    for run in encoding.runs:
        if start >= tokens:
            break
        if not isinstance(run, int):
            count += 1
        start += run if isinstance(run, int) else run[0] * run[1]
    return count
