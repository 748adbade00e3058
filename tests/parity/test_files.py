"""What `save_checkpoint` writes, transformers reads, in either layout, and it gives the same states."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from m0.checkpoints.files import load_checkpoint, save_checkpoint
from m0.model.reranker_model import RerankerModel
from tests.conftest import fill_randomly, tiny_config

transformers = pytest.importorskip("transformers", reason="needs the extra 'parity'")


@pytest.mark.parametrize("layout", ["hub", "nested"])
def test_transformers_reads_our_files(tmp_path, layout):
    model = RerankerModel(tiny_config()).eval()
    fill_randomly(model, seed=8)
    save_checkpoint(model, tmp_path, layout=layout)
    theirs, report = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    # The vocabulary projection is tied to the embeddings; the score head is the vendor's addition to this class.
    assert set(report["missing_keys"]) <= {"lm_head.weight"}
    assert set(report["unexpected_keys"]) == {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"}
    ids = torch.arange(10, 40)
    with torch.no_grad():
        states = theirs.model(input_ids=ids[None]).last_hidden_state[0, -1]
        expected = model.head(states[None])
        ours = model(ids, torch.arange(30).expand(3, 30), [30])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shard", [False, True])
def test_of_a_single_file_and_an_index_both_read_the_file(tmp_path, shard):
    """The index is of an earlier save, whose shard is still there or not."""
    model = RerankerModel(tiny_config()).eval()
    fill_randomly(model, seed=8)
    save_checkpoint(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
    if shard:
        save_file({key: torch.zeros_like(value) for key, value in weights.items()}, tmp_path / name)
    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    expected = model.state_dict()["decoder.embed_tokens.weight"]
    assert torch.equal(theirs.get_input_embeddings().weight, expected)
    assert torch.equal(load_checkpoint(tmp_path).state_dict()["decoder.embed_tokens.weight"], expected)
