"""Every way of computing a score against transformers with the same trained weights, m0-nano's: what makes it fast must not change it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import m0.model.linear
from m0 import Cascade, DocumentCache, Reranker
from m0.engine.quantize import has_kernels
from tests.conftest import NANO

pytest.importorskip("transformers", reason="needs the extra 'parity'")
from tests.parity.reference import ReferenceReranker, share_back

EXACT = 3e-5
"""Of a logit, in float32, where logits go from -5 to 5: two ways of summing."""
QUERIES = ["installing the system on a disk", "Kompass", {"image": Image.new("RGB", (90, 90), "orange")}]


def documents() -> list:
    sheet = Image.new("RGB", (140, 84), "navy")
    return [
        "To install the system, write the image to a disk and start the computer from it. " * 6,
        "a needle that points north",
        sheet,
        ["Where the disk is shown in the figure:", sheet.rotate(90), "it has been partitioned by hand. " * 12],
        "die Nadel zeigt nach Norden",
    ]


@pytest.fixture(scope="module")
def pairs():
    return [(query, document) for query in QUERIES for document in documents()]


def fresh(**settings) -> Reranker:
    return Reranker.from_pretrained(NANO, dtype=settings.pop("dtype", "float32"), **settings)


def by_transformers(pairs, dtype) -> torch.Tensor:
    ours = fresh()
    reference = ReferenceReranker(ours.model.config).eval()
    share_back(ours.model, reference)
    for parameter in reference.parameters():  # its frequencies stay as they are
        parameter.data = parameter.data.to(dtype)
    encodings = [ours.encode({"text": q} if isinstance(q, str) else q, d) for q, d in pairs]
    found = []
    with torch.inference_mode():
        for encoding in encodings:
            pictures = encoding.pictures
            patches = torch.cat([picture.patches for picture in pictures]).to(dtype) if pictures else None
            found.append(reference([encoding.token_ids], patches, [picture.grid for picture in pictures])[0])
    return torch.stack(found).float()


@pytest.fixture(scope="module")
def theirs(pairs):
    found = by_transformers(pairs, torch.float32)
    assert found.std() > 0.3  # scores that say something
    return found


def one_by_one(pairs, _):
    ours = fresh()
    ours.documents = DocumentCache(max_bytes=0)
    return [ours.logits([pair])[0] for pair in pairs]


def in_one_call(pairs, _):
    return fresh().logits(pairs)


def in_small_batches(pairs, _):
    return fresh().logits(pairs, batch_tokens=64)


def with_documents_kept(pairs, _):
    ours = fresh()
    ours.prepare(documents())
    found = ours.logits(pairs)
    assert ours.documents.counts.hits
    return found


def with_documents_on_disk(pairs, folder):
    for _ in range(2):  # the second process finds what the first has written
        ours = fresh()
        ours.documents = DocumentCache(folder=folder)
        found = ours.logits(pairs)
    assert ours.documents.counts.read
    assert not ours.documents.counts.computed
    return found


def compiled(pairs, _):
    try:
        torch.compile(lambda x: x + 1)(torch.ones(3))
    except Exception as error:  # whatever a machine without a compiler gives
        pytest.skip(f"torch.compile does not work here: {error}")
    ours = fresh()
    ours.compile()
    return ours.logits(pairs)


def ranked(pairs, _, **settings):
    """In the pairs' order."""
    ours, found = fresh(), []
    for query in QUERIES:
        ranking = ours.rank(query, documents(), **settings)
        assert not any(result.approximate for result in ranking)
        found += [result.logit for result in sorted(ranking, key=lambda result: result.index)]
    return found


def after_a_cheap_look(pairs, folder):
    return ranked(pairs, folder, cascade=Cascade(keep=len(documents()), depth=2))


@pytest.mark.parametrize(
    "way",
    [
        one_by_one,
        in_one_call,
        in_small_batches,
        with_documents_kept,
        with_documents_on_disk,
        compiled,
        ranked,
        after_a_cheap_look,
    ],
)
def test_float32(pairs, theirs, way, tmp_path):
    torch.testing.assert_close(torch.tensor(way(pairs, tmp_path)), theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("faster", [True, False], ids=["multiplied in float32", "multiplied in bfloat16"])
def test_bfloat16_errs_no_more_than_the_reference(pairs, theirs, faster, monkeypatch):
    monkeypatch.setattr(m0.model.linear, "float32_is_faster", lambda: faster)
    monkeypatch.setattr(m0.model.linear, "MIN_UPCAST_ROWS", 1)
    ours = torch.tensor(fresh(dtype="bfloat16").logits(pairs))
    reference = by_transformers(pairs, torch.bfloat16)
    assert (ours - theirs).square().mean().sqrt() < 1.25 * (reference - theirs).square().mean().sqrt()


def change_of_score(ours, pairs, theirs) -> float:
    """Mean change of a relevance."""
    return float((torch.sigmoid(torch.tensor(ours.logits(pairs)) - 2.65) - torch.sigmoid(theirs - 2.65)).abs().mean())


@pytest.mark.parametrize(
    ("how", "groups", "bound"),
    [
        pytest.param("int8", 1, 0.02, marks=pytest.mark.skipif(not has_kernels(), reason="no int8 kernels here")),
        ("int8-weights", 1, 0.04),
        ("int8-weights", 16, 0.01),
    ],
)
def test_in_8_bits(pairs, theirs, how, groups, bound):
    ours = fresh()
    ours.quantize(how, groups=groups)
    change = change_of_score(ours, pairs, theirs)
    assert 1e-4 < change < bound


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.02), ("int8", 0.04)])
def test_kept_with_less_precision(pairs, theirs, precision, bound):
    ours = fresh()
    ours.documents = DocumentCache(precision=precision)
    ours.prepare(documents())
    change = change_of_score(ours, pairs, theirs)
    assert ours.documents.counts.hits
    assert 1e-4 < change < bound
