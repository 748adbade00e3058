"""The whole model: packing, gradients, types, compilation, and what does not fit together."""

import pytest
import torch

from m0.errors import InputError
from m0.model.attention import Packing
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import mrope_positions
from tests.conftest import fill_randomly, tiny_config

SEQUENCES = [[6], [2, (2, 3), 5], [3, (1, 2), 1, (4, 2), 3], [12], [6]]


def example(config, runs, generator):
    ids, patches, grids = [], [], []
    for run in runs:
        if isinstance(run, int):
            ids.append(torch.randint(1, 500, (run,), generator=generator))
        else:
            ids.append(torch.full((run[0] * run[1],), config.image_token_id))
            patches.append(torch.randn(4 * run[0] * run[1], config.vision.patch_dim, generator=generator))
            grids.append((2 * run[0], 2 * run[1]))
    return torch.cat(ids), mrope_positions(runs), patches, grids


@pytest.fixture
def examples(config):
    generator = torch.Generator().manual_seed(5)
    return [example(config, runs, generator) for runs in SEQUENCES]


def score(model, examples, dtype=torch.float32):
    ids, positions, patches, grids = zip(*examples, strict=True)
    patches = [patch for some in patches for patch in some]
    return model(
        torch.cat(ids),
        torch.cat(positions, dim=1),
        [len(i) for i in ids],
        torch.cat(patches).to(dtype) if patches else None,
        [grid for some in grids for grid in some],
    )


@torch.no_grad()
def test_packed_equals_one_at_a_time(model, examples):
    packed = score(model, examples)
    single = torch.cat([score(model, [example]) for example in examples])
    torch.testing.assert_close(packed, single, rtol=0, atol=1e-5)
    assert packed.std() > 1e-3


@torch.no_grad()
def test_the_same_input_gives_the_same_bits(model, examples):
    assert torch.equal(score(model, examples), score(model, examples))


@torch.no_grad()
def test_a_document_shared_by_its_queries_equals_whole_pairs(model, config):
    generator = torch.Generator().manual_seed(6)
    runs = [4, (2, 2), 3]
    ids, positions, patches, grids = example(config, runs, generator)
    queries = [torch.randint(1, 500, (n,), generator=generator) for n in (3, 5)]
    follow = [mrope_positions([*runs, len(query)])[:, len(ids) :] for query in queries]
    whole = [
        model(torch.cat([ids, query]), torch.cat([positions, after], 1), [len(ids) + len(query)], patches[0], grids)
        for query, after in zip(queries, follow, strict=True)
    ]
    shared = model(
        torch.cat([ids, *queries]),
        torch.cat([positions, *follow], dim=1),
        [len(ids), 3, 5],
        patches[0],
        grids,
        prefix_of=[None, 0, 0],
    )
    torch.testing.assert_close(shared[1:], torch.cat(whole), rtol=0, atol=1e-6)


def test_the_old_name_of_the_shared_prefixes_works(model):
    arguments = torch.arange(10, 16), mrope_positions([2, 2, 2]), [2, 2, 2]
    expected = model(*arguments, prefix_of=[None, 0, 0])
    with pytest.warns(DeprecationWarning, match="parents is now prefix_of") as caught:
        assert torch.equal(model(*arguments, parents=[None, 0, 0]), expected)
    assert caught[0].filename == __file__
    assert not torch.equal(model(*arguments), expected)
    with pytest.warns(DeprecationWarning, match="parents"), pytest.raises(InputError, match="give it once"):
        model(*arguments, prefix_of=[None, 0, 0], parents=[None, 0, 0])


def test_last_layer_for_the_last_token_only_changes_nothing(model, examples):
    ids, positions, _, _ = examples[3]
    packing = Packing([len(ids)], causal=True)
    with torch.no_grad():
        embeddings = model.embed(ids, None)
        everything = model.decoder(embeddings, positions, packing, last_only=False)
        last = model.decoder(embeddings, positions, packing)
    assert everything.shape == (12, 64)
    torch.testing.assert_close(last, everything[-1:], rtol=0, atol=1e-6)


def test_every_parameter_gets_a_gradient(model, examples):
    score(model, examples).sum().backward()
    # In the last layer a key's bias shifts all scores of a query alike, so its gradient is zero but for rounding.
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_gradients_are_the_slopes(examples):
    """Finite differences in float64, through text and picture, down to the pixels."""
    model = RerankerModel(tiny_config())
    fill_randomly(model)
    model = model.double()
    ids, positions, patches, grids = examples[1]
    pixels = patches[0].double().requires_grad_()

    def logit(x):
        return model(ids, positions, [len(ids)], x, grids)

    (gradient,) = torch.autograd.grad(logit(pixels).sum(), pixels)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        step = 1e-4
        with torch.no_grad():
            slope = (logit(pixels + step * direction) - logit(pixels - step * direction)) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope.squeeze(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@torch.no_grad()
def test_types(model, examples, dtype, bound):
    exact = score(model, examples)
    logits = score(model.to(dtype), examples, dtype)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=bound)


@torch.no_grad()
def test_compiled_gives_the_same(model, examples):
    expected = score(model, examples[:2])
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(score(compiled, examples[:2]), expected, rtol=0, atol=1e-5)


def test_what_does_not_fit_together_is_refused(model, examples):
    ids, positions, patches, grids = examples[1]
    with pytest.raises(InputError, match="6 picture tokens, but the pictures give 0"):
        model(ids, positions, [len(ids)])
    with pytest.raises(InputError, match="lengths add up to 3"):
        model(ids, positions, [3], patches[0], grids)


def test_an_empty_sequence_is_refused(model):
    with pytest.raises(InputError, match="a token at least"):
        model(torch.arange(3), torch.arange(3).expand(3, 3), [0, 3])
