"""Attention over packed sequences: all tokens end to end, no padding, and no token attends to another sequence.

`Packing` says where each sequence lies. A sequence may continue another one, its shared prefix: a document is the shared prefix
of all queries that are paired with it, is computed once, and all these queries read the same keys and values. The keys and values
may also be cached from an earlier computation.
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

from m0.model.linear import should_upcast

GroupKey = TypeVar("GroupKey")
Watcher = Callable[[str, Tensor, "Block"], Tensor]
"""Called with "scores" or "pattern", that tensor, and the block it belongs to; returns what takes its place."""

MIN_LONG_TOKENS = 1024
"""Tokens of a sequence from which on a kernel is worth preparing."""


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
    # Versions without the argument share key/value heads by themselves.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in known else varlen_attn


@dataclass(frozen=True)
class Block:
    """Sequences of one shape, which one attention call handles together."""

    count: int
    query_tokens: int
    key_tokens: int
    causal: bool
    mask: Tensor | None = None
    """True where a query may attend to a key, (query tokens, key tokens); None: `causal` decides."""
    sequences: tuple[int, ...] = ()
    """Numbers of these sequences, in order; of the shared prefixes where all that continue one go side by side."""

    def attention_mask(self, device: torch.device) -> Tensor | None:
        """True where a query may attend to a key, (query tokens, key tokens); None: everywhere."""
        if self.causal:
            return torch.ones(self.query_tokens, self.key_tokens, dtype=torch.bool, device=device).tril()
        return self.mask


@dataclass(frozen=True)
class BlockPlan:
    """The attention calls of one packing, and the order in which they read tokens and write results."""

    blocks: list[Block]
    query_rows: Tensor | None
    """Numbers of the query tokens, block after block; None: they lie in that order already."""
    key_rows: Tensor | None
    order: Tensor | None
    """Where the results, laid end to end, hold each query token; None: in order already."""

    @classmethod
    def from_rows(cls, blocks: list[Block], queries: list[Tensor], keys: list[Tensor], device: torch.device) -> BlockPlan:
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
class VarlenArguments:
    """The same attention as one call of a kernel that takes sequences of any length (GPUs have one)."""

    key_rows: Tensor | None
    """Numbers of the key tokens, sequence after sequence, those of its shared prefix before its own; None: they lie in that order."""
    cu_seqlens_q: Tensor
    """Where each sequence's queries begin and the last ones end, (sequences + 1,), int32."""
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool
    """A sequence's last query attends to all of its keys, the one before it to all but the last."""

    @classmethod
    def from_rows(
        cls, queries: list[int], keys: list[Tensor], num_keys: int, causal: bool, device: torch.device
    ) -> VarlenArguments:
        """`queries`: how many each sequence has; `keys`: numbers of the keys of each, (rows,), on the CPU; `num_keys`: keys there are."""
        rows, lengths = torch.cat(keys), [len(part) for part in keys]
        identity = len(rows) == num_keys and torch.equal(rows, torch.arange(num_keys))

        def cumulative(counts: list[int]) -> Tensor:
            return to_device(torch.tensor([0, *accumulate(counts)], dtype=torch.int32), device)

        return cls(
            None if identity else to_device(rows, device),
            cumulative(queries),
            cumulative(lengths),
            max(queries),
            max(lengths),
            causal,
        )


class Packing:
    """How sequences lie end to end, and which of them continue which.

    Args:
        lengths: tokens of each sequence, in order.
        causal: a token attends to itself and what stands before it (decoder), or to its whole sequence (vision tower).
        prefix_of: for each sequence the number of its shared prefix, the sequence that it continues, or None. A shared prefix has none
            itself.
        device: where the index tensors live.
        num_cached: so many sequences, the first ones, are not computed: they bring keys and values from an earlier computation. Rows
            of queries and outputs are numbered without them, rows of keys and values with them.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        causal: bool,
        prefix_of: Sequence[int | None] | None = None,
        device: torch.device | str | None = None,
        num_cached: int = 0,
    ) -> None:
        self.lengths = tuple(int(length) for length in lengths)
        self.causal, self.num_cached = causal, num_cached
        self.prefix_of = tuple(prefix_of) if prefix_of is not None else (None,) * len(self.lengths)
        self.device = torch.device(device or "cpu")
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        self.starts = tuple(starts[:-1])
        self.num_cached_tokens = starts[num_cached]
        """Tokens of the cached sequences, and so the number of the first key that is computed here."""
        self.num_tokens = starts[-1] - self.num_cached_tokens
        """Tokens that are computed."""

    @cached_property
    def last_rows(self) -> Tensor:
        """Number of the last token of each sequence that is computed, (sequences,)."""
        lasts = [start + length - 1 - self.num_cached_tokens for start, length in zip(self.starts, self.lengths, strict=True)]
        return to_device(torch.tensor(lasts[self.num_cached :]), self.device)

    @cached_property
    def plan(self) -> BlockPlan:
        """Every token's output. Equally long sequences go together; so do prefix groups of equal lengths."""
        blocks, queries, keys = [], [], []
        independent = [
            length if self.prefix_of[i] is None and i >= self.num_cached else None for i, length in enumerate(self.lengths)
        ]
        for length, sequences in group_equal(independent).items():
            rows = torch.cat([self._rows(i) for i in sequences])
            blocks.append(Block(len(sequences), length, length, self.causal, sequences=tuple(sequences)))
            queries.append(rows - self.num_cached_tokens)
            keys.append(rows)
        continuations = group_equal(self.prefix_of)
        prefixes = list(continuations)
        shapes = [(self.lengths[prefix], *(self.lengths[i] for i in continuations[prefix])) for prefix in prefixes]
        for shape, groups in group_equal(shapes).items():
            same_shape = tuple(prefixes[group] for group in groups)
            for prefix in same_shape:
                rows = torch.cat([self._rows(i) for i in continuations[prefix]])
                queries.append(rows - self.num_cached_tokens)
                keys.append(torch.cat([self._rows(prefix), rows]))
            mask = _shared_prefix_mask(shape, self.device)
            blocks.append(Block(len(same_shape), sum(shape[1:]), sum(shape), False, mask, same_shape))
        return BlockPlan.from_rows(blocks, queries, keys, self.device)

    @cached_property
    def last_plan(self) -> BlockPlan:
        """The output of each computed sequence's last token; queries are numbered by sequence."""
        blocks, queries, keys, key_rows = [], [], [], self._key_rows()
        prefix_lengths = [0 if prefix is None else self.lengths[prefix] for prefix in self.prefix_of]
        pairs = enumerate(zip(prefix_lengths, self.lengths, strict=True))
        shapes = [pair if i >= self.num_cached else None for i, pair in pairs]
        for (prefix_length, length), sequences in group_equal(shapes).items():
            blocks.append(Block(len(sequences), 1, prefix_length + length, False, sequences=tuple(sequences)))
            queries.append(torch.tensor(sequences) - self.num_cached)
            keys += [key_rows[i - self.num_cached] for i in sequences]
        return BlockPlan.from_rows(blocks, queries, keys, self.device)

    @property
    def is_long_and_uniform(self) -> bool:
        """Whether all sequences attend to themselves whole, are of one length, and long: equal pictures."""
        return not self.causal and len(set(self.lengths)) == 1 and self.lengths[0] >= MIN_LONG_TOKENS

    @cached_property
    def varlen(self) -> VarlenArguments:
        """As `plan`."""
        lengths, num_keys = list(self.lengths[self.num_cached :]), self.num_cached_tokens + self.num_tokens
        return VarlenArguments.from_rows(lengths, self._key_rows(), num_keys, self.causal, self.device)

    @cached_property
    def last_varlen(self) -> VarlenArguments:
        """As `last_plan`."""
        key_rows, num_keys = self._key_rows(), self.num_cached_tokens + self.num_tokens
        return VarlenArguments.from_rows([1] * len(key_rows), key_rows, num_keys, False, self.device)

    def _key_rows(self) -> list[Tensor]:
        """Numbers of the keys that each computed sequence attends to."""
        rows = [self._rows(i) for i in range(len(self.lengths))]
        prefix_of = self.prefix_of
        return [
            rows[i] if (prefix := prefix_of[i]) is None else torch.cat([rows[prefix], rows[i]])
            for i in range(self.num_cached, len(rows))
        ]

    def _rows(self, i: int) -> Tensor:
        return torch.arange(self.starts[i], self.starts[i] + self.lengths[i])


def to_device(x: Tensor, device: torch.device | str | None) -> Tensor:
    """A tensor of any shape, on its way from the CPU to a device; a GPU computes on while it travels."""
    if device is not None and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def group_equal(keys: Iterable[GroupKey | None]) -> dict[GroupKey, list[int]]:
    """Numbers of equal keys together, in order of first appearance; None is left out."""
    groups: dict[GroupKey, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        if key is not None:
            groups[key].append(number)
    return groups


def _shared_prefix_mask(shape: Sequence[int], device: torch.device) -> Tensor:
    """All sequences that continue one prefix, side by side: each attends to the whole prefix and, causally, to itself.

    `shape`: tokens of the prefix, then of each sequence. (queries, keys), bool.
    """
    prefix, *lengths = shape
    total = sum(lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
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
        """Each with the thread whose calls it is called in. The list is replaced, never changed, for other threads may be reading it."""
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
        if not watchers and has_varlen_kernel(query) and not (self.prepares and packing.is_long_and_uniform):
            return _varlen_attention(query, key, value, packing.last_varlen if last_only else packing.varlen)
        plan = packing.last_plan if last_only else packing.plan
        queries = _gather_rows(query, plan.query_rows, [block.count * block.query_tokens for block in plan.blocks])
        keys = _gather_rows(key, plan.key_rows, [block.count * block.key_tokens for block in plan.blocks])
        values = _gather_rows(value, plan.key_rows, [block.count * block.key_tokens for block in plan.blocks])
        outputs = []
        for block, *gathered in zip(plan.blocks, queries, keys, values, strict=True):
            q, k, v = (
                x.unflatten(0, (block.count, -1)).transpose(1, 2) for x in gathered
            )  # (sequences, heads, tokens, head_dim)
            output = _eager_attention(q, k, v, block, watchers) if watchers else _sdpa_attention(q, k, v, block)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return result if plan.order is None else result.index_select(0, plan.order)


def _eager_attention(query: Tensor, key: Tensor, value: Tensor, block: Block, watchers: Sequence[Watcher]) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if (mask := block.attention_mask(scores.device)) is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    for watcher in watchers:
        scores = watcher("scores", scores, block)
    pattern = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    del scores  # as large as the pattern
    for watcher in watchers:
        pattern = watcher("pattern", pattern, block)
    return pattern @ value


def has_varlen_kernel(query: Tensor) -> bool:
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


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, varlen: VarlenArguments) -> Tensor:
    if varlen.key_rows is not None:
        key, value = key.index_select(0, varlen.key_rows), value.index_select(0, varlen.key_rows)
    kernel = varlen_kernel()
    assert kernel is not None
    output = kernel(
        query,
        key,
        value,
        varlen.cu_seqlens_q,
        varlen.cu_seqlens_k,
        varlen.max_seqlen_q,
        varlen.max_seqlen_k,
        window_size=(-1, 0) if varlen.causal else (-1, -1),
    )
    assert isinstance(output, Tensor)
    return output


def _sdpa_attention(query: Tensor, key: Tensor, value: Tensor, block: Block) -> Tensor:
    if should_upcast(query, block.count * block.query_tokens):
        return _sdpa_attention(query.float(), key.float(), value.float(), block).to(query.dtype)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=block.mask, is_causal=block.causal, enable_gqa=query.shape[1] != key.shape[1]
    )


def _gather_rows(x: Tensor, rows: Tensor | None, sizes: list[int]) -> tuple[Tensor, ...]:
    """Tokens in the order of the blocks, one tensor a block."""
    return (x if rows is None else x.index_select(0, rows)).split(sizes)
