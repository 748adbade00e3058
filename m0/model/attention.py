"""Attention over packed sequences: all tokens end to end, no padding, and no token looks into another sequence.

`Packing` says where each sequence lies. A sequence may continue another one (its parent): a document is the parent of
every query that meets it, is computed once, and all its queries read the same keys and values. Its keys and values may
also be kept from an earlier computation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from inspect import signature
from itertools import accumulate
from threading import Thread, current_thread
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from m0.model.linear import widening_pays

Key = TypeVar("Key")
Watcher = Callable[[str, Tensor, "Block"], Tensor]
"""Called with "scores" or "pattern", that tensor, and the block it belongs to; returns what takes its place."""

LONG = 1024
"""Tokens of a sequence for which a kernel is worth preparing."""


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """Attention in one kernel for sequences of any length, on GPUs; None where PyTorch has none. Imported when it is first asked for:
    the import takes longer than loading a model."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = signature(varlen_attn).parameters
    if "window_size" not in known:  # its first version
        return None
    # Where shared key/value heads need no word, they need none.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in known else varlen_attn


@dataclass(frozen=True)
class Block:
    """Sequences of one shape, which one attention call handles together."""

    count: int
    query_tokens: int
    key_tokens: int
    causal: bool
    mask: Tensor | None = None
    """True where a query may look, (query tokens, key tokens); None: `causal` decides."""
    members: tuple[int, ...] = ()
    """Numbers of these sequences, in order; of the parents where children of one parent go side by side."""

    def may_look(self, device: torch.device) -> Tensor | None:
        """True where a query may look, (query tokens, key tokens); None: everywhere."""
        if self.causal:
            return torch.ones(self.query_tokens, self.key_tokens, dtype=torch.bool, device=device).tril()
        return self.mask


@dataclass(frozen=True)
class Plan:
    """The attention calls of one packing, and the order in which they take tokens up and lay results down."""

    blocks: list[Block]
    query_rows: Tensor | None
    """Numbers of the query tokens, block after block; None: they lie in that order already."""
    key_rows: Tensor | None
    order: Tensor | None
    """Where the results, laid end to end, hold each query token; None: in order already."""

    @classmethod
    def of(cls, blocks: list[Block], queries: list[Tensor], keys: list[Tensor], device: torch.device) -> Plan:
        """`queries`, `keys`: numbers of the tokens of each block, (rows,) each, on the CPU."""
        query_rows, key_rows = torch.cat(queries), torch.cat(keys)
        identity = torch.arange(len(query_rows))
        sorted_queries = torch.equal(query_rows, identity)
        sorted_keys = sorted_queries and torch.equal(key_rows, identity)
        return cls(
            blocks,
            query_rows=None if sorted_queries else to_device(query_rows, device),
            key_rows=None if sorted_keys else to_device(key_rows, device),
            order=None if sorted_queries else to_device(torch.argsort(query_rows), device),
        )


@dataclass(frozen=True)
class Ragged:
    """The same attention as one call of a kernel that takes sequences of any length (GPUs have one)."""

    key_rows: Tensor | None
    """Numbers of the key tokens, sequence after sequence, a parent's before its child's own; None: they lie in that order."""
    query_ends: Tensor
    """Where each sequence's queries begin and the last ones end, (sequences + 1,), int32."""
    key_ends: Tensor
    longest_query: int
    longest_keys: int
    causal: bool
    """A sequence's last query sees all of its keys, the one before it all but the last."""

    @classmethod
    def of(cls, queries: list[int], keys: list[Tensor], total: int, causal: bool, device: torch.device) -> Ragged:
        """`queries`: how many each sequence has; `keys`: numbers of the keys of each, (rows,), on the CPU; `total`: keys there are."""
        rows, lengths = torch.cat(keys), [len(some) for some in keys]
        identity = len(rows) == total and torch.equal(rows, torch.arange(total))

        def ends(counts: list[int]) -> Tensor:
            return to_device(torch.tensor([0, *accumulate(counts)], dtype=torch.int32), device)

        return cls(
            None if identity else to_device(rows, device), ends(queries), ends(lengths), max(queries), max(lengths), causal
        )


class Packing:
    """How sequences lie end to end, and which of them continue which.

    Args:
        lengths: tokens of each sequence, in order.
        causal: a token looks at itself and what stands before it (decoder), or at its whole sequence (vision tower).
        parents: for each sequence the number of the sequence that it continues, or None. A parent has no parent itself.
        device: where the index tensors live.
        kept: so many sequences, the first ones, are not computed: they bring keys and values from an earlier computation. Rows
            of queries and outputs are numbered without them, rows of keys and values with them.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        causal: bool,
        parents: Sequence[int | None] | None = None,
        device: torch.device | str | None = None,
        kept: int = 0,
    ) -> None:
        self.lengths = tuple(int(length) for length in lengths)
        self.causal, self.kept = causal, kept
        self.parents = tuple(parents) if parents is not None else (None,) * len(self.lengths)
        self.device = torch.device(device or "cpu")
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        self.starts = tuple(starts[:-1])
        self.first = starts[kept]
        """Number of the first key that is computed here."""
        self.total = starts[-1] - self.first
        """Tokens that are computed."""

    @cached_property
    def last(self) -> Tensor:
        """Number of the last token of each sequence that is computed, (sequences,)."""
        ends = [start + length - 1 - self.first for start, length in zip(self.starts, self.lengths, strict=True)]
        return to_device(torch.tensor(ends[self.kept :]), self.device)

    @cached_property
    def plan(self) -> Plan:
        """Every token's output. Equally long sequences go together; so do the children of equally long parents."""
        blocks, queries, keys = [], [], []
        own = [length if self.parents[i] is None and i >= self.kept else None for i, length in enumerate(self.lengths)]
        for length, members in group_equal(own).items():
            rows = torch.cat([self._rows(i) for i in members])
            blocks.append(Block(len(members), length, length, self.causal, members=tuple(members)))
            queries.append(rows - self.first)
            keys.append(rows)
        families = group_equal(self.parents)
        shapes = [(self.lengths[parent], *(self.lengths[child] for child in families[parent])) for parent in families]
        parents = list(families)
        for shape, members in group_equal(shapes).items():
            for member in members:
                parent = parents[member]
                children = torch.cat([self._rows(child) for child in families[parent]])
                queries.append(children - self.first)
                keys.append(torch.cat([self._rows(parent), children]))
            mask, numbers = _family_mask(shape, self.device), tuple(parents[i] for i in members)
            blocks.append(Block(len(members), sum(shape[1:]), sum(shape), False, mask, numbers))
        return Plan.of(blocks, queries, keys, self.device)

    @cached_property
    def last_plan(self) -> Plan:
        """The output of each computed sequence's last token; queries are numbered by sequence."""
        blocks, queries, keys, seen = [], [], [], self._keys()
        prefixes = [0 if parent is None else self.lengths[parent] for parent in self.parents]
        shapes = [pair if i >= self.kept else None for i, pair in enumerate(zip(prefixes, self.lengths, strict=True))]
        for (prefix, length), members in group_equal(shapes).items():
            blocks.append(Block(len(members), 1, prefix + length, False, members=tuple(members)))
            queries.append(torch.tensor(members) - self.kept)
            keys += [seen[i - self.kept] for i in members]
        return Plan.of(blocks, queries, keys, self.device)

    @property
    def long_and_alike(self) -> bool:
        """Whether all sequences look at themselves whole, are of one length, and long: equal pictures."""
        return not self.causal and len(set(self.lengths)) == 1 and self.lengths[0] >= LONG

    @cached_property
    def ragged(self) -> Ragged:
        """As `plan`."""
        return Ragged.of(list(self.lengths[self.kept :]), self._keys(), self.first + self.total, self.causal, self.device)

    @cached_property
    def last_ragged(self) -> Ragged:
        """As `last_plan`."""
        keys = self._keys()
        return Ragged.of([1] * len(keys), keys, self.first + self.total, False, self.device)

    def _keys(self) -> list[Tensor]:
        """Numbers of the keys that each computed sequence sees."""
        own = [self._rows(i) for i in range(len(self.lengths))]
        parents = self.parents
        return [
            own[i] if (parent := parents[i]) is None else torch.cat([own[parent], own[i]]) for i in range(self.kept, len(own))
        ]

    def _rows(self, i: int) -> Tensor:
        return torch.arange(self.starts[i], self.starts[i] + self.lengths[i])


def to_device(x: Tensor, device: torch.device | str | None) -> Tensor:
    """A tensor of any shape, on its way from the CPU to a device; a GPU computes on while it travels."""
    if device is not None and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def group_equal(keys: Iterable[Key | None]) -> dict[Key, list[int]]:
    """Numbers of equal keys together, in order of first appearance; None is left out."""
    groups: dict[Key, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        if key is not None:
            groups[key].append(number)
    return groups


def _family_mask(shape: Sequence[int], device: torch.device) -> Tensor:
    """Children of one parent side by side: each sees the whole parent and, causally, itself. (queries, keys), bool."""
    prefix, *children = shape
    total = sum(children)
    owner = torch.repeat_interleave(torch.arange(len(children)), torch.tensor(children))
    own = (owner[:, None] == owner[None, :]) & torch.ones(total, total, dtype=torch.bool).tril()
    return torch.cat([torch.ones(total, prefix, dtype=torch.bool), own], dim=1).to(device)


class Attend(nn.Module):
    """softmax(query key^T / sqrt(head_dim)) value, inside each sequence only. It has no weights.

    On a GPU in 16 bits it is one call of a kernel for sequences of any length, otherwise one for each shape that occurs. With
    `prepares`, long sequences of one length go the second way on a GPU too: there PyTorch has a faster kernel for them (cuDNN's), but
    takes 40 ms to prepare it for each new shape.
    `watchers` see scores and pattern of every block, (sequences, heads, query tokens, key tokens), and give back what is used
    instead. In a thread without one, the two are never formed: attention is fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[tuple[Thread, Watcher]] = []
        """Each with the thread whose calls it sees. The list is replaced, never changed, for other threads may be reading it."""
        self.prepares = False

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled is not compiled, see `m0.model.fused`, and nobody watches it."""
        return {**self.__dict__, "prepares": False, "watchers": []}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, last_only: bool = False) -> Tensor:
        """Attend inside the sequences of a packing.

        Args:
            query: (query tokens, heads, head_dim).
            key, value: (tokens, key/value heads, head_dim); each of these heads serves a group of query heads
                (Ainslie et al. 2023, GQA).
            last_only: `query` holds the last token of each sequence only.

        Returns: the shape of `query`.
        """
        watchers = [watcher for thread, watcher in self.watchers if thread is current_thread()]
        if not watchers and has_ragged_kernel(query) and not (self.prepares and packing.long_and_alike):
            return _in_one_call(query, key, value, packing.last_ragged if last_only else packing.ragged)
        plan = packing.last_plan if last_only else packing.plan
        queries = _gather_rows(query, plan.query_rows, [block.count * block.query_tokens for block in plan.blocks])
        keys = _gather_rows(key, plan.key_rows, [block.count * block.key_tokens for block in plan.blocks])
        values = _gather_rows(value, plan.key_rows, [block.count * block.key_tokens for block in plan.blocks])
        outputs = []
        for block, *laid in zip(plan.blocks, queries, keys, values, strict=True):
            q, k, v = (x.unflatten(0, (block.count, -1)).transpose(1, 2) for x in laid)  # (sequences, heads, tokens, head_dim)
            output = _watched(q, k, v, block, watchers) if watchers else _fused(q, k, v, block)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return result if plan.order is None else result.index_select(0, plan.order)


def _watched(query: Tensor, key: Tensor, value: Tensor, block: Block, watchers: Sequence[Watcher]) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if (may_look := block.may_look(scores.device)) is not None:
        scores = scores.masked_fill(~may_look, -torch.inf)
    for watcher in watchers:
        scores = watcher("scores", scores, block)
    pattern = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    del scores  # as large as the pattern
    for watcher in watchers:
        pattern = watcher("pattern", pattern, block)
    return pattern @ value


def has_ragged_kernel(query: Tensor) -> bool:
    """Whether FlashAttention (Dao 2023) takes these queries, (tokens, heads, head_dim)."""
    return (
        query.is_cuda
        and torch.version.cuda is not None
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and varlen_kernel() is not None
    )


def _in_one_call(query: Tensor, key: Tensor, value: Tensor, ragged: Ragged) -> Tensor:
    if ragged.key_rows is not None:
        key, value = key.index_select(0, ragged.key_rows), value.index_select(0, ragged.key_rows)
    kernel = varlen_kernel()
    assert kernel is not None
    found = kernel(
        query,
        key,
        value,
        ragged.query_ends,
        ragged.key_ends,
        ragged.longest_query,
        ragged.longest_keys,
        window_size=(-1, 0) if ragged.causal else (-1, -1),
    )
    assert isinstance(found, Tensor)
    return found


def _fused(query: Tensor, key: Tensor, value: Tensor, block: Block) -> Tensor:
    if widening_pays(query, block.count * block.query_tokens):
        return _fused(query.float(), key.float(), value.float(), block).to(query.dtype)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=block.mask, is_causal=block.causal, enable_gqa=query.shape[1] != key.shape[1]
    )


def _gather_rows(x: Tensor, rows: Tensor | None, sizes: list[int]) -> tuple[Tensor, ...]:
    """Tokens in the order of the blocks, one tensor a block."""
    return (x if rows is None else x.index_select(0, rows)).split(sizes)
