"""Attention over packed sequences: all tokens end to end, no padding, and no token looks into another sequence.

`Packing` says where each sequence lies. A sequence may continue another one (its parent): a document is the parent of
every query that meets it, is computed once, and all its queries read the same keys and values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Block:
    """Sequences of one shape that one attention call handles together."""

    queries: Tensor | slice
    """Token numbers, (sequences, query tokens); a slice where the block is one stretch of consecutive tokens."""
    keys: Tensor | slice
    mask: Tensor | None
    """True where a query may look, (query tokens, key tokens); None: `causal` decides."""
    causal: bool


class Packing:
    """How sequences lie end to end, and which of them continue which.

    Args:
        lengths: tokens of each sequence, in order.
        causal: a token looks at itself and what stands before it (decoder), or at its whole sequence (vision tower).
        parents: for each sequence the number of an earlier one that it continues, or None. A parent has no parent.
        device: where the index tensors live.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        causal: bool,
        parents: Sequence[int | None] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.lengths = tuple(int(length) for length in lengths)
        self.causal = causal
        self.parents = tuple(parents) if parents is not None else (None,) * len(self.lengths)
        self.device = torch.device(device or "cpu")
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        self.starts, self.total = tuple(starts[:-1]), starts[-1]

    @cached_property
    def last(self) -> Tensor:
        """Number of the last token of each sequence, (sequences,)."""
        ends = [start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True)]
        return torch.tensor(ends, device=self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        """The attention calls that compute every token's output."""
        blocks = [
            Block(rows, rows, mask=None, causal=self.causal)
            for rows in self._equal_rows(i for i, parent in enumerate(self.parents) if parent is None)
        ]
        families: dict[int, list[int]] = defaultdict(list)
        for child, parent in enumerate(self.parents):
            if parent is not None:
                families[parent].append(child)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for parent, children in families.items():
            alike[(self.lengths[parent], *(self.lengths[child] for child in children))].append(parent)
        for shape, parents in alike.items():
            queries = torch.stack([torch.cat([self._range(child) for child in families[parent]]) for parent in parents])
            prefix = torch.stack([self._range(parent) for parent in parents])
            blocks.append(Block(queries, torch.cat([prefix, queries], dim=1), _family_mask(shape, self.device), False))
        return blocks

    @cached_property
    def last_blocks(self) -> list[Block]:
        """The attention calls that compute the last token's output of each sequence; `queries` number sequences."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, (length, parent) in enumerate(zip(self.lengths, self.parents, strict=True)):
            groups[(length,) if parent is None else (length, self.lengths[parent])].append(i)
        blocks = []
        for members in groups.values():
            keys = []
            for i in members:
                parent = self.parents[i]
                keys.append(self._range(i) if parent is None else torch.cat([self._range(parent), self._range(i)]))
            queries = torch.tensor(members, device=self.device)[:, None]
            blocks.append(Block(queries, torch.stack(keys), mask=None, causal=False))
        return blocks

    @cached_property
    def order(self) -> Tensor | None:
        """Where the blocks' outputs, laid end to end, find each token; None where they are in order already."""
        return _inverse(self.blocks, self.total, self.device)

    @cached_property
    def last_order(self) -> Tensor | None:
        return _inverse(self.last_blocks, len(self.lengths), self.device)

    def _range(self, i: int) -> Tensor:
        return torch.arange(self.starts[i], self.starts[i] + self.lengths[i], device=self.device)

    def _equal_rows(self, members) -> list[Tensor | slice]:  # type: ignore[no-untyped-def]
        by_length: dict[int, list[int]] = defaultdict(list)
        for i in members:
            by_length[self.lengths[i]].append(i)
        rows: list[Tensor | slice] = []
        for length, group in by_length.items():
            if len(group) == 1:
                rows.append(slice(self.starts[group[0]], self.starts[group[0]] + length))
            else:
                rows.append(torch.stack([self._range(i) for i in group]))
        return rows


def _family_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Children of one parent side by side: each sees the whole parent and, causally, itself. (queries, keys), bool."""
    prefix, *children = shape
    total = sum(children)
    owner = torch.repeat_interleave(torch.arange(len(children)), torch.tensor(children))
    own = (owner[:, None] == owner[None, :]) & torch.ones(total, total, dtype=torch.bool).tril()
    return torch.cat([torch.ones(total, prefix, dtype=torch.bool), own], dim=1).to(device)


def _inverse(blocks: list[Block], total: int, device: torch.device) -> Tensor | None:
    numbers = torch.arange(total, device=device)
    laid = torch.cat([numbers[block.queries].flatten() for block in blocks])
    return None if torch.equal(laid, numbers) else torch.argsort(laid)


def _take(x: Tensor, rows: Tensor | slice) -> Tensor:
    """(tokens, heads, head_dim) -> (sequences, heads, tokens, head_dim)."""
    taken = x[rows]
    return (taken[None] if isinstance(rows, slice) else taken).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, last_only: bool = False) -> Tensor:
    """softmax(query key^T / sqrt(head_dim)) value, inside each sequence only.

    Args:
        query: (tokens, heads, head_dim); with `last_only` (sequences, heads, head_dim), the last token of each sequence.
        key, value: (tokens, key/value heads, head_dim); each of these heads serves a group of query heads
            (Ainslie et al. 2023, GQA).
        packing: where the sequences lie.

    Returns: the shape of `query`.
    """
    grouped = query.shape[1] != key.shape[1]
    blocks, order = (packing.last_blocks, packing.last_order) if last_only else (packing.blocks, packing.order)
    outputs = []
    for block in blocks:
        output = scaled_dot_product_attention(
            _take(query, block.queries),
            _take(key, block.keys),
            _take(value, block.keys),
            attn_mask=block.mask,
            is_causal=block.causal,
            enable_gqa=grouped,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    result = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return result if order is None else result[order]
