"""Our logits and hidden states against transformers', tiny and random: text, pictures, both, several, batched."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from m0.checkpoints.files import load_checkpoint
from m0.model.attention import Packing
from m0.model.rotary import mrope_positions
from tests.conftest import fill_randomly, tiny_config

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from tests.parity.reference import ReferenceReranker, float64_throughout

CASES = {
    "one text": [[12]],
    "texts of unequal length": [[40], [7], [23]],
    "one picture": [[5, (2, 2), 9]],
    "text and picture": [[30], [5, (3, 4), 9]],
    "several pictures": [[3, (2, 3), 4, (1, 5), 2], [11], [2, (4, 4), 1, (2, 2), 1, (3, 1), 6]],
    "pictures side by side": [[4, (2, 2), 2, (3, 3), 2, (1, 7), 5], [4, (6, 1), 3]],
}


def sample(config, runs, generator):
    """A random sequence with pictures where `runs` says so (grids in visual tokens)."""
    ids, patches, grids = [], [], []
    for run in runs:
        if isinstance(run, int):
            ids.append(torch.randint(1, 500, (run,), generator=generator))
        else:
            rows, columns = run
            ids.append(torch.full((rows * columns,), config.image_token_id))
            patches.append(torch.randn(4 * rows * columns, config.vision.patch_dim, generator=generator))
            grids.append((2 * rows, 2 * columns))
    ids.append(torch.tensor([config.score_token_id]))
    return torch.cat(ids), patches, grids, mrope_positions([*runs, 1])


def build(case, seed=0):
    config = tiny_config()
    generator = torch.Generator().manual_seed(seed)
    samples = [sample(config, runs, generator) for runs in CASES[case]]
    sequences = [ids for ids, _, _, _ in samples]
    patches = [patch for _, patches, _, _ in samples for patch in patches]
    grids = [grid for _, _, grids, _ in samples for grid in grids]
    positions = torch.cat([position for _, _, _, position in samples], dim=1)
    return config, sequences, torch.cat(patches) if patches else None, grids, positions


@pytest.fixture(scope="module", params=["hub", "nested"])
def pair(request, tmp_path_factory):
    """The reference, and our model loaded from the reference's weights, through real files of either layout."""
    config = tiny_config()
    reference = ReferenceReranker(config).eval()
    fill_randomly(reference, seed=1)
    directory = tmp_path_factory.mktemp(request.param)
    state = reference.hub_state() if request.param == "hub" else reference.nested_state()
    save_file({key: value.clone() for key, value in state.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config.to_dict(request.param)))
    return reference, load_checkpoint(directory)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_packed_logits_equal_the_padded_reference(pair, case, dtype, bound):
    reference, model = (part.to(dtype) for part in pair)
    _, sequences, patches, grids, positions = build(case)
    patches = patches if patches is None else patches.to(dtype)
    lifted = float64_throughout() if dtype is torch.float64 else torch.no_grad()
    with torch.no_grad(), lifted:
        theirs = reference(sequences, patches, grids)
    with torch.no_grad():
        ours = model(torch.cat(sequences), positions, [len(s) for s in sequences], patches, grids)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


def test_float64_without_lifting_is_bounded_by_the_references_float32_casts(pair):
    """The reference rounds norms, rotary and softmax to float32 even in a float64 model; ours does not."""
    reference, model = (part.double() for part in pair)
    _, sequences, patches, grids, positions = build("several pictures")
    with torch.no_grad():
        theirs = reference(sequences, patches.double(), grids)
        ours = model(torch.cat(sequences), positions, [len(s) for s in sequences], patches.double(), grids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["texts of unequal length", "several pictures"])
def test_hidden_states_after_every_block_and_layer(pair, case):
    reference, model = (part.float() for part in pair)
    _, sequences, patches, grids, positions = build(case)
    theirs = record(reference.model.visual.blocks, reference.model.language_model.layers)
    ours = record(model.vision.blocks, model.decoder.layers)
    lengths = [len(s) for s in sequences]
    with torch.no_grad():
        reference(sequences, patches, grids)
        features = None if patches is None else model.vision(patches, grids)
        packing = Packing(lengths, causal=True)
        model.decoder(model.embed(torch.cat(sequences), features), positions, packing, last_only=False)
    assert len(ours) == len(theirs) == 3 + (3 if patches is not None else 0)
    width = max(lengths)
    for name, state in ours.items():
        expected = theirs[name]
        if expected.ndim == 3:  # the decoder's: drop the padding on the left
            expected = torch.cat([expected[row, width - length :] for row, length in enumerate(lengths)])
        difference = (state - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4, (name, difference)


def record(blocks, layers):
    """Collects what each module returns, by kind and number."""
    states = {}
    for kind, modules in (("block", blocks), ("layer", layers)):
        for number, module in enumerate(modules):

            def keep(_module, _arguments, output, name=f"{kind} {number}"):
                states[name] = output[0] if isinstance(output, tuple) else output

            module.register_forward_hook(keep)
    return states


def test_gradients_equal_the_references(pair):
    reference, model = (part.float() for part in pair)
    _, sequences, patches, grids, positions = build("text and picture")
    reference.zero_grad()
    model.zero_grad()
    for parameter in model.parameters():  # loaded weights may be memory-mapped; training makes them its own
        parameter.data = parameter.data.clone()
    reference(sequences, patches, grids).sum().backward()
    model(torch.cat(sequences), positions, [len(s) for s in sequences], patches, grids).sum().backward()
    theirs = reference.nested_state()
    named = dict(reference.named_parameters())
    assert set(theirs) == set(named)
    compared = 0
    for ours_name, parameter in model.named_parameters():
        name = {"decoder": "model.language_model", "vision": "model.visual", "head": "score"}[ours_name.split(".")[0]]
        expected = named[name + ours_name[ours_name.index(".") :]].grad
        scale = expected.abs().max().clamp(min=1e-6)
        assert (parameter.grad - expected).abs().max() / scale < 2e-4, ours_name
        compared += 1
    assert compared == len(named)
