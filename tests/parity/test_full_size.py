"""The released size, 2.2 B random parameters, against transformers: `make parity`. About 22 GiB of memory.

Ours and the reference share their weights, so that both fit; each runs with its own code. Scales are realistic: see
`fill_full_size`. The figures are printed and recorded in docs/explanation/parity.md.
"""

from __future__ import annotations

import gc
import time

import pytest
import torch

from m0.model.attention import Packing
from m0.model.config import RerankerConfig
from m0.model.rotary import mrope_positions

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from tests.parity.reference import full_size_pair, share

pytestmark = pytest.mark.slow

TEXT_TOKENS = 512
GRID = (48, 64)  # 3072 patches, 768 visual tokens


@pytest.fixture(scope="module")
def pair():
    return full_size_pair()


def inputs():
    """512 tokens of text; and a picture of 768 visual tokens with a query."""
    generator = torch.Generator().manual_seed(1)
    config = RerankerConfig()
    text = torch.randint(1000, 150_000, (TEXT_TOKENS,), generator=generator)
    text[-1] = config.score_token_id
    head, tail = (
        torch.randint(1000, 150_000, (5,), generator=generator),
        torch.randint(1000, 150_000, (30,), generator=generator),
    )
    tail[-1] = config.score_token_id
    tokens = GRID[0] * GRID[1] // 4
    picture = torch.cat([head, torch.full((tokens,), config.image_token_id), tail])
    patches = torch.randn(GRID[0] * GRID[1], config.vision.patch_dim, generator=generator)
    return {
        "text": (text, mrope_positions([TEXT_TOKENS]), None, []),
        "picture": (picture, mrope_positions([5, (GRID[0] // 2, GRID[1] // 2), 30]), patches, [GRID]),
    }


@torch.inference_mode()
def both(pair, case, dtype):
    """(logit, final state of the score token) of the reference, and ours; float32."""
    reference, model = pair
    ids, positions, patches, grids = inputs()[case]
    patches = patches if patches is None else patches.to(dtype)
    results = []
    for name, run, head in (
        ("reference", lambda: reference.states([ids], patches, grids), reference.score),
        ("ours", lambda: model.decoder(*packed(model, ids, positions, patches, grids)), model.head),
    ):
        start = time.monotonic()
        states = run()
        logit = head(states).flatten()
        print(f"{case}, {dtype}, {name}: logit {logit.item():.6f} in {time.monotonic() - start:.1f} s")
        results.append((logit.float(), states.flatten().float()))
    return results


def packed(model, ids, positions, patches, grids):
    features = None if patches is None else model.vision(patches, grids)
    return model.embed(ids, features), positions, Packing([len(ids)], causal=True)


@pytest.fixture(scope="module")
def exact(pair):
    return {case: both(pair, case, torch.float32) for case in ("text", "picture")}


@pytest.mark.parametrize("case", ["text", "picture"])
def test_float32(exact, case):
    (their_logit, their_state), (our_logit, our_state) = exact[case]
    print(f"{case}: largest difference of a final state {(our_state - their_state).abs().max():.2e}")
    assert their_logit.abs() > 0.01
    torch.testing.assert_close(our_logit, their_logit, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ["text", "picture"])
def test_bfloat16_errs_no_more_than_the_reference(pair, exact, case):
    """Our error against the float32 reference is at most 1.2 times the reference's own.

    Measured on the 1536 numbers of the score token's final state, whose length does not hang on one rounding as a single
    logit does; the logits' errors are printed.
    """
    reference, model = pair
    if model.dtype != torch.bfloat16:
        for parameter in reference.parameters():  # the tables of frequencies stay in float32, as from_pretrained leaves them
            parameter.data = parameter.data.to(torch.bfloat16)
        share(reference, model)
        gc.collect()
    (their_logit, their_state), (our_logit, our_state) = both(pair, case, torch.bfloat16)
    logit, state = exact[case][0]
    their_error, our_error = (their_state - state).norm().item(), (our_state - state).norm().item()
    print(f"{case}: error of the final state: reference {their_error:.4f}, ours {our_error:.4f}, of {state.norm():.2f}")
    print(
        f"{case}: error of the logit: reference {(their_logit - logit).abs().item():.2e}, ours {(our_logit - logit).abs().item():.2e}"
    )
    assert 0 < our_error <= 1.2 * their_error
