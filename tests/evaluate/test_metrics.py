"""Measures against hand computation, intervals against known distributions, Winoground against its definition."""

import math
import random

import numpy as np
import pytest

from m0.errors import InputError
from m0.evaluate.metrics import compare, estimate, per_query, winoground

pytest.importorskip("ir_measures")
pytest.importorskip("scipy")


def test_measures_by_hand():
    rng = random.Random(1)
    documents = [f"d{i}" for i in range(30)]
    qrels = {f"q{n}": {d: rng.choice([0, 0, 1, 2]) for d in rng.sample(documents, 15)} for n in range(20)}
    run = {query: {d: rng.random() for d in rng.sample(documents, 20)} for query in qrels}
    values = per_query(qrels, run, ["nDCG@10", "R@10", "RR", "AP", "P@5", "Success@1"])
    for query, judged in qrels.items():
        ranked = sorted(run[query], key=lambda d: -run[query][d])
        relevant = [d for d, grade in judged.items() if grade > 0]
        hits = [d in relevant for d in ranked]
        gain = sum(judged.get(d, 0) / math.log2(i + 2) for i, d in enumerate(ranked[:10]))
        ideal = sum(grade / math.log2(i + 2) for i, grade in enumerate(sorted(judged.values(), reverse=True)[:10]))
        assert values["nDCG@10"][query] == pytest.approx(gain / ideal)
        assert values["R@10"][query] == pytest.approx(sum(hits[:10]) / len(relevant))
        assert values["RR"][query] == pytest.approx(1 / (1 + hits.index(True)))
        assert values["P@5"][query] == pytest.approx(sum(hits[:5]) / 5)
        assert values["Success@1"][query] == float(hits[0])
        precision = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        assert values["AP"][query] == pytest.approx(sum(precision) / len(relevant))


def test_a_query_that_the_run_lacks_counts_as_zero():
    assert per_query({"q1": {"a": 1}, "q2": {"a": 1}}, {"q1": {"a": 1.0}}, ["RR"]) == {"RR": {"q1": 1.0, "q2": 0.0}}


def test_intervals_cover_the_mean():
    """95 % intervals of 100 coins hold the true share about 95 times in 100."""
    generator = np.random.default_rng(0)
    covered = sum((found := estimate(generator.random(100) < 0.4, seed=n)).low <= 0.4 <= found.high for n in range(100))
    assert 88 <= covered <= 100
    assert estimate([0.5]).low == 0.5
    with pytest.raises(InputError):
        estimate([])


def test_comparison():
    generator = np.random.default_rng(1)
    base = {f"q{i}": float(v) for i, v in enumerate(generator.random(80))}
    better = {query: value + 0.1 + 0.05 * generator.standard_normal() for query, value in base.items()}
    noise = {query: value + 0.05 * generator.standard_normal() for query, value in base.items()}
    found = compare(better, base)
    assert found.p_value < 0.001
    assert found.difference.low > 0.05
    assert compare(noise, base).p_value > 0.01
    assert compare(base, base).p_value == 1.0
    alone = compare({"q": 1.0}, {"q": 0.25})
    assert (alone.difference.mean, alone.p_value) == (0.75, 1.0)
    with pytest.raises(InputError, match="different queries"):
        compare(base, {"other": 1.0})


def test_winoground():
    right = [[2.0, 1.0], [0.5, 3.0]]
    text_only = [[2.0, 2.5], [1.0, 3.0]]  # each picture's caption wins; caption 0 prefers picture 1
    image_only = [[2.0, 1.0], [2.5, 3.0]]  # each caption's picture wins; picture 0 prefers caption 1
    tie = [[1.0, 1.0], [1.0, 1.0]]
    assert winoground([right]) == {"text": 1.0, "image": 1.0, "group": 1.0}
    assert winoground([text_only]) == {"text": 1.0, "image": 0.0, "group": 0.0}
    assert winoground([image_only]) == {"text": 0.0, "image": 1.0, "group": 0.0}
    assert winoground([tie]) == {"text": 0.0, "image": 0.0, "group": 0.0}
    assert winoground([right, tie])["group"] == 0.5
    with pytest.raises(InputError, match="shape"):
        winoground([[1.0, 2.0]])


def test_two_names_of_one_measure_both_get_their_values():
    values = per_query({"q": {"d": 1}}, {"q": {"d": 1.0, "e": 0.5}}, ["RR", "MRR", "AP", "MAP"])
    assert {name: value["q"] for name, value in values.items()} == {"RR": 1.0, "MRR": 1.0, "AP": 1.0, "MAP": 1.0}


@pytest.mark.parametrize("name", ["nDCG@0", "P@0", "ERR@10", "alpha_nDCG@5", "accuracy", "", "nDCG@"])
def test_measures_that_cannot_be_computed_are_refused(name):
    with pytest.raises(InputError) as caught:
        per_query({"q": {"d": 1}}, {"q": {"d": 1.0}}, [name])
    assert "\n" not in str(caught.value)


def test_float32_scores_are_measured_as_by_trec_eval_with_its_ties():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = random.Random(2)
    qrels = {f"q{n}": {f"d{rng.randrange(40)}": rng.choice([-1, 0, 1, 3]) for _ in range(12)} for n in range(60)}
    run = {
        query: {f"d{i}": float(np.float32(rng.choice([rng.gauss(0, 4), rng.randrange(4), 2.0]))) for i in range(40)}
        for query in qrels
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "map", "recip_rank", "recall_10", "success_1", "Rprec"})
    names = {"nDCG@10": "ndcg_cut_10", "AP": "map", "RR": "recip_rank", "R@10": "recall_10", "Success@1": "success_1"}
    expected = theirs.evaluate(run)
    for name, values in per_query(qrels, run, [*names, "Rprec"]).items():
        assert values == {query: found[names.get(name, name)] for query, found in expected.items()}, name
