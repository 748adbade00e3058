"""Fused norms, rotations and activations: the same scores, and looking inside works as before."""

import pickle

import pytest
import torch

import m0.engine.quantize
from m0 import Reranker
from m0.engine.quantize import RoundToFloat8
from m0.errors import InputError
from m0.model.attention import Attend
from m0.model.fused import Fusible
from tests.conftest import apart, final_states, noise

PAIRS = [("two dogs", "a text"), ("two dogs", "another, longer text of dogs"), ("cats", [noise(84, 56, 1), "and a text"])]


@pytest.fixture
def fresh(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float32")


def test_compiled(fresh):
    """One test, for compiling takes seconds."""
    before = fresh.logits(PAIRS)
    with fresh.record("decoder.layers.0.mlp.*") as cache:
        fresh.score(PAIRS[:1])
    explained = fresh.explain(*PAIRS[1], method="attnlrp").tokens
    try:
        torch.compile(lambda x: x + 1)(torch.ones(3))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    fresh.compile()
    assert all("function" in module.__dict__ for module in fresh.model.modules() if isinstance(module, Fusible))
    assert fresh.logits(PAIRS) == pytest.approx(before, abs=1e-5)
    with fresh.record("decoder.layers.0.mlp.*") as again:
        fresh.score(PAIRS[:1])
    assert list(again) == list(cache)
    for name in cache:
        torch.testing.assert_close(again[name], cache[name])
    torch.testing.assert_close(fresh.explain(*PAIRS[1], method="attnlrp").tokens, explained, atol=1e-5, rtol=1e-4)
    copied = pickle.loads(pickle.dumps(fresh.model))
    assert not any("function" in module.__dict__ for module in copied.modules())
    assert any(module.prepares for module in fresh.model.modules() if isinstance(module, Attend))
    assert not any(module.prepares for module in copied.modules() if isinstance(module, Attend))
    states = final_states(fresh, PAIRS)
    fresh.model.bfloat16()
    assert fresh.logits(PAIRS) == pytest.approx(before, abs=0.2)
    assert apart(final_states(fresh, PAIRS), states) < 0.03
    assert fresh.explain(*PAIRS[1], method="attnlrp").tokens.shape == explained.shape


def test_without_a_compiler_nothing_changes(fresh, monkeypatch):
    def fails(function):
        def call(*args):
            raise RuntimeError("no C++ compiler\nand a long story")

        return call

    before = fresh.logits(PAIRS)
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(InputError, match="does not work here: no C"):
        fresh.compile()
    assert fresh.logits(PAIRS) == before


def test_what_is_quantized_after_compiling_is_compiled_too(fresh, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(m0.engine.quantize, "has_float8", lambda device: True)
    monkeypatch.setattr(m0.engine.quantize, "FLOAT8_MULTIPLE", 8)
    fresh.compile()
    fresh.quantize("float8")
    rounding = [module for module in fresh.model.modules() if isinstance(module, RoundToFloat8)]
    assert rounding
    assert all("function" in module.__dict__ for module in rounding)


def test_what_is_not_compiled_stays_so_when_it_is_quantized(fresh, monkeypatch):
    monkeypatch.setattr(m0.engine.quantize, "has_float8", lambda device: True)
    monkeypatch.setattr(m0.engine.quantize, "FLOAT8_MULTIPLE", 8)
    fresh.quantize("float8")
    assert not any("function" in module.__dict__ for module in fresh.model.modules() if isinstance(module, RoundToFloat8))
