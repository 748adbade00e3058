"""Linear layers in 8 bits: close to the plain ones, and refused where plain ones are needed."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import m0.engine.quantize
from m0 import DocumentCache, Reranker
from m0.checkpoints.adapters.config import LoRAConfig
from m0.engine.batch import Batch
from m0.engine.quantize import (
    QUANTIZATIONS,
    Float8Linear,
    Int8Linear,
    has_kernels,
    is_quantized,
    quantize,
    run_batch,
    score_damage,
    select_unquantized,
)
from m0.errors import AdapterError, CheckpointError, InputError, M0Error
from m0.interp import attribution_patching
from tests.conftest import NANO, apart, final_states, noise

needs_kernels = pytest.mark.skipif(not has_kernels(), reason="PyTorch has no int8 kernels for this processor")
HOW = [pytest.param("int8", marks=needs_kernels), "int8-weights"]
DOCUMENTS = ["the network must be configured", "ein Apfel", noise(84, 56, 1), ["both", noise(56, 56, 2)]]


@pytest.fixture
def fresh(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float32")


@needs_kernels
@pytest.mark.parametrize("bias", [True, False])
def test_integers_are_summed_exactly(bias):
    """Against the same products in float64, from the rounded numbers themselves."""
    torch.manual_seed(0)
    linear, x = nn.Linear(300, 40, bias=bias), torch.randn(9, 300) * torch.rand(9, 1) * 50
    layer = Int8Linear(linear, weights_only=False)
    scales = linear.weight.abs().amax(1) / 127
    rounded = (linear.weight / scales[:, None]).round().double()
    steps = x.abs().amax(1, keepdim=True) / 127
    whole = (x / steps).round().double()
    expected = (whole @ rounded.T) * steps.double() * scales.double()
    expected = expected + linear.bias.double() if bias else expected
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-4, rtol=1e-5)
    assert (expected - linear(x)).abs().max() > 1e-3


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_near_the_plain_one(how, dtype):
    torch.manual_seed(1)
    linear, x = nn.Linear(256, 128).to(dtype), torch.randn(2, 5, 256).to(dtype)
    with torch.no_grad():
        plain, rounded = linear(x), Int8Linear(linear, how == "int8-weights")(x)
    assert rounded.dtype == dtype
    assert rounded.shape == plain.shape
    assert 1e-3 < (rounded - plain).float().norm() / plain.float().norm() < 2e-2


@needs_kernels
def test_one_huge_input_column_does_not_drown_the_others():
    torch.manual_seed(2)
    linear, x = nn.Linear(256, 128), torch.randn(50, 256)
    x[:, :40] = 100.0
    linear.weight.data[:, :40] = 0.0
    with torch.no_grad():
        plain = linear(x)
        errors = [
            float((Int8Linear(linear, False, largest)(x) - plain).norm() / plain.norm()) for largest in (None, x.abs().amax(0))
        ]
    assert errors[0] > 0.15
    assert errors[1] < 0.03


@pytest.mark.parametrize("how", HOW)
def test_groups_have_scales_of_their_own(how):
    """Inputs of very different size, with weights that make up for it: one scale for all loses the smaller ones."""
    torch.manual_seed(3)
    linear, x = nn.Linear(256, 128), torch.randn(300, 256)
    sizes = (2.5 * torch.randn(256)).exp()
    x *= sizes
    linear.weight.data /= sizes
    with torch.no_grad():
        plain = linear(x)
        errors = [
            float((Int8Linear(linear, how == "int8-weights", x.abs().amax(0), groups)(x) - plain).norm() / plain.norm())
            for groups in (1, 15)
        ]
    assert errors[1] < 0.02
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("how", HOW)
def test_scores_stay_near(fresh, how):
    pairs = [("network", document) for document in DOCUMENTS]
    before, states = fresh.score(pairs), final_states(fresh, pairs)
    fresh.quantize(how, unquantized_share=0)
    assert is_quantized(fresh.model)
    assert apart(final_states(fresh, pairs), states) < 0.03
    layer = fresh.model.decoder.layers[-1].mlp.down_proj
    with layer.register_forward_hook(lambda _, __, out: 0 * out):  # what a broken layer would do
        assert apart(final_states(fresh, pairs), states) > 0.05
    assert not any(
        isinstance(module, nn.Linear) for part in (fresh.model.decoder, fresh.model.vision) for module in part.modules()
    )
    assert fresh.score(pairs) == pytest.approx(before, abs=5e-3)
    assert fresh.score(pairs) != before
    assert [result.score for result in fresh.rank("network", DOCUMENTS)]


@pytest.mark.parametrize("how", HOW)
def test_a_batch_scores_as_one_pair_at_a_time(fresh, how):
    """Each token has a scale of its own, so what else is in the batch does not matter."""
    fresh.quantize(how)
    pairs = [("network", document) for document in DOCUMENTS]
    assert fresh.logits(pairs) == pytest.approx([fresh.logits([pair])[0] for pair in pairs], abs=1e-5)


@pytest.mark.parametrize("how", HOW)
def test_kept_documents_go_with_it(fresh, how):
    document = "the network must be configured after the system was installed " * 8
    fresh.prepare([document])
    plain = fresh.logits([("network", document)])
    fresh.quantize(how)
    rounded = fresh.logits([("network", document)])
    assert rounded != plain
    fresh.documents.max_bytes = 0
    fresh.documents.clear()
    assert fresh.logits([("network", document)]) == pytest.approx(rounded, abs=1e-4)


@pytest.mark.parametrize("plain", [0, 0.3])
def test_what_needs_plain_weights_is_refused(fresh, tmp_path, plain):
    fresh.quantize("int8-weights", unquantized_share=plain)
    assert sum(isinstance(m, nn.Linear) for m in fresh.model.decoder.modules()) == (
        0 if plain == 0 else pytest.approx(5, abs=4)
    )
    with pytest.raises(CheckpointError, match="quantized"):
        fresh.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="quantized"):
        fresh.adapters.add("new", LoRAConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InputError, match="gradients"):
        fresh.explain("network", "a document", method="attnlrp")
    with pytest.raises(InputError, match="gradients"):
        attribution_patching(fresh, ("network", "a document"), ("red", "a document"))
    assert "8 bits" in str(fresh.explain("network", "a document", method="occlusion"))
    with pytest.raises(InputError, match="already"):
        fresh.quantize("int8-weights")
    with pytest.raises(InputError, match="8 bits"):
        _ = next(module for module in fresh.model.modules() if isinstance(module, Int8Linear)).weight


def test_arguments(fresh, tiny_directory):
    with pytest.raises(InputError, match="int4"):
        quantize(fresh.model, "int4")
    fresh.adapters.add("new", LoRAConfig(r=2))
    before = fresh.logits([("network", DOCUMENTS[2])])
    with pytest.raises(InputError, match="adapter"):
        fresh.quantize("int8-weights")
    assert not is_quantized(fresh.model)
    assert fresh.logits([("network", DOCUMENTS[2])]) == before
    for how in [how for how in QUANTIZATIONS if how != "float8" and (how != "int8" or has_kernels())]:
        assert is_quantized(Reranker.from_pretrained(tiny_directory, quantization=how).model)


@needs_kernels
def test_examples_are_seen_whole(fresh, tiny_directory, tmp_path):
    """Also where their documents are kept."""
    other = Reranker.from_pretrained(tiny_directory, dtype="float32")
    other.quantize("int8", [("network", DOCUMENTS[3])])
    fresh.documents = DocumentCache(folder=tmp_path)
    fresh.prepare(DOCUMENTS)
    files = len(list(tmp_path.iterdir()))
    fresh.quantize("int8", [("network", DOCUMENTS[3])])
    assert len(list(tmp_path.iterdir())) == files
    pairs = [("red", "a document"), ("red", DOCUMENTS[2])]
    assert fresh.logits(pairs) == pytest.approx(other.logits(pairs), abs=1e-6)


def test_processors_that_overflow_are_refused(tiny_directory):
    """Without VNNI, oneDNN adds up in 16 bits."""
    code = "from m0.engine.quantize import has_kernels; print(has_kernels())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("how", HOW)
def test_a_copy_scores_the_same_in_other_types_nearly(fresh, how):
    fresh.quantize(how)
    pairs = [("network", document) for document in DOCUMENTS]
    before = fresh.logits(pairs)
    original, fresh.model = fresh.model, copy.deepcopy(fresh.model)
    assert fresh.model is not original
    assert fresh.logits(pairs) == before
    layer = next(module for module in fresh.model.modules() if isinstance(module, Int8Linear))
    fresh.model.double()
    assert layer.scales.dtype == torch.float32
    assert fresh.logits(pairs) == pytest.approx(before, abs=0.05)
    assert fresh.model.float().to("cpu").decoder.embed_tokens.weight.dtype == torch.float32
    if how == "int8":
        with pytest.raises(InputError, match="stays on the CPU"):
            layer.to("meta")
    else:
        assert layer.to("meta").scales.device.type == "meta"


def float8_product(linear, x):
    """The same rounding, the product in float64."""
    scales, steps = linear.weight.abs().amax(1) / 448, x.abs().amax(-1, keepdim=True) / 448
    weight = (linear.weight / scales[:, None]).to(torch.float8_e4m3fn).double() * scales[:, None]
    return ((x / steps).to(torch.float8_e4m3fn).double() * steps) @ weight.T + linear.bias


def test_a_float8_layer_against_the_same_products_in_float64():
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48), torch.randn(2, 9, 64) * torch.rand(2, 9, 1) * 50
    layer = Float8Linear(linear)
    expected, found = float8_product(linear, x), layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-3)
    assert (found - linear(x)).abs().max() > 0
    assert layer.double().scales.dtype == torch.float32


def test_float8_scores_stay_near(monkeypatch, fresh):
    pairs = [("network", document) for document in DOCUMENTS]
    before, states = fresh.score(pairs), final_states(fresh, pairs)
    with pytest.raises(InputError, match="NVIDIA GPU"):
        fresh.quantize("float8")
    monkeypatch.setattr(m0.engine.quantize, "has_float8", lambda device: True)
    monkeypatch.setattr(m0.engine.quantize, "FLOAT8_MULTIPLE", 8)
    fresh.quantize("float8")
    assert fresh.score(pairs) == pytest.approx(before, abs=0.05)
    assert apart(final_states(fresh, pairs), states) < 0.15
    with pytest.raises(InputError, match="already"):
        fresh.quantize("float8")


def test_layers_of_few_inputs():
    for size in (1, 5, 16, 17):
        linear, x = nn.Linear(size, 3), torch.randn(4, size)
        for groups in (1, 4, 100):
            with torch.no_grad():
                torch.testing.assert_close(Int8Linear(linear, True, x.abs().amax(0), groups)(x), linear(x), atol=0.02, rtol=0)


@needs_kernels
def test_what_8_bits_cannot_do_is_said(fresh, tiny_directory):
    with fresh.record("decoder.layers.0.mlp.pre"), pytest.raises(InputError, match="inside record"):
        fresh.quantize("int8")
    fresh.quantize("int8")
    with pytest.raises(InputError, match="pickled"):
        pickle.dumps(fresh.model)
    with pytest.raises(InputError, match="cannot be loaded"):
        fresh.model.load_state_dict(fresh.model.state_dict())


@needs_kernels
def test_models_that_differ_in_rounded_weights_differ_in_fingerprint(tiny_directory):
    one, other = (Reranker.from_pretrained(tiny_directory, dtype="float32") for _ in range(2))
    weight = other.model.decoder.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 3] -= weight[0, 3].sign() * 0.5 * weight[0].abs().max()
    for reranker in (one, other):
        quantize(reranker.model, "int8")
    layers = [reranker.model.decoder.layers[0].mlp.up_proj for reranker in (one, other)]
    assert torch.equal(layers[0].scales, layers[1].scales)
    assert one.fingerprint() != other.fingerprint()


def test_recording_works(fresh):
    fresh.quantize("int8-weights")
    with fresh.record("decoder.layers.*.attention.pattern") as cache:
        fresh.score([("network", "a document")])
    assert len(cache.names) == 3


def layers_of(model):
    parts = {"vision": (model.vision.blocks, model.vision.merger), "decoder": (model.decoder.layers,)}
    return {
        part: {
            f"{part}.{name}": m for some in roots for name, m in some.named_modules() if isinstance(m, (nn.Linear, Int8Linear))
        }
        for part, roots in parts.items()
    }


def test_damage_is_what_small_steps_of_each_token_show(fresh):
    """By differences: each token's output is moved a little towards the rounded one, alone."""
    fresh.model.double()
    two = [fresh.encode(query, DOCUMENTS[0]) for query in ("network", "red")]  # of one document, each computed for itself
    batches = [Batch.of(two, share=False), Batch.of([fresh.encode("network", DOCUMENTS[3])])]
    some = [fresh.model.decoder.layers[0].mlp.down_proj, fresh.model.decoder.layers[2].self_attn.k_proj]
    some.append(fresh.model.vision.blocks[1].attn.qkv)
    rounded = {linear: Int8Linear(linear, weights_only=True) for linear in some}
    found = score_damage(fresh.model, rounded, batches)
    step = 1e-3
    for linear in some:
        squares = 0.0
        for batch in batches:
            with torch.no_grad():
                plain, shapes = run_batch(fresh.model, batch).sum(), []
                with linear.register_forward_hook(lambda _, __, out, shapes=shapes: shapes.append(len(out))):
                    run_batch(fresh.model, batch)
                for token in range(shapes[0] if shapes else 0):

                    def moved(layer, args, out, token=token):
                        out = out.clone()
                        out[token] += step * (rounded[layer](args[0])[token] - out[token])
                        return out

                    with linear.register_forward_hook(moved):
                        squares += float((run_batch(fresh.model, batch).sum() - plain) / step) ** 2
        assert squares > 0
        assert found[linear] == pytest.approx(squares**0.5, rel=1e-2)
    assert not any(linear._forward_hooks for linear in some)
    fresh.model.requires_grad_(False)
    assert score_damage(fresh.model, rounded, batches) == pytest.approx(found)


def test_what_is_worth_keeping():
    big, small, useless = nn.Linear(8, 10), nn.Linear(2, 5), nn.Linear(2, 5)
    damage = {big: 2.0, small: 1.0, useless: 0.01}  # squared 0.05, 0.1 and 0.00001 a weight
    assert select_unquantized(damage, 0.1) == {small}
    assert select_unquantized(damage, 0.9) == {small, big}
    assert select_unquantized(damage, 0.85) == {small, useless}  # the big one has no room beside the small one
    assert select_unquantized(damage, 0.0) == set()
    assert select_unquantized({small: 0.0, useless: 1.0}, 1.0) == {useless}  # the examples had no picture, say


@pytest.mark.parametrize("how", HOW)
def test_the_layers_that_would_hurt_most_stay_plain(how):
    pairs = [(query, document) for query in ("Apfel", "network") for document in DOCUMENTS]
    errors, kept = [], {}
    for plain in (0, 0.2):
        nano = Reranker.from_pretrained(NANO, dtype="float32")
        before = torch.tensor(nano.score(pairs))
        nano.quantize(how, unquantized_share=plain)
        errors.append(float((torch.tensor(nano.score(pairs)) - before).abs().mean()))
        for part, layers in layers_of(nano.model).items():
            sizes = [linear.in_features * linear.out_features for linear in layers.values()]
            left = [linear.weight.numel() for linear in layers.values() if isinstance(linear, nn.Linear)]
            kept[part, plain] = sum(left) / sum(sizes)
    assert kept["vision", 0] == kept["decoder", 0] == 0
    assert 0.1 < kept["vision", 0.2] <= 0.2
    assert 0.15 < kept["decoder", 0.2] <= 0.2
    assert errors[1] < 0.5 * errors[0]
    assert nano.model.decoder.embed_tokens.weight.grad is None


def test_whole_numbers_do_not_overflow_float16():
    """Their sums are far larger than the product: 127 for each input."""
    linear, x = nn.Linear(1024, 8, bias=False), torch.ones(3, 1024, dtype=torch.float16)
    linear.weight.data.fill_(0.05)
    for groups in (1, 4):
        found = Int8Linear(linear, True, torch.ones(1024), groups)(x)
        torch.testing.assert_close(found, torch.full((3, 8), 51.2, dtype=torch.float16), rtol=2e-3, atol=0)


@pytest.mark.parametrize("how", HOW)
def test_with_gradients_switched_on(fresh, how):
    """As whoever calls the model itself may have them."""
    fresh.quantize(how, unquantized_share=0)
    batch = Batch.of([fresh.encode("network", document) for document in DOCUMENTS])
    with torch.no_grad():
        expected = run_batch(fresh.model, batch)
    assert torch.equal(run_batch(fresh.model, batch).detach(), expected)


def test_examples_whose_scores_are_no_numbers(fresh):
    fresh.model.decoder.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(M0Error, match="score is not a number"):
        fresh.quantize("int8-weights")
    assert not is_quantized(fresh.model)


@pytest.mark.parametrize("how", HOW)
def test_a_third_stays_plain_without_a_word(fresh, how):
    with torch.inference_mode():
        fresh.quantize(how)
    kinds = [type(layer) for layers in layers_of(fresh.model).values() for layer in layers.values()]
    assert 0 < kinds.count(Int8Linear) < len(kinds)


@pytest.mark.parametrize("plain", [-0.1, 1, 1.5, True, "much", float("nan")])
def test_a_share_that_is_none(fresh, plain):
    with pytest.raises(InputError, match=r"unquantized_share is .* at least 0 and less than 1"):
        fresh.quantize("int8-weights", unquantized_share=plain)
    assert not is_quantized(fresh.model)


def test_the_share_by_its_old_name(fresh):
    with pytest.warns(DeprecationWarning, match="plain is now unquantized_share") as caught:
        fresh.quantize("int8-weights", plain=0)
    assert [warning.filename for warning in caught if warning.category is DeprecationWarning] == [__file__]
    assert all(isinstance(layer, Int8Linear) for layers in layers_of(fresh.model).values() for layer in layers.values())


def test_the_share_by_both_names_is_refused(fresh):
    with pytest.raises(InputError, match="by its old name, plain; give it once"):
        fresh.quantize("int8-weights", unquantized_share=0.3, plain=0.3)
    assert not is_quantized(fresh.model)


def test_shares_without_examples_are_refused(fresh, monkeypatch):
    with pytest.raises(InputError, match="there are none"):
        quantize(fresh.model, "int8-weights", unquantized_share=0.1)
    with pytest.raises(InputError, match="empty"):
        fresh.quantize("int8-weights", examples=[], unquantized_share=0.1)
    monkeypatch.setattr(m0.engine.quantize, "has_float8", lambda device: True)
    with pytest.raises(InputError, match="float8 leaves no layers unquantized"):
        fresh.quantize("float8", unquantized_share=0.1)
    assert not is_quantized(fresh.model)
