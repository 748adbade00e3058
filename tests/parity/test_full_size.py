"""The released size, 2.2 B random parameters, against transformers: `make parity`. About 22 GiB of memory.

Ours and the reference share their weights, so that both fit; each runs with its own code. Scales are realistic: see
`fill_full_size`. The figures are printed and recorded in docs/parity.md.
"""

from __future__ import annotations

import gc
import time

import pytest
import torch

from m0.attention import Packing
from m0.config import RerankerConfig
from m0.model import RerankerModel
from m0.rotary import mrope_positions

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from tests.parity.reference import ReferenceReranker

pytestmark = pytest.mark.slow

TEXT_TOKENS = 512
GRID = (48, 64)  # 3072 patches, 768 visual tokens
OURS = {"model.language_model.": "decoder.", "model.visual.": "vision.", "score.": "head."}


def fill_full_size(module: torch.nn.Module) -> None:
    """Standard deviation 0.02, norms near 1, biases not zero: uniform numbers, which are quick to draw."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            width = 0.02 * 3**0.5
            parameter.uniform_(-width, width, generator=generator)
            if name.endswith("weight") and ("norm" in name or "ln_q" in name):
                parameter.add_(1.0)


@pytest.fixture(scope="module")
def pair():
    config = RerankerConfig()
    with torch.device("meta"):
        reference, model = ReferenceReranker(config), RerankerModel(config)
    reference.to_empty(device="cpu")
    for module in reference.modules():  # tables that are computed, not stored
        if "compute" in " ".join(dir(module)) and hasattr(module, "inv_freq"):
            frequencies, _ = (
                type(module)
                .__dict__[
                    "compute_axial_rope_parameters" if "Vision" in type(module).__name__ else "compute_default_rope_parameters"
                ]
                .__func__(module.config)
            )
            module.inv_freq = torch.nn.Buffer(frequencies, persistent=False)
            module.original_inv_freq = torch.nn.Buffer(frequencies.clone(), persistent=False)
    fill_full_size(reference)
    share(reference, model)
    return reference.eval(), model.eval()


def share(reference, model):
    state = {}
    for key, value in reference.state_dict().items():
        for theirs, ours in OURS.items():
            if key.startswith(theirs):
                state[ours + key[len(theirs) :]] = value
    model.load_state_dict(state, strict=True, assign=True)


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
        reference.to(torch.bfloat16)
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
