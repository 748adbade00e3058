"""Runs in TREC's format: a line `query Q0 document rank score tag` for each ranked document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from m0.errors import InputError
from m0.evaluate.files import is_id, parse_number, read_text
from m0.paths import path_of

Run = dict[str, dict[str, float]]
"""Scores by query and document."""


def read_run(path: str | Path) -> Run:
    """Raises InputError naming the line."""
    path = path_of(path)
    run: Run = {}
    for line_number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            query, _, document, _, score, _ = line.split()
            value = parse_number(score)
        except ValueError:
            raise InputError(f"{path}, line {line_number}: must be `query Q0 document rank score tag`.") from None
        if not math.isfinite(value):
            raise InputError(f"{path}, line {line_number}: the score is {score}.")
        if document in run.setdefault(query, {}):
            raise InputError(f"{path}, line {line_number}: {document} is ranked twice for {query}.")
        run[query][document] = value
    if not run:
        raise InputError(f"{path} is empty.")
    return run


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str = "m0") -> None:
    """Best first; of equal scores the later document id first, as trec_eval and so the measures order them. `read_run` gives back
    the same numbers, to the last bit.

    Raises InputError where it cannot be written.
    """
    path = path_of(path)
    try:
        lines = list(format_run(run, tag))
    except InputError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    partial = path.with_suffix(".partial")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def format_run(run: Mapping[str, Mapping[str, float]], tag: str = "m0") -> Iterator[str]:
    """The lines that `write_run` writes. Raises InputError for an id that they cannot keep, and a score that is not a number."""
    for query, scores in run.items():
        for key in (query, tag, *scores):
            check_id(key)
        for document, score in scores.items():
            if not math.isfinite(score):
                raise InputError(f"the score of {document} for {query} is {score}.")
        ranked = sorted(scores.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)
        for rank, (document, score) in enumerate(ranked, 1):
            yield f"{query} Q0 {document} {rank} {float(score)!r} {tag}"


def check_id(key: str) -> None:
    """Raises InputError for an id that a TREC run cannot keep."""
    if not is_id(key):
        raise InputError(f"a TREC run cannot keep the id {key!r}, which is empty or holds blanks or lone surrogates.")
