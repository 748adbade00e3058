"""Measures of a ranking, through ir-measures; their uncertainty, through SciPy; and Winoground's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m0.errors import InputError, MissingExtraError

DEFAULT_MEASURES = ("nDCG@10", "R@10", "RR", "AP", "Success@1")
"""In ir-measures' notation: RR is MRR when averaged, AP is MAP, R is recall. P@1, precision, would be the same as Success@1."""
KNOWN_MEASURES = ("nDCG", "R", "RR", "AP", "P", "Success", "Rprec")
"""Measures that pytrec_eval computes in this process."""
MEASURES_WITH_CUTOFF = ("R", "P", "Success")
"""Measures that mean nothing without a cutoff."""
RESAMPLES = 2000
RESAMPLES_PER_BATCH = 500
"""Resamples held in memory at a time."""


def per_query(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]], measures: Sequence[str] = DEFAULT_MEASURES
) -> dict[str, dict[str, float]]:
    """Each measure's value for each judged query (0 for one that the run lacks): measure -> query -> value.

    A judged document that the run lacks counts as not found: recall and the ideal ranking include it. Equal scores are ordered as
    trec_eval orders them, the later id first.

    Raises InputError on an unknown measure, or a score that is not a number.
    """
    parsed = parse_measures(measures)
    import ir_measures

    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    for metric in ir_measures.iter_calc(
        list(dict.fromkeys(parsed.values())),
        {q: dict(d) for q, d in qrels.items()},
        {q: _replace_scores_by_ranks(q, d) for q, d in run.items()},
    ):
        if metric.query_id in qrels:
            for name, measure in parsed.items():
                if measure == metric.measure:
                    values[name][metric.query_id] = float(metric.value)
    return values


def _replace_scores_by_ranks(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """For each document its place from the end, which stands for its score: trec_eval keeps scores as float32, in which two of a
    float64 model may be equal. (float32 counts to 16,777,216, more documents than a ranking has.)"""
    for document, score in scores.items():
        if not math.isfinite(score):
            raise InputError(f"the score of {document} for {query} is {score}.")
    order = sorted(scores, key=lambda document: (scores[document], document))
    return {document: float(place) for place, document in enumerate(order)}


def tied_queries(qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Queries for which documents of different relevance have equal scores, so that ids decide their order."""
    tied = []
    for query, judged in qrels.items():
        grades: dict[float, int] = {}
        if any(
            grades.setdefault(score, grade) != grade
            for score, grade in ((score, max(judged.get(document, 0), 0)) for document, score in run.get(query, {}).items())
        ):
            tied.append(query)
    return tied


def parse_measures(names: Sequence[str]) -> dict[str, Any]:
    """Measures by the names given. Raises InputError on one that is unknown, or that has a cutoff below 1."""
    try:
        import ir_measures
    except ImportError:
        raise MissingExtraError("measures need ir-measures: pip install 'm0-reranker[eval]'.") from None
    parsed = {}
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError):
            measure = None
        if (
            measure is None
            or measure.NAME not in KNOWN_MEASURES
            or (measure.NAME in MEASURES_WITH_CUTOFF and "cutoff" not in measure.params)
        ):
            raise InputError(
                f"there is no measure {name!r}; known are such as nDCG@10, R@100, RR, AP, P@5, Success@1."
            ) from None
        cutoff = measure.params.get("cutoff")
        if cutoff is not None and cutoff < 1:
            raise InputError(f"the measure {name!r} looks at {cutoff} documents, but must look at 1 at least.")
        parsed[name] = measure
    return parsed


@dataclass(frozen=True)
class Estimate:
    """A mean over queries, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    queries: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean and percentile bootstrap interval over queries (Efron & Tibshirani 1993).

    Raises InputError without values, MissingExtraError without SciPy.
    """
    data = np.asarray(values, dtype=float)
    if not len(data):
        raise InputError("there are no queries to average over.")
    if len(data) == 1 or np.ptp(data) == 0:
        return Estimate(float(data.mean()), float(data.mean()), float(data.mean()), len(data))
    stats = _scipy_stats()
    result = stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, batch=RESAMPLES_PER_BATCH, method="percentile", rng=np.random.default_rng(seed)
    )
    interval = result.confidence_interval
    return Estimate(float(data.mean()), float(interval.low), float(interval.high), len(data))


@dataclass(frozen=True)
class Comparison:
    """How a run differs from another on the same queries."""

    difference: Estimate
    """First minus second."""
    p_value: float
    """Of a two-sided paired permutation test: how often chance alone gives a difference as large."""


def compare(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Comparison:
    """Paired difference of one measure. Raises InputError where the queries are not the same."""
    if first.keys() != second.keys():
        raise InputError("the two runs were measured on different queries.")
    differences = np.array([first[query] - second[query] for query in first])
    if not np.any(differences) or len(differences) == 1:  # of one query, the sign alone may be chance
        return Comparison(estimate(differences.tolist(), seed), 1.0)
    test = _scipy_stats().permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        batch=RESAMPLES_PER_BATCH,
        rng=np.random.default_rng(seed),
    )
    return Comparison(estimate(differences.tolist(), seed), float(test.pvalue))


def winoground(scores: Sequence[Sequence[Sequence[float]]]) -> dict[str, float]:
    """Winoground's scores (Thrush et al. 2022).

    Args:
        scores: for each example a 2 x 2 table, `scores[caption][picture]`; caption i belongs to picture i.

    Returns: "text", "image" and "group", shares of the examples between 0 and 1: for both pictures the right caption scores
    higher; for both captions the right picture does; both hold. Equal scores count as wrong.

    Raises InputError for tables of another shape, or none.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 3 or table.shape[1:] != (2, 2) or not len(table):
        raise InputError(f"scores have shape {table.shape}, but must be (examples, 2 captions, 2 pictures), at least one.")
    text = (table[:, 0, 0] > table[:, 1, 0]) & (table[:, 1, 1] > table[:, 0, 1])
    image = (table[:, 0, 0] > table[:, 0, 1]) & (table[:, 1, 1] > table[:, 1, 0])
    return {"text": float(text.mean()), "image": float(image.mean()), "group": float((text & image).mean())}


def _scipy_stats() -> Any:
    try:
        import scipy.stats
    except ImportError:
        raise MissingExtraError("intervals need scipy: pip install 'm0-reranker[eval]'.") from None
    return scipy.stats
