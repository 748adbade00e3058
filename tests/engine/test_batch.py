"""Packing with shared documents: the same logits and gradients as every prompt on its own."""

import pytest
import torch

from m0.engine.batch import Batch
from m0.inputs.images import prepare_picture
from tests.conftest import noise

QUERIES = ["short", "a rather longer query than that", "été", "!", "short"]
DOCUMENTS = ["a plain document of some words", "x", ".", "ends in punctuation!", "ends in a newline\n", "日本語の文書です。"]


def features(model, batch):
    if not batch.pictures:
        return None
    return model.vision(torch.cat([p.patches for p in batch.pictures]), [p.grid for p in batch.pictures])


def scored(model, batch):
    return batch.score(model, features(model, batch))


def prompts(reranker, queries, documents):
    return [reranker.encode(query, document) for document in documents for query in queries]


@pytest.fixture(scope="module")
def mixed():
    one, two = prepare_picture(noise(84, 56, seed=1)), prepare_picture(noise(56, 112, seed=2))
    return [one, [two, "with words after"], ["words before", one, two], "only words, and a good many of them so that it pays"]


def test_shared_logits(tiny, mixed):
    documents = [*DOCUMENTS, *mixed]
    queries = [*QUERIES, mixed[0]]
    encodings = prompts(tiny, queries, documents)
    shared, alone = Batch.of(encodings), Batch.of(encodings, share=False)
    assert shared.packing.num_tokens < 0.6 * alone.packing.num_tokens
    with torch.no_grad():
        torch.testing.assert_close(scored(tiny.model, shared), scored(tiny.model, alone), atol=1e-5, rtol=1e-5)


def test_shared_gradients(tiny, mixed):
    """In float64 the two agree to rounding; in float32 within 1e-5 of the largest gradient."""
    import copy

    encodings = prompts(tiny, QUERIES, [*DOCUMENTS, *mixed])
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = copy.deepcopy(tiny.model).to(dtype)
        gradients = []
        for batch in (Batch.of(encodings), Batch.of(encodings, share=False)):
            model.zero_grad()
            logits = scored(model, batch)
            torch.logsumexp(logits, 0).backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
        largest = max(gradient.abs().max() for gradient in gradients[1].values())
        for name, gradient in gradients[1].items():
            assert (gradients[0][name] - gradient).abs().max() <= bar * largest, name


def test_pictures_that_differ_are_not_shared(tiny):
    """Documents that are equal in every token id: the pictures decide."""
    encodings = [tiny.encode("query", prepare_picture(noise(56, 56, seed=seed))) for seed in (1, 2)]
    assert torch.equal(encodings[0].token_ids, encodings[1].token_ids)
    batch, alone = Batch.of(encodings), Batch.of(encodings, share=False)
    with torch.no_grad():
        torch.testing.assert_close(scored(tiny.model, batch), scored(tiny.model, alone), atol=1e-5, rtol=1e-5)
    assert len(batch.pictures) == 2


def test_order_is_kept(tiny):
    encodings = [tiny.encode(query, document) for query, document in [("a", "one" * 9), ("b", "two"), ("c", "one" * 9)]]
    batch = Batch.of(encodings)
    with torch.no_grad():
        alone = torch.cat([scored(tiny.model, Batch.of([encoding])) for encoding in encodings])
        torch.testing.assert_close(scored(tiny.model, batch), alone, atol=1e-5, rtol=1e-5)


def test_a_cut_document_is_matched_by_token(tiny):
    """A longer query leaves the document less room; only what was cut alike is shared."""
    document = "many words that go on " * 20
    queries = ["q", "long query " * 30, "tall query " * 30]
    encodings = [tiny.encode(query, document, max_length=80, max_query_length=40) for query in queries]
    assert all(encoding.cut for encoding in encodings)
    batch, alone = Batch.of(encodings), Batch.of(encodings, share=False)
    assert batch.packing.num_tokens < alone.packing.num_tokens
    with torch.no_grad():
        torch.testing.assert_close(scored(tiny.model, batch), scored(tiny.model, alone), atol=1e-5, rtol=1e-5)
