"""Packed attention against the textbook formula, with and without parents."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import m0.model.attention
from m0.model.attention import Attend, Packing


def textbook(query, key, value, allowed):
    """softmax(q k / sqrt(d)) v with an explicit mask over all tokens; heads repeated for groups."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
    pattern = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", pattern, value)


def allowed_by(lengths, causal, parents):
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    number = torch.arange(sum(lengths))
    same = owner[:, None] == owner[None, :]
    if causal:
        same &= number[:, None] >= number[None, :]
    parent = torch.tensor([-1 if p is None else p for p in parents])
    return same | (parent[owner][:, None] == owner[None, :])


CASES = [
    ([5], True, [None]),
    ([5], False, [None]),
    ([3, 3, 3], True, [None] * 3),
    ([4, 1, 4, 2], True, [None] * 4),
    ([4, 16, 4, 2], False, [None] * 4),
    ([5, 2, 3, 2], True, [None, 0, 0, 0]),
    ([5, 4, 2, 3, 2, 3], True, [None, None, 0, 0, 1, 1]),
    ([5, 5, 2, 3, 2, 3], True, [None, None, 0, 0, 1, 1]),
    ([2, 6, 3, 4], True, [1, None, None, 2]),
]


@pytest.mark.parametrize(("lengths", "causal", "parents"), CASES)
def test_every_token_sees_what_it_may_and_nothing_else(lengths, causal, parents):
    query = torch.randn(sum(lengths), 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, sum(lengths), 2, 8, dtype=torch.float64)
    packing = Packing(lengths, causal, parents)
    expected = textbook(query, key, value, allowed_by(lengths, causal, parents))
    torch.testing.assert_close(Attend()(query, key, value, packing), expected)
    if causal:
        torch.testing.assert_close(
            Attend()(query[packing.last_rows], key, value, packing, last_only=True), expected[packing.last_rows]
        )


def varlen_by_hand(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size):
    """What FlashAttention's kernel for sequences of any length computes, one sequence after another: a causal window is
    aligned to the last query and the last key."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    assert window_size in ((-1, 0), (-1, -1))
    found = []
    for i in range(len(cu_seqlens_q) - 1):
        queries, keys = slice(*cu_seqlens_q[i : i + 2]), slice(*cu_seqlens_k[i : i + 2])
        parts = [x.transpose(0, 1)[None] for x in (query[queries], key[keys], value[keys])]
        rows, columns = parts[0].shape[2], parts[1].shape[2]
        mask = torch.ones(rows, columns, dtype=torch.bool)
        mask = mask.tril(columns - rows) if window_size == (-1, 0) else mask
        found.append(scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("lengths", "causal", "parents", "kept"),
    [(*case, 0) for case in CASES] + [(*case, 1) for case in CASES if len(case[0]) > 1 and case[2][0] is None],
)
def test_the_kernel_for_any_length_is_told_the_same(monkeypatch, lengths, causal, parents, kept):
    packing = Packing(lengths, causal, parents, num_cached=kept)
    query = torch.randn(packing.num_tokens, 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, sum(lengths), 2, 8, dtype=torch.float64)
    expected = Attend()(query, key, value, packing)
    last = Attend()(query[packing.last_rows], key, value, packing, last_only=True) if causal else None
    monkeypatch.setattr(m0.model.attention, "has_varlen_kernel", lambda query: True)
    monkeypatch.setattr(m0.model.attention, "varlen_kernel", lambda: varlen_by_hand)
    torch.testing.assert_close(Attend()(query, key, value, packing), expected)
    if causal:
        torch.testing.assert_close(Attend()(query[packing.last_rows], key, value, packing, last_only=True), last)


@pytest.fixture
def found_anew():
    m0.model.attention.varlen_kernel.cache_clear()
    yield
    m0.model.attention.varlen_kernel.cache_clear()


def with_heads(
    query, key, value, cu_seqlens_q, cu_seqlens_k, most_queries, most_keys, *, window_size=(-1, -1), enable_gqa=False
):
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError("Expect query and key/value to have the same number of heads")
    return varlen_by_hand(query, key, value, cu_seqlens_q, cu_seqlens_k, most_queries, most_keys, window_size)


def without_heads(query, key, value, cu_seqlens_q, cu_seqlens_k, most_queries, most_keys, *, window_size=(-1, -1)):
    return varlen_by_hand(query, key, value, cu_seqlens_q, cu_seqlens_k, most_queries, most_keys, window_size)


@pytest.mark.parametrize("kernel", [with_heads, without_heads])
def test_every_version_of_pytorchs_kernel_is_called_as_it_wants(monkeypatch, found_anew, kernel):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(m0.model.attention, "has_varlen_kernel", lambda query: True)
    query, (key, value) = torch.randn(7, 4, 8), torch.randn(2, 7, 2, 8)
    packing = Packing([4, 3], True)
    expected = textbook(query, key, value, allowed_by([4, 3], True, [None, None]))
    torch.testing.assert_close(Attend()(query, key, value, packing), expected)


def test_a_kernel_without_windows_is_left_alone(monkeypatch, found_anew):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal=False: None)
    assert m0.model.attention.varlen_kernel() is None


@pytest.mark.parametrize(
    ("lengths", "causal", "one_call"),
    [([6, 6], False, False), ([6, 5], False, True), ([6, 6], True, True), ([3, 3], False, True)],
)
def test_long_pictures_of_one_size_may_have_a_kernel_prepared(monkeypatch, lengths, causal, one_call):
    calls = []

    def kernel(*args, **settings):
        calls.append(1)
        return varlen_by_hand(*args, **settings)

    monkeypatch.setattr(m0.model.attention, "has_varlen_kernel", lambda query: True)
    monkeypatch.setattr(m0.model.attention, "varlen_kernel", lambda: kernel)
    monkeypatch.setattr(m0.model.attention, "MIN_LONG_TOKENS", 4)
    query, key, value = torch.randn(3, sum(lengths), 2, 8, dtype=torch.float64)
    packing, attend = Packing(lengths, causal), Attend()
    expected = attend(query, key, value, packing)
    attend.prepares = True
    torch.testing.assert_close(attend(query, key, value, packing), expected)
    assert len(calls) == 1 + one_call
