"""M-RoPE positions against transformers', for random mixtures of text and 0 to 5 pictures."""

from __future__ import annotations

import random

import pytest
import torch

from m0.model.rotary import mrope_positions
from tests.conftest import tiny_config

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from tests.parity.reference import ReferenceReranker


@pytest.fixture(scope="module")
def backbone():
    return ReferenceReranker(tiny_config()).model


@pytest.mark.parametrize("seed", range(40))
def test_random_mixtures(backbone, seed):
    rng = random.Random(seed)
    runs = [rng.randint(1, 30)]
    for _ in range(seed % 6):
        runs += [(rng.randint(1, 9), rng.randint(1, 9)), rng.randint(1, 12)]
    image = tiny_config().image_token_id
    ids = torch.cat([torch.ones(run) if isinstance(run, int) else torch.full((run[0] * run[1],), image) for run in runs])
    ids = ids.long()[None]
    pad = rng.randint(0, 5)
    padded = torch.cat([torch.zeros(1, pad, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, pad), torch.ones_like(ids)], dim=1).long()
    grids = torch.tensor([[1, 2 * run[0], 2 * run[1]] for run in runs if not isinstance(run, int)]).reshape(-1, 3)
    theirs, _ = backbone.get_rope_index(padded, (padded == image).int(), grids, attention_mask=mask)
    assert torch.equal(mrope_positions(runs), theirs[:, 0, pad:])
