"""bfloat16 by float32's kernels: the same numbers but for the order of sums, and only where it pays."""

import pytest
import torch
from torch.nn import functional as F

from m0.model import linear
from m0.model.attention import Attend, Packing
from m0.model.linear import UPCAST_CHUNK_NUMBERS, Linear, linear_in_float32
from tests.conftest import noise

PAIR = ("two dogs", [noise(84, 112), "a dog and a cat " * 40])


def one_bit(exact: torch.Tensor) -> torch.Tensor:
    """What rounding to bfloat16 may change, twice."""
    return 2**-8 * exact.abs() + 1e-6


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 48), (2 * UPCAST_CHUNK_NUMBERS // 48 + 7, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_against_double(outputs, inputs, bias):
    torch.manual_seed(0)
    layer = Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(2, 5, inputs, dtype=torch.bfloat16)
    found = linear_in_float32(x, layer.weight, layer.bias)
    exact = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= one_bit(exact)).all()


@pytest.fixture
def asked(monkeypatch):
    """Every processor is one whose float32 is faster, and what is computed that way is counted."""
    found = []

    def counted(x, weight, bias):
        found.append(x.shape)
        return linear_in_float32(x, weight, bias)

    monkeypatch.setattr(linear, "float32_is_faster", lambda: True)
    monkeypatch.setattr(linear, "linear_in_float32", counted)
    return found


def test_only_many_rows_of_bfloat16_without_gradients(asked):
    layer = Linear(8, 8, dtype=torch.bfloat16)
    many, few = torch.ones(128, 8, dtype=torch.bfloat16), torch.ones(127, 8, dtype=torch.bfloat16)
    layer(many)
    assert not asked  # gradients are on
    with torch.no_grad():
        layer(few), Linear(8, 8)(many.float())
        assert not asked
        layer(many), layer(few[None].expand(2, -1, -1))
    assert asked == [(128, 8), (2, 127, 8)]


def test_scores_are_those_of_bfloat16(tiny_directory, asked, monkeypatch):
    from m0 import Reranker

    exact = Reranker.from_pretrained(tiny_directory, dtype="float64").logits([PAIR])
    reranker = Reranker.from_pretrained(tiny_directory, dtype="bfloat16")
    found = reranker.logits([PAIR])
    assert asked
    count = len(asked)
    monkeypatch.setattr(linear, "float32_is_faster", lambda: False)
    plain = reranker.logits([PAIR])
    assert len(asked) == count
    error, usual = abs(found[0] - exact[0]), abs(plain[0] - exact[0])
    assert error <= max(2 * usual, 2e-2)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_float32_errs_no_more(monkeypatch, causal):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 300, 4, 16).bfloat16()
    packing, found = Packing([180, 120], causal), {}
    exact = Attend()(query.double(), key.double(), value.double(), packing)
    for faster in (True, False):
        monkeypatch.setattr(linear, "float32_is_faster", lambda faster=faster: faster)
        with torch.no_grad():
            found[faster] = Attend()(query, key, value, packing)
        assert found[faster].dtype == torch.bfloat16
    assert not torch.equal(found[True], found[False])
    assert (found[True] - exact).norm() <= (found[False] - exact).norm()


def test_it_is_measured_once(monkeypatch):
    linear._measure_float32_is_faster.cache_clear()
    assert linear.float32_is_faster() in (True, False)
    monkeypatch.setattr(linear, "linear_in_float32", None)  # would fail if called again
    assert linear.float32_is_faster() in (True, False)
