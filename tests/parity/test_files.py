"""What `save_checkpoint` writes, transformers reads, in either layout, and it gives the same states."""

from __future__ import annotations

import pytest
import torch

from m0.checkpoint import save_checkpoint
from m0.model import RerankerModel
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
