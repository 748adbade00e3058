"""Rerank a dataset and measure the rankings.

Pairs are scored document by document, so that each document is computed once for all its queries (`m0.engine.batch`), and every
finished chunk is written down at once: an evaluation that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch.distributed as dist

from m0.engine.progress import Progress
from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError, M0Error
from m0.evaluate.candidates import Candidates
from m0.evaluate.chunks import remarks_on_pages, score_chunk, split_into_chunks
from m0.evaluate.cuts import Cuts, CutSummary
from m0.evaluate.dataset import Dataset
from m0.evaluate.files import format_count, format_ids
from m0.evaluate.metrics import (
    DEFAULT_MEASURES,
    Comparison,
    Estimate,
    compare,
    estimate,
    parse_measures,
    per_query,
    tied_queries,
)
from m0.evaluate.runs import Run, write_run
from m0.evaluate.store import Scores, ScoreStore
from m0.locks import uses_model
from m0.paths import path_of
from m0.reranker import Reranker

RUN_FILE, REPORT_FILE = "run.trec", "report.json"


@dataclass(frozen=True)
class Evaluation:
    """A run and its measures."""

    dataset: Dataset
    run: Run
    """Raw logits by query and document."""
    values: dict[str, dict[str, float]]
    """Measure -> query -> value."""
    failed: dict[str, str] = field(default_factory=dict)
    """Documents, queries ("query ID") and pairs ("QUERY DOCUMENT") that could not be used, with the reason; the run lacks them.
    Of `evaluate` the dataset's own (`Dataset.unusable`) as well."""
    remarks: tuple[str, ...] = ()
    """Sentences on what to know of this run's figures, with counts; `notes` has those on the dataset, too."""
    cut: Mapping[str, int] = field(default_factory=dict)
    """Of `evaluate`: how many documents and queries were cut to fit, and of how many not all pages were read. `remarks` name some."""

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        run: Mapping[str, Mapping[str, float]],
        measures: Sequence[str] = DEFAULT_MEASURES,
        failed: Mapping[str, str] | None = None,
        ignore_identical_ids: bool = True,
        remarks: Sequence[str] = (),
        name: str = "",
        cut: Mapping[str, int] | None = None,
    ) -> Evaluation:
        """Measure a run, of whatever origin. `ignore_identical_ids` as for `evaluate`; `name`: of the run, for sentences.

        Raises InputError on a score that is not a number, and where all that the run ranks is foreign to the dataset.
        """
        remarks = [
            *remarks,
            *_remarks_on_run(dataset, run, name),
            *(_remarks_on_identical_ids(dataset) if ignore_identical_ids else ()),
        ]
        counted_run: Run = {
            query: {d: score for d, score in scores.items() if d != query or not ignore_identical_ids}
            for query, scores in run.items()
        }
        values = per_query(dataset.qrels, counted_run, measures)
        if tied := tied_queries(dataset.qrels, counted_run):
            count = format_count(len(tied), "queries")
            remarks.append(
                f"{name and f'{name}: '}in {count} documents of different relevance have equal scores; the later id goes first: "
                f"{format_ids(tied)}."
            )
        return cls(dataset, counted_run, values, dict(failed or {}), tuple(remarks), dict(cut or {}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of these figures: gaps of the dataset, then of the run."""
        return (*self.dataset.notes, *self.remarks)

    def means(self) -> dict[str, Estimate]:
        """Each measure's mean over all queries with its 95 % bootstrap interval."""
        return {measure: estimate(list(values.values())) for measure, values in self.values.items()}

    def by_language(self) -> dict[str, dict[str, Estimate]]:
        """The same for the queries of each language: language -> measure -> estimate."""
        groups: dict[str, list[str]] = {}
        for query, language in self.dataset.languages.items():
            groups.setdefault(language, []).append(query)
        return {
            language: {measure: estimate([values[q] for q in queries]) for measure, values in self.values.items()}
            for language, queries in sorted(groups.items())
        }

    def compared_with(self, other: Evaluation) -> dict[str, Comparison]:
        """Paired difference from another evaluation of the same queries, by measure."""
        return {measure: compare(values, other.values[measure]) for measure, values in self.values.items()}

    def table(self, other: Evaluation | None = None, other_name: str = "other") -> str:
        """A Markdown table of all measures, and one by language."""
        means, lines = self.means(), []
        if other is None:
            lines += ["| measure | mean [95 % interval] |", "| --- | --- |"]
            lines += [f"| {measure} | {value} |" for measure, value in means.items()]
        else:
            theirs, compared = other.means(), self.compared_with(other)
            lines += [f"| measure | mean [95 % interval] | {other_name} | difference | p |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {measure} | {value} | {theirs[measure]} | {compared[measure].difference} | {compared[measure].p_value:.4f} |"
                for measure, value in means.items()
            ]
        languages = self.by_language()
        if len(languages) > 1:
            lines += ["", "| language | queries | " + " | ".join(means) + " |", "| --- |" + " --- |" * (len(means) + 1)]
            for language, estimates in languages.items():
                count = next(iter(estimates.values())).queries
                lines.append(
                    f"| {language} | {count} | " + " | ".join(f"{value.mean:.3f}" for value in estimates.values()) + " |"
                )
        return "\n".join(lines)

    def report(self, other: Evaluation | None = None) -> dict[str, Any]:
        """The figures as JSON; with another evaluation of the same queries, the paired differences too."""
        compared = {} if other is None else self.compared_with(other)
        return {
            "dataset": self.dataset.name,
            "queries": len(self.dataset.qrels),
            "pairs": sum(map(len, self.run.values())),
            "measures": {measure: vars(value) for measure, value in self.means().items()},
            "languages": {
                language: {measure: vars(value) for measure, value in estimates.items()}
                for language, estimates in self.by_language().items()
            },
            "notes": list(self.notes),
            "cut": dict(self.cut),
            "failed": self.failed,
            **(
                {}
                if other is None
                else {
                    "other": {measure: vars(value) for measure, value in other.means().items()},
                    "compared": {
                        measure: {"difference": vars(value.difference), "p_value": value.p_value}
                        for measure, value in compared.items()
                    },
                }
            ),
        }


@uses_model
def evaluate(
    reranker: Reranker,
    dataset: Dataset,
    candidates: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    measures: Sequence[str] = DEFAULT_MEASURES,
    progress: bool = False,
    ignore_identical_ids: bool = True,
    **options: Any,
) -> Evaluation:
    """Score each query's candidates and measure the rankings.

    Args:
        reranker: the model.
        dataset: what to rank.
        candidates: query -> documents to rerank (a run, or lists of ids); None: every document for every query. Documents that
            the corpus lacks are left out, and listed in `failed`.
        out: a directory for scores as they come, run.trec and report.json; an evaluation of the same data, model and
            candidates goes on where it stopped. Needed under torchrun, where processes share the documents out.
        measures: in ir-measures' notation.
        progress: show a bar on stderr.
        ignore_identical_ids: do not rank the document that has the query's own id, as BEIR does by default: in ArguAna and Quora it
            is the query itself.
        options: batch_tokens, max_length, max_query_length, max_doc_length, as for `Reranker.rank`.

    Returns: the same in every process. Raises InputError; a document that cannot be used, or that is judged but not in the corpus,
    is missing from the run, which counts as not found, and is listed in `failed`.
    """
    parse_measures(measures)
    selected = Candidates.of(dataset, candidates, ignore_identical_ids)
    queries_by_document = selected.queries_by_document
    store, scores = _score_or_resume(reranker, dataset, queries_by_document, out, progress, options)
    run: Run = {query: {} for query in dataset.queries}
    cuts: dict[tuple[str, str], Cuts | None] = {}
    for document, queries in queries_by_document.items():
        for query in queries:
            pair = query, document
            if pair in scores.logits:
                run[query][document] = scores.logits[pair]
                if pair in scores.cuts:
                    cuts[pair] = scores.cuts[pair]
            elif not {document, f"query {query}", f"{query} {document}"} & scores.failed.keys():
                raise M0Error(f"the pair of {query} and {document} was not scored; run the evaluation again to go on.")
    if not any(run.values()):
        what, why = next(iter(scores.failed.items()))
        raise dataset.refusal(f"nothing could be scored, beginning with {what}: {why}")
    failed = {**dataset.unusable, **selected.missing_documents, **scores.failed}
    cut_summary = CutSummary(cuts)
    remarks = [*selected.remarks(dataset), *cut_summary.remarks(), *remarks_on_pages(dataset, reranker.image_settings)]
    name = reranker.name or "the model"
    evaluation = Evaluation.of(dataset, run, measures, failed, ignore_identical_ids, remarks, name, cut_summary.counts())
    if store is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        write_run(store.directory / RUN_FILE, run)
        store.write_json(REPORT_FILE, evaluation.report())
    return evaluation


def _score_or_resume(
    reranker: Reranker,
    dataset: Dataset,
    queries_by_document: Mapping[str, list[str]],
    out: str | os.PathLike[str] | None,
    progress: bool,
    options: Mapping[str, Any],
) -> tuple[ScoreStore | None, Scores]:
    """Scores of all processes, those of an earlier evaluation in `out` among them, and where they are stored."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world > 1 and out is None:
        raise InputError("an evaluation in several processes needs out, a directory to share results in.")
    store = (
        ScoreStore(
            path_of(out),
            _describe_evaluation(reranker, dataset, queries_by_document, options),
            rank,
            dataset,
            reranker.image_settings.policy,
        )
        if out is not None
        else None
    )
    if world > 1:
        dist.barrier()
    scores = store.read() if store is not None else Scores()
    if world > 1:
        dist.barrier()  # nobody writes before all have read: all must share out the same documents
    unscored = [
        (document, [query for query in queries if (query, document) not in scores.logits])
        for document, queries in queries_by_document.items()
    ]
    unscored = [(document, queries) for document, queries in unscored if queries][rank::world]
    bar = Progress(sum(len(queries) for _, queries in unscored), "scoring", progress and rank == 0)
    pictures = VisualFeatures(reranker.model, reranker.sessions)
    for chunk in split_into_chunks(unscored):
        if store is not None:
            store.begin((query, document) for document, queries in chunk for query in queries)
        chunk_scores = score_chunk(reranker, dataset, chunk, options, pictures)
        scores.add(chunk_scores)
        if store is not None:
            store.write(chunk_scores)
        bar.advance(sum(len(queries) for _, queries in chunk))
    bar.close()
    if world > 1 and store is not None:
        dist.barrier()
        scores = store.read()
    return store, scores


def _remarks_on_run(dataset: Dataset, run: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    """What to know of how a run fits the dataset. Raises InputError where it does not fit at all."""
    known_documents = dataset.corpus.keys() | dataset.unusable.keys()
    ranked = dict.fromkeys(document for query in dataset.qrels for document in run.get(query, ()))
    foreign = [document for document in ranked if document not in known_documents]
    run_name = name or "the run"
    if run and not run.keys() & dataset.qrels.keys():
        raise dataset.refusal(f"{run_name} ranks none of the dataset's judged queries, but such as {next(iter(run))!r}.")
    if foreign and len(foreign) == len(ranked):
        raise dataset.refusal(f"{run_name} holds none of the dataset's documents, but such as {foreign[0]!r}.")
    if not ranked:
        return [f"{run_name} ranks no document for any of the dataset's queries, so that all count as 0."]
    if foreign:
        share = f"{len(foreign):,} of the {len(ranked):,} documents that {run_name} ranks"
        return [f"the corpus lacks {share}; they keep their places, as not relevant: {format_ids(foreign)}."]
    return []


def _remarks_on_identical_ids(dataset: Dataset) -> Iterator[str]:
    """What to know of queries that are documents, too, when these are left out."""
    if queries := [query for query in dataset.qrels if query in dataset.corpus]:
        relevant = [query for query in queries if dataset.qrels[query].get(query, 0) > 0]
        yield (
            f"the document with the query's own id is left out for {format_count(len(queries), 'queries')}, as BEIR does (ignore_identical_ids)"
            + (f", though judged relevant, and so counted as not found, for {format_ids(relevant)}." if relevant else ".")
        )


def _describe_evaluation(
    reranker: Reranker, dataset: Dataset, queries_by_document: Mapping[str, list[str]], options: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "dataset": dataset.fingerprint,
        "model": reranker.fingerprint(),
        "candidates": sha256(json.dumps(sorted(queries_by_document.items())).encode()).hexdigest(),
        "options": {  # NumPy's numbers as JSON's
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in sorted(options.items())
            if name != "batch_tokens"
        },
    }
