"""Mapped weights are given back to the system, and nothing that was changed is lost."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import m0.checkpoints.mapped_memory
import m0.engine.visual_features
from m0 import DocumentCache, Reranker
from m0.checkpoints.mapped_memory import PAGES, release
from tests.conftest import NANO, noise

needs_linux = pytest.mark.skipif(not PAGES.exists(), reason="needs Linux's table of pages")


@pytest.fixture(params=["in pieces", "at once"])
def checkpoint(request, tmp_path):
    """A file of its own. How it was written decides how the system keeps it: what comes at once may lie in huge pages of 2 MiB, and
    giving back a part of one gives back all of it."""
    shutil.copytree(NANO, tmp_path / "nano", ignore=shutil.ignore_patterns("*.safetensors"))
    data = (NANO / "model.safetensors").read_bytes()
    step = len(data) if request.param == "at once" else 2**16
    with (tmp_path / "nano" / "model.safetensors").open("wb", buffering=0) as file:
        for start in range(0, len(data), step):
            file.write(data[start : start + step])
    return tmp_path / "nano"


@pytest.fixture
def mapped(checkpoint):
    """In the type it is stored in."""
    return Reranker.from_pretrained(checkpoint, dtype="float16", device="cpu")


def in_memory(checkpoint: Path) -> int:
    """Bytes of its mapped weights that this process has in memory, as the system counts them."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(str(checkpoint / "model.safetensors"))
        elif counts and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@needs_linux
def test_memory_is_given_back_and_values_stay(mapped, checkpoint):
    expected = weights(mapped.model)  # reads all
    before = in_memory(checkpoint)
    assert before > 25 * 2**20
    given = release(mapped.model.parameters())
    assert in_memory(checkpoint) < 2**20  # but for pages that two weights share
    assert 0 < given <= before  # of a huge page, what went along with its neighbour is not counted
    assert release(mapped.model.parameters()) == 0  # there is nothing left
    for name, weight in mapped.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@needs_linux
def test_what_was_changed_stays(mapped):
    weights(mapped.model)
    layer = mapped.model.decoder.layers[1]
    with torch.no_grad():
        layer.mlp.gate_proj.weight.mul_(2)
        layer.mlp.up_proj.weight.data[100] = 3.0  # behind PyTorch's back
        mapped.model.decoder.embed_tokens.weight[7777] += 1
        mapped.model.vision.blocks[0].mlp.fc1.bias.fill_(0.5)
    expected = weights(mapped.model)
    assert release(mapped.model.parameters()) > 2**20
    for name, weight in mapped.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_what_no_file_holds_is_left_alone(tiny):
    plain = Reranker.from_pretrained(NANO, dtype="float32", device="cpu")
    expected = weights(plain.model)
    assert release(plain.model.parameters()) == 0
    assert release([torch.ones(3), torch.empty(0), torch.ones(2000, 2000).T, torch.empty(9, device="meta")]) == 0
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_where_the_system_does_not_say(mapped, monkeypatch, tmp_path):
    weights(mapped.model)
    for table in (tmp_path / "missing", tmp_path):
        monkeypatch.setattr(m0.checkpoints.mapped_memory, "PAGES", table)
        assert release(mapped.model.parameters()) == 0


@needs_linux
@pytest.mark.parametrize("kept", [False, True])
def test_tower_and_decoder_take_turns(mapped, monkeypatch, kept):
    documents = [noise(224, 280, seed) for seed in range(4)]
    mapped.documents = DocumentCache(max_bytes=2**30 if kept else 0)
    expected = mapped.rank("compass", documents)
    mapped.documents = DocumentCache(max_bytes=2**30 if kept else 0)
    monkeypatch.setattr(m0.engine.visual_features, "MIN_TOKENS_TO_RELEASE", 50)
    given = []
    monkeypatch.setattr(m0.engine.visual_features, "release", lambda weights: given.append(release(weights)))
    if kept:
        mapped.prepare(documents)
    found = mapped.rank("compass", documents, batch_tokens=100)
    assert len(given) >= (2 if kept else 4)  # what is prepared is looked at in one go
    assert sum(given) > 2**20
    torch.testing.assert_close(
        {result.index: result.logit for result in found}, {result.index: result.logit for result in expected}, rtol=0, atol=0.1
    )
