"""Rerank a dataset and measure the rankings.

Pairs are scored document by document, so that each document is computed once for all its queries (`m0.batch`), and every
finished stretch is written down at once: an evaluation that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch.distributed as dist

from m0.errors import InputError, M0Error, TooLongError
from m0.evaluate.dataset import Dataset
from m0.evaluate.metrics import DEFAULT, Comparison, Estimate, compare, estimate, parse_measures, per_query
from m0.evaluate.runs import Run, write_run
from m0.listed import listed
from m0.paths import path_of
from m0.prompt import Encoding
from m0.reranker import PictureFeatures, Progress, Reranker

STRETCH_PAIRS = 256
"""Pairs between two writes, at least; a document's pairs stay together."""
ABOUT, RUN, REPORT = "about.json", "run.trec", "report.json"


@dataclass(frozen=True)
class Evaluation:
    """A run and what it is worth."""

    dataset: Dataset
    run: Run
    """Raw logits by query and document."""
    values: dict[str, dict[str, float]]
    """Measure -> query -> value."""
    failed: dict[str, str] = field(default_factory=dict)
    """Documents, queries ("query ID") and pairs ("QUERY DOCUMENT") that could not be used, with the reason; the run lacks them."""

    @classmethod
    def of(
        cls, dataset: Dataset, run: Run, measures: Sequence[str] = DEFAULT, failed: Mapping[str, str] | None = None
    ) -> Evaluation:
        """Measure a run, of whatever origin."""
        return cls(dataset, run, per_query(dataset.qrels, run, measures), dict(failed or {}))

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
            "queries": len(self.dataset.queries),
            "pairs": sum(map(len, self.run.values())),
            "measures": {measure: vars(value) for measure, value in self.means().items()},
            "languages": {
                language: {measure: vars(value) for measure, value in estimates.items()}
                for language, estimates in self.by_language().items()
            },
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


def evaluate(
    reranker: Reranker,
    dataset: Dataset,
    candidates: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    measures: Sequence[str] = DEFAULT,
    progress: bool = False,
    **options: Any,
) -> Evaluation:
    """Score each query's candidates and measure the rankings.

    Args:
        reranker: the model.
        dataset: what to rank.
        candidates: query -> documents to rerank (a run, or lists of ids); None: every document for every query.
        out: a directory for scores as they come, run.trec and report.json; an evaluation of the same data, model and
            candidates goes on where it stopped. Needed under torchrun, where processes share the documents out.
        measures: in ir-measures' notation.
        progress: show a bar on stderr.
        options: batch_tokens, max_length, max_query_length, max_doc_length, as for `Reranker.rank`.

    Returns: the same in every process. Raises InputError; a document that cannot be used is missing
    from the run, which counts as not found, and is listed in `failed`.
    """
    parse_measures(measures)
    wanted = _wanted(dataset, candidates)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world > 1 and out is None:
        raise InputError("an evaluation in several processes needs out, a directory to share results in.")
    store = _Store(path_of(out), _about(reranker, dataset, wanted, options), rank, dataset) if out is not None else None
    if world > 1:
        dist.barrier()
    done, failed = store.read() if store is not None else ({}, {})
    if world > 1:
        dist.barrier()  # nobody writes before all have read: all must share out the same documents
    left = [(document, [query for query in queries if (query, document) not in done]) for document, queries in wanted.items()]
    left = [(document, queries) for document, queries in left if queries][rank::world]
    bar = Progress(sum(len(queries) for _, queries in left), "scoring", progress and rank == 0)
    pictures = PictureFeatures(reranker.model, reranker.sessions)
    for stretch in _stretches(left):
        scores, broken = _score(reranker, dataset, stretch, options, pictures)
        done |= scores
        failed |= broken
        if store is not None:
            store.write(scores, broken)
        bar.advance(sum(len(queries) for _, queries in stretch))
    bar.close()
    if world > 1 and store is not None:
        dist.barrier()
        done, failed = store.read()
    for document, queries in wanted.items():
        for query in queries:
            known = (query, document) in done or {document, f"query {query}", f"{query} {document}"} & failed.keys()
            if not known:
                raise M0Error(f"the pair of {query} and {document} was not scored; run the evaluation again to go on.")
    if not done:
        what, why = next(iter(failed.items()))
        raise InputError(f"nothing could be scored, beginning with {what}: {why}")
    run: Run = {query: {} for query in dataset.queries}
    for document, queries in wanted.items():
        for query in queries:
            if (query, document) in done:
                run[query][document] = done[query, document]
    evaluation = Evaluation.of(dataset, run, measures, failed)
    if store is not None and rank == 0:
        write_run(store.directory / RUN, run)
        store.write_json(REPORT, evaluation.report())
    return evaluation


def _wanted(dataset: Dataset, candidates: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Document -> the queries that meet it."""
    wanted: dict[str, list[str]] = {}
    if not isinstance(candidates, Mapping | None):
        raise InputError(f"candidates is {type(candidates).__name__}, but must map queries to documents.")
    for query in dataset.queries:
        documents = dataset.corpus if candidates is None else candidates.get(query, ())
        for document in documents if isinstance(documents, Mapping) else listed(documents, f"the candidates of {query}"):
            if not isinstance(document, str) or document not in dataset.corpus:
                raise InputError(f"the candidates of {query} hold {document!r}, which the corpus does not have.")
            wanted.setdefault(document, []).append(query)
    if not wanted:
        raise InputError("the candidates hold none of the dataset's queries.")
    return wanted


def _stretches(left: list[tuple[str, list[str]]]) -> Iterator[list[tuple[str, list[str]]]]:
    stretch: list[tuple[str, list[str]]] = []
    count = 0
    for item in left:
        stretch.append(item)
        count += len(item[1])
        if count >= STRETCH_PAIRS:
            yield stretch
            stretch, count = [], 0
    if stretch:
        yield stretch


def _score(
    reranker: Reranker,
    dataset: Dataset,
    stretch: list[tuple[str, list[str]]],
    options: Mapping[str, Any],
    pictures: PictureFeatures,
) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
    """Logits of a stretch's pairs; documents that cannot be used, with the reason."""
    failed: dict[str, str] = {}
    read_queries: dict[str, Any] = {}
    for query in dict.fromkeys(query for _, queries in stretch for query in queries):
        try:
            read_queries[query] = reranker.read(dataset.queries[query], "query")
        except InputError as error:
            failed[f"query {query}"] = str(error)
    limits = {name: value for name, value in options.items() if name.startswith("max_")}
    others = {name: value for name, value in options.items() if name not in limits}
    encodings: dict[tuple[str, str], Encoding] = {}
    for document, queries in stretch:
        try:
            read = reranker.read(dataset.corpus[document], "document")  # pictures are opened once
        except InputError as error:
            failed[document] = str(error)
            continue
        for query in queries:
            if query not in read_queries:
                continue
            try:
                encodings[query, document] = reranker.encode(read_queries[query], read, **limits)
            except TooLongError as error:
                failed[f"{query} {document}"] = str(error)
    if not encodings:
        return {}, failed
    return dict(zip(encodings, reranker.logits_of(list(encodings.values()), pictures=pictures, **others), strict=True)), failed


def _about(reranker: Reranker, dataset: Dataset, wanted: Mapping[str, list[str]], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": dataset.fingerprint,
        "model": reranker.fingerprint(),
        "candidates": sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest(),
        "options": {name: value for name, value in sorted(options.items()) if name != "batch_tokens"},
    }


class _Store:
    """Scores on disk as they come: one file a process, one line a pair.

    Lines hold [query, document, score], [null, what failed, reason], or [true, file, its hash] for a picture that was seen.
    What failed is tried again, and what showed a picture that has changed since is scored anew.
    """

    def __init__(self, directory: Path, about: Mapping[str, Any], rank: int, dataset: Dataset) -> None:
        self.directory, self.path, self.dataset = directory, directory / f"scores-{rank}.jsonl", dataset
        self.seen: dict[str, str] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if (directory / ABOUT).exists():
                if json.loads((directory / ABOUT).read_text(encoding="utf-8")) != about:
                    raise InputError(f"{directory} holds an evaluation of other data, another model or other candidates.")
            elif rank == 0:
                self.write_json(ABOUT, about)
            if rank == 0:
                self._mend()
        except (OSError, ValueError) as error:
            if isinstance(error, M0Error):
                raise
            raise InputError(f"{directory} cannot be used for an evaluation: {error}.") from None

    def _mend(self) -> None:
        """Drop lines that killed processes wrote half of, what failed, and what has changed since."""
        paths = sorted(self.directory.glob("scores-*.jsonl"))
        data = {path: path.read_bytes() for path in paths}
        rows = {path: [json.loads(line) for line in some[: some.rfind(b"\n") + 1].splitlines()] for path, some in data.items()}
        rows = {path: [row for row in some if isinstance(row, list) and len(row) == 3] for path, some in rows.items()}
        hashes = {file: value for some in rows.values() for first, file, value in some if first is True}
        changed = {file for file, value in hashes.items() if _file_hash(file) != value}
        for path, some in rows.items():
            kept = [
                row
                for row in some
                if row[0] is not None
                and not (row[0] is True and row[1] in changed)
                and not (row[0] is not True and changed & {*self._pictures(row[0], True), *self._pictures(row[1], False)})
            ]
            whole = "".join(json.dumps(row) + "\n" for row in kept).encode()
            if whole != data[path]:
                partial = path.with_suffix(".partial")
                partial.write_bytes(whole)
                partial.replace(path)

    def _pictures(self, key: str, query: bool) -> list[str]:
        """Files of the pictures in a query or document."""
        content = (self.dataset.queries if query else self.dataset.corpus).get(key)
        return [part["image"] for part in content if isinstance(part, dict)] if isinstance(content, list) else []

    def read(self) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
        """What all processes have scored, now or before."""
        done: dict[tuple[str, str], float] = {}
        failed: dict[str, str] = {}
        for path in sorted(self.directory.glob("scores-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                query, document, value = json.loads(line)
                if query is None:
                    failed[document] = value
                elif query is True:
                    self.seen[document] = value
                else:
                    done[query, document] = value
        return done, failed

    def write(self, scores: Mapping[tuple[str, str], float], failed: Mapping[str, str]) -> None:
        lines = []
        for key, is_query in dict.fromkeys((k, side == 0) for pair in scores for side, k in enumerate(pair)):
            for picture in self._pictures(key, is_query):
                if picture not in self.seen:
                    self.seen[picture] = _file_hash(picture)
                    lines.append(json.dumps([True, picture, self.seen[picture]]))
        lines += [json.dumps([query, document, score]) for (query, document), score in scores.items()]
        lines += [json.dumps([None, document, reason]) for document, reason in failed.items()]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}; what is there is kept.") from None

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        partial = self.directory / f".{name}.{os.getpid()}"
        try:
            partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(self.directory / name)
        except OSError as error:
            raise InputError(f"{self.directory / name} cannot be written: {error.strerror}.") from None


def _file_hash(file: str) -> str:
    """SHA-256 of a picture's file; empty where it cannot be read."""
    try:
        return sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""
