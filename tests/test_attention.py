"""Packed attention against the textbook formula, with and without parents."""

import math

import pytest
import torch

from m0.attention import Attend, Packing


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
    torch.testing.assert_close(Attend()(query, key, value, packing.plan), expected)
    if causal:
        torch.testing.assert_close(Attend()(query[packing.last], key, value, packing.last_plan), expected[packing.last])
