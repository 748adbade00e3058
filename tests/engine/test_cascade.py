"""A cheap look first: what it reads, what is then scored in full, and what is said of the rest."""

import pytest

from m0 import Cascade, Reranker
from m0.errors import InputError
from m0.interp import score_lens
from tests.conftest import noise

DOCUMENTS = [
    "the network must be configured",
    noise(280, 280, 1),
    "ein Apfel",
    ["both", noise(140, 84, 2)],
    "a needle that points north",
    noise(28, 28, 3),
]


@pytest.fixture
def fresh(tiny_directory):
    return Reranker.from_pretrained(tiny_directory, dtype="float32")


def test_the_first_look_is_the_score_lens(fresh):
    depth = 2
    ranking = fresh.rank("network", DOCUMENTS, cascade=Cascade(keep=2, depth=depth))
    by_lens = [score_lens(fresh, ("network", document)).values[depth, 0] for document in DOCUMENTS]
    best = sorted(range(len(DOCUMENTS)), key=lambda i: -by_lens[i])[:2]
    assert {result.index for result in ranking if not result.approximate} == set(best)
    for result in ranking:
        expected = by_lens[result.index] if result.approximate else fresh.logits([("network", result.document)])[0]
        assert result.logit == pytest.approx(float(expected), abs=1e-5)


def test_full_scores_stand_first_and_are_unchanged(fresh):
    whole = {result.index: result.logit for result in fresh.rank("network", DOCUMENTS)}
    ranking = fresh.rank("network", DOCUMENTS, cascade=Cascade(keep=3, depth=1))
    assert [result.approximate for result in ranking] == [False] * 3 + [True] * 3
    for part in (ranking[:3], ranking[3:]):
        assert [result.logit for result in part] == sorted((result.logit for result in part), reverse=True)
    for result in ranking[:3]:
        assert result.logit == pytest.approx(whole[result.index], abs=1e-5)


def test_smaller_pictures(fresh):
    limit = 4 * 28 * 28
    ranking = fresh.rank(noise(140, 140, 9), DOCUMENTS, cascade=Cascade(keep=1, max_pixels=limit))
    fresh.image_settings = type(fresh.image_settings)(min_pixels=28 * 28, max_pixels=limit)
    for result in ranking[1:]:
        assert result.approximate
        if isinstance(result.document, str):
            reduced = fresh.encode(noise(140, 140, 9), result.document)
            assert fresh.logits_of([reduced])[0] == pytest.approx(result.logit, abs=5e-3)
    assert ranking[0].tokens["total"] > len(reduced)


def test_a_first_look_computes_no_document_whole(fresh):
    documents = [f"{number} " + "the network must be configured after the system was installed " * 8 for number in range(6)]
    for _ in range(3):
        fresh.rank("network", documents, cascade=Cascade(keep=1, depth=1))
    assert fresh.documents.counts.computed <= 1


def test_a_picture_too_narrow_to_be_reduced_is_looked_at_in_full(fresh):
    narrow = noise(28, 28 * 190, 4)
    ranking = fresh.rank("network", [narrow, *DOCUMENTS], cascade=Cascade(keep=1, max_pixels=5000))
    assert len(ranking) == len(DOCUMENTS) + 1


def test_when_all_are_kept_nothing_is_approximate(fresh):
    ranking = fresh.rank("network", DOCUMENTS, cascade=Cascade(keep=6, depth=1))
    assert not any(result.approximate for result in ranking)
    assert [r.index for r in ranking] == [r.index for r in fresh.rank("network", DOCUMENTS)]


def test_the_whole_depth_ranks_as_without(fresh):
    ranking = fresh.rank("network", DOCUMENTS, cascade=Cascade(keep=2, depth=3))
    assert [r.index for r in ranking] == [r.index for r in fresh.rank("network", DOCUMENTS)]


def test_arguments(fresh):
    with pytest.raises(InputError, match="depth or max_pixels"):
        Cascade(keep=3)
    with pytest.raises(InputError, match="keep"):
        Cascade(keep=0, depth=1)
    with pytest.raises(InputError, match="has 3 layers"):
        fresh.rank("network", DOCUMENTS, cascade=Cascade(depth=4))
    with pytest.raises(InputError, match="max_pixels"):
        Cascade(keep=1, max_pixels=100)
    with pytest.raises(InputError, match="must be a Cascade"):
        fresh.rank("network", DOCUMENTS, cascade=5)
