"""On a GPU: every way of computing a score against float32 on the CPU, which transformers agrees with (tests/parity)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from m0 import Cascade, DocumentCache, Reranker, RerankerModel
from m0.engine.quantize import Float8Linear, has_float8
from m0.errors import InputError
from m0.interp.edits import zero
from m0.model.attention import Attend, Packing, has_varlen_kernel
from tests.conftest import NANO, fill_randomly, noise, tiny_config
from tests.engine.test_quantize import float8_product
from tests.model.test_attention import CASES, allowed_by, textbook
from tests.train.conftest import colours, configured

__all__ = ["colours", "configured"]  # fixtures

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

QUERIES = ["installing the system on a disk", "Kompass", {"image": noise(90, 90, 3)}]
DOCUMENTS = [
    "To install the system, write the image to a disk and start the computer from it. " * 6,
    "a needle that points north",
    noise(140, 84, 1),
    ["Where the disk is shown in the figure:", noise(84, 140, 2), "it has been partitioned by hand. " * 12],
    "die Nadel zeigt nach Norden",
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]
EXACT = 1e-4
"""Of a logit, in float32, where logits go from -5 to 5."""


def fresh(device="cuda", dtype="float32", **settings) -> Reranker:
    return Reranker.from_pretrained(NANO, dtype=dtype, device=device, **settings)


@pytest.fixture(scope="module")
def expected():
    found = torch.tensor(fresh("cpu").logits(PAIRS))
    assert found.std() > 0.3
    return found


@pytest.fixture(scope="module")
def rounding(expected):
    """Root mean square error of a logit in 16 bits on the CPU, by type."""
    return {dtype: error(fresh("cpu", dtype).logits(PAIRS), expected) for dtype in ("bfloat16", "float16")}


def error(found, expected) -> float:
    return float((torch.as_tensor(found) - expected).square().mean().sqrt())


def in_one_call(ours, _):
    return ours.logits(PAIRS)


def one_by_one(ours, _):
    ours.documents = DocumentCache(max_bytes=0)
    return [ours.logits([pair])[0] for pair in PAIRS]


def in_small_batches(ours, _):
    return ours.logits(PAIRS, batch_tokens=64)


def with_documents_kept(ours, _):
    ours.prepare(DOCUMENTS)
    found = ours.logits(PAIRS)
    assert ours.documents.counts.hits
    return found


def with_documents_on_disk(ours, folder):
    ours.documents = DocumentCache(folder=folder)
    ours.prepare(DOCUMENTS)
    ours.documents = DocumentCache(folder=folder)
    found = ours.logits(PAIRS)
    assert ours.documents.counts.read
    assert not ours.documents.counts.computed
    return found


def compiled(ours, _):
    """As where there is much to do: nothing is too small to be compiled, and no picture to have a kernel prepared."""
    ours.documents = DocumentCache(max_bytes=0)
    ours.compile()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m0.model.fused.MIN_COMPILED_NUMBERS", 0)
        patch.setattr("m0.model.attention.MIN_LONG_TOKENS", 4)
        found = [ours.logits([pair])[0] for pair in PAIRS]
    assert counters["frames"]["ok"]
    return found


def after_a_cheap_look(ours, _):
    found = []
    for query in QUERIES:
        ranking = ours.rank(query, DOCUMENTS, cascade=Cascade(keep=len(DOCUMENTS), depth=2))
        found += [result.logit for result in sorted(ranking, key=lambda result: result.index)]
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "way",
    [
        in_one_call,
        one_by_one,
        in_small_batches,
        with_documents_kept,
        with_documents_on_disk,
        compiled,
        after_a_cheap_look,
    ],
)
def test_every_way(expected, rounding, way, dtype, tmp_path):
    ours = fresh(dtype=dtype)
    assert ours.model.device.type == "cuda"
    found = way(ours, tmp_path)
    if dtype == "float32":
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=EXACT)
    else:
        assert 0 < error(found, expected) < 1.5 * rounding[dtype]


def test_a_gpu_is_found_without_being_told():
    ours = Reranker.from_pretrained(NANO)
    assert ours.model.device.type == "cuda"
    assert ours.model.dtype == torch.bfloat16
    ranking = ours.rank("Kompass", DOCUMENTS)
    assert ranking[0].index in (1, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("lengths", "causal", "parents"), CASES)
def test_the_kernel_for_any_length_agrees_with_its_gradients(lengths, causal, parents, dtype):
    packing, on_cpu = Packing(lengths, causal, parents, device="cuda"), []
    for heads in (4, 2, 2):
        on_cpu.append(torch.randn(sum(lengths), heads, 64).to(dtype).float().requires_grad_())
    on_gpu = [x.detach().cuda().to(dtype).requires_grad_() for x in on_cpu]
    assert has_varlen_kernel(on_gpu[0])
    wanted, found = textbook(*on_cpu, allowed_by(lengths, causal, parents)), Attend()(*on_gpu, packing)
    torch.testing.assert_close(found.float().cpu(), wanted, atol=3e-2, rtol=3e-2)
    weights = torch.randn(wanted.shape)
    (wanted * weights).sum().backward()
    (found * weights.cuda()).float().sum().backward()
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours.grad.float().cpu(), theirs.grad, atol=6e-2, rtol=6e-2)
    if causal:
        last = Attend()(on_gpu[0][packing.last_rows], *on_gpu[1:], packing, last_only=True)
        torch.testing.assert_close(last.float().cpu(), wanted[packing.last_rows.cpu()], atol=3e-2, rtol=3e-2)


def test_pictures_of_many_sizes_agree():
    """With and without kernels prepared for those of one size."""
    for lengths in ([1024] * 4, [1024, 256, 1024, 256, 4], [64 + 4 * i for i in range(20)]):
        packing = Packing(lengths, causal=False, device="cuda")
        on_cpu = [torch.randn(sum(lengths), 2, 80).bfloat16() for _ in range(3)]
        wanted = textbook(*(x.float() for x in on_cpu), allowed_by(lengths, False, [None] * len(lengths)))
        attend = Attend()
        for attend.prepares in (False, True):
            found = attend(*(x.cuda() for x in on_cpu), packing)
            torch.testing.assert_close(found.float().cpu(), wanted, atol=2e-2, rtol=2e-2)


def test_a_float8_layer_multiplies_as_it_should():
    if not has_float8(torch.device("cuda")):
        pytest.skip("this GPU does not multiply in float8")
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 48), torch.randn(37, 64) * torch.rand(37, 1) * 50
    expected = float8_product(linear, x)
    found = Float8Linear(linear.cuda())(x.cuda())
    torch.testing.assert_close(found.cpu().double(), expected, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize(("how", "bound"), [("int8-weights", 0.04), ("float8", 0.1)])
def test_in_8_bits(expected, how, bound, monkeypatch):
    if how == "float8" and not has_float8(torch.device("cuda")):
        pytest.skip("this GPU does not multiply in float8")
    ours = fresh(dtype="bfloat16" if how == "float8" else "float32", quantization=how)

    def change():
        return (torch.sigmoid(torch.tensor(ours.logits(PAIRS)) - 2.65) - torch.sigmoid(expected - 2.65)).abs().mean()

    assert 1e-4 < change() < bound
    if how == "float8":
        ours.documents = DocumentCache(max_bytes=0)
        ours.compile()
        monkeypatch.setattr("m0.model.fused.MIN_COMPILED_NUMBERS", 0)
        assert 1e-4 < change() < bound


def test_int8_stays_on_the_cpu():
    with pytest.raises(InputError, match="int8 needs a CPU"):
        fresh(quantization="int8")


def test_looking_inside_and_changing():
    seen, edited = [], []
    for reranker in (fresh(), fresh("cpu")):
        with reranker.record("decoder.layers.*.attention.pattern", "vision.blocks.*.residual.before") as cache:
            reranker.logits(PAIRS[:4])
        # Pairs 2 and 3 show a picture.
        seen.append([cache[name][pair].cpu() for name in cache for pair in ((2, 3) if "vision" in name else (0, 3))])
        with reranker.edit({"decoder.layers.1.attention.z": zero}, heads=[1]):
            edited.append(torch.tensor(reranker.logits(PAIRS[:4])))
    assert seen[0]
    for found, wanted in zip(*seen, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(*edited, rtol=0, atol=EXACT)


@pytest.mark.parametrize("method", ["frozen_gradient", "attnlrp", "gradient_input"])
def test_explanations(method):
    for query, document in (PAIRS[0], PAIRS[3]):
        wanted = fresh("cpu").explain(query, document, method=method).tokens
        found = fresh().explain(query, document, method=method).tokens
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-2, atol=1e-3)


def test_explanations_in_16_bits():
    wanted = fresh("cpu").explain(*PAIRS[0]).tokens
    found = fresh(dtype="bfloat16").explain(*PAIRS[0]).tokens.cpu().to(wanted)
    assert torch.corrcoef(torch.stack([found, wanted]))[0, 1] > 0.9


def test_training_goes_as_on_the_cpu(configured):
    from m0.train import train

    losses = []
    for device in ("cpu", "cuda"):
        config = configured(output=device, device=device, dtype="float32")
        train(config)
        with (Path(config.output) / "curves.csv").open(encoding="utf-8") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@torch.no_grad()
def test_the_bare_model():
    """All at once, without a prompt, as one calls a module."""
    torch.manual_seed(0)
    model = RerankerModel(tiny_config()).eval()
    fill_randomly(model)
    ids, positions = torch.randint(0, 500, (19,)), torch.arange(19).expand(3, 19)
    expected = model(ids, positions, [7, 12])
    torch.testing.assert_close(model.cuda()(ids.cuda(), positions.cuda(), [7, 12]).cpu(), expected, rtol=0, atol=1e-4)
