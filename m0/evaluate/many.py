"""Rank documents by many queries, without judgements, as one schedule.

Documents come one after the other and none is kept: each is opened once, and its prompts for all its queries go through the model together,
so that it is computed once (`m0.engine.batch`). Memory grows with the queries, with `top_n`, and with the documents' ids.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from m0.engine.batching import CHUNK_BATCHES
from m0.engine.options import RunOptions, settle
from m0.engine.parallel import gather_objects, is_split
from m0.engine.progress import Progress
from m0.engine.scoring import ScoringCall, score_prompts
from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError
from m0.evaluate.digests import Digester
from m0.evaluate.rankings import Best, Format, QueryRankings
from m0.evaluate.score_log import Scored, ScoredDocument, ScoreLog
from m0.evaluate.selection import Given, Selection, given_queries, passes_over
from m0.inputs.ahead import ReadUnit, read_ahead, warn_if_files
from m0.inputs.document import Document
from m0.inputs.passages import Passage, Passages
from m0.inputs.prompt import Encoding, Limits, whole_number
from m0.inputs.reading import read_parts_and_warn
from m0.inputs.stream import Part
from m0.locks import uses_model
from m0.paths import path_of
from m0.reranker import Reranker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from m0.engine.options import Keywords

MAX_WAITING_TOKENS = 2**18
"""Tokens of prompts that wait to be scored; a document of more prompts is scored in several steps."""
BARRED = "many queries cannot be ranked inside record() or edit(), which hold every pair."


@uses_model
def rank_many(
    reranker: Reranker,
    queries: Mapping[str, Any] | Iterable[Any],
    documents: Mapping[str, Any] | Iterable[Any],
    candidates: Mapping[str, Iterable[str]] | None = None,
    top_n: int | None = 100,
    out: str | os.PathLike[str] | None = None,
    form: Format | None = None,
    passages: Passages | Literal["pages"] | None = None,
    limits: Limits | None = None,
    run: RunOptions | None = None,
    **keywords: Unpack[Keywords],
) -> QueryRankings:
    """Rank documents by each of many queries. Scores are those of `Reranker.rank`, up to rounding.

    Args:
        reranker: the model.
        queries: by id; or `Document`s with ids, or contents alone, whose ids are then their places, from 0.
        documents: the same. What can be gone through twice is: first to check ids and to count, then to score. An iterator is used up once.
            Nothing of a document is kept but its id and, of the best, its metadata. A page or path without an id is called by its name.
        candidates: query -> ids of the documents to rank for it (a run, or lists of ids); None: every document for every query.
        top_n: how many documents to keep for each query; None: all.
        out: a file for the rankings: JSON lines where its name ends in .jsonl, else a TREC run. A log beside it takes the scores as they come,
            and the same call goes on where it stopped. A document that has changed since is scored anew.
        form: "trec" or "jsonl", whatever the name of `out`.
        passages: as for `Reranker.rank`.
        limits, run: as for `Reranker.rank`; `keywords`: their fields one by one.

    In several processes (`m0.engine.parallel.processes`) each scores some of the documents, and all return the same.

    Returns: the rankings; queries, documents and pairs that could not be used are in `failed`. Raises InputError, one sentence: for an id that
    occurs twice, candidates that fit nothing, a log of another model, other queries or other lengths, and where nothing could be scored.
    """
    lengths, how = settle(limits, run, keywords)
    top_n = None if top_n is None else whole_number(top_n, "top_n")
    path, form = _checked_output(out, form)
    reranker.prompt.check(lengths)
    if reranker.sessions:
        raise InputError(BARRED)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world > 1 and is_split(reranker.model):
        raise InputError("many queries cannot be shared out, since the model is split over the same processes.")
    asked = given_queries(queries)
    selection = Selection.of(asked, candidates, for_trec=form == "trec")
    work = _Work(reranker, asked, Passages.of(passages), lengths, how, top_n, selection, (rank, world))
    if path is not None:
        work.log = ScoreLog(path, work.description(), len(asked), rank)
        _wait()
        work.log.read()
        _wait()  # nobody writes before all have read
    given, total = passes_over(documents, selection)
    with closing(Progress(None if total is None else -(-total // world), "scoring", how.progress and rank == 0)) as work.bar:
        work.run(given)
    if work.log is not None:
        work.log.close()
    rankings = work.rankings(world)
    if path is not None and form is not None and rank == 0:
        rankings.write(path, form)
    return rankings


def _checked_output(out: Any, form: Format | None) -> tuple[Path | None, Format | None]:
    if form not in (None, "trec", "jsonl"):
        raise InputError(f"form is {form!r}, but must be 'trec' or 'jsonl'.")
    if out is None:
        return None, form
    path = path_of(out)
    if path.is_dir():
        raise InputError(f"{path} is a folder, but must be the name of a file for the rankings.")
    return path, form or ("jsonl" if path.suffix.lower() == ".jsonl" else "trec")


def _wait() -> None:
    """For the other processes, if there are any."""
    if dist.is_initialized():
        dist.barrier()


@dataclass
class _Pending:
    """A document of which some prompts are scored or wait."""

    given: Given
    digest: str | None
    queries: list[int]
    """Those that are to be scored."""
    known: dict[int, Scored]
    """Those that were scored before."""
    passages: list[Passage | None] = field(default_factory=list)
    logits: dict[int, list[float]] = field(default_factory=dict)
    """By query, in the order of `passages`."""
    is_complete: bool = False


class _Prompt(NamedTuple):
    """A prompt that waits to be scored."""

    document: _Pending
    query: int
    encoding: Encoding
    new_tokens: int
    """Those that no prompt of the same passage before it has."""


@dataclass
class _Work:
    """What one process does."""

    host: Reranker
    asked: dict[str, Any]
    passages: Passages
    limits: Limits
    how: RunOptions
    top_n: int | None
    selection: Selection
    share: tuple[int, int]
    """Which process this is, of how many."""
    log: ScoreLog | None = None
    bar: Progress = field(default_factory=lambda: Progress(None, "scoring", False))
    pending: dict[int, _Pending] = field(default_factory=dict)
    """By place among the documents that are opened."""
    waiting: list[_Prompt] = field(default_factory=list)
    """What is not scored yet."""
    waiting_tokens: int = 0
    new_tokens: int = 0
    is_divided: bool = False
    """Whether the document at hand has too many prompts for one step."""
    failed: dict[str, str] = field(default_factory=dict)
    scored: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        self.digester = Digester(self.host.image_settings.policy)
        self.keys = list(self.asked)
        self.best = [Best(self.top_n) for _ in self.keys]
        self.batch_tokens = self.how.tokens(self.host.model.device)
        self.call = ScoringCall(self.batch_tokens, pictures=VisualFeatures(self.host.model, self.host.sessions))
        self.query_parts: dict[int, list[Part]] = {}
        for number, (key, content) in enumerate(self.asked.items()):
            try:
                self.query_parts[number] = read_parts_and_warn(content, "query", self.host.image_settings)
            except InputError as error:
                self.failed[f"query {key}"] = str(error)
        if not self.query_parts:
            key, why = next(iter(self.failed.items()))
            raise InputError(f"none of the queries can be asked, beginning with {key}: {why}")

    def description(self) -> dict[str, Any]:
        """What scores in a log depend on. Raises InputError where a query cannot be known again."""
        digests = [self.digester.digest([key, content]) for key, content in self.asked.items()]
        if None in digests:
            key = self.keys[digests.index(None)]
            if f"query {key}" not in self.failed:
                raise InputError(f"the query {key} is an open file or an object, which cannot be known again; give out=None.")
        return {
            "model": self.host.fingerprint(),
            "queries": self.digester.digest([digest or "" for digest in digests]),
            "limits": vars(self.limits),
            "passages": vars(self.passages),
        }

    # --- documents --------------------------------------------------------------------------------------------------------

    def run(self, given: Iterable[Given]) -> None:
        settings, tokenizer = self.host.image_settings, self.host.prompt.tokenizer
        for unit in read_ahead(self._unscored(given), settings, self.passages, tokenizer):
            self._take(unit)
        self._close_group()

    def _unscored(self, given: Iterable[Given]) -> Iterator[Any]:
        """The documents that must be opened. What the log holds of them and of others is ranked at once."""
        place, (rank, world) = 0, self.share
        selected = (one for one in given if self.selection.queries_of(one.id))
        for one in itertools.islice(selected, rank, None, world):
            queries = [query for query in self.selection.queries_of(one.id) if query in self.query_parts]
            digest = None if self.log is None else self.digester.digest(one.content)
            logged = {} if self.log is None else self.log.find(one.id, digest)
            known = {query: logged[query] for query in queries if query in logged}
            unscored = [query for query in queries if query not in known]
            self.reused += len(known)
            if not unscored:
                self._rank(one, known)
                self.bar.advance()
                continue
            self.pending[place] = _Pending(one, digest, unscored, known)
            place += 1
            warn_if_files([one.content], self.host.image_settings)
            yield one.content

    def _take(self, unit: ReadUnit) -> None:
        """The prompts of one passage of a document."""
        document = self.pending[unit.place]
        if isinstance(unit.parts, InputError):
            self._fail(unit.place, str(unit.parts))
            return
        document.passages.append(unit.passage)
        shared_tokens = 0
        for query in list(document.queries):
            try:
                encoding = self.host.prompt.encode(self.query_parts[query], unit.parts, self.limits)
            except InputError as error:
                self.failed[f"{self.keys[query]} {document.given.id}"] = str(error)
                document.queries.remove(query)
                continue
            self._put(_Prompt(document, query, encoding, len(encoding) - shared_tokens))
            shared_tokens = encoding.num_prefix_tokens
            if self.waiting_tokens >= MAX_WAITING_TOKENS:
                self._score()
                self.is_divided = True
        if unit.is_last:
            document.is_complete = True
            is_full = self.new_tokens >= CHUNK_BATCHES * self.batch_tokens or 2 * self.waiting_tokens >= MAX_WAITING_TOKENS
            if is_full or self.is_divided:
                self._close_group()

    def _put(self, prompt: _Prompt) -> None:
        self.waiting.append(prompt)
        self.waiting_tokens += len(prompt.encoding)
        self.new_tokens += prompt.new_tokens

    def _fail(self, place: int, error: str) -> None:
        """A document that cannot be used, and with it all its passages."""
        document = self.pending.pop(place)
        self.failed[document.given.id] = error
        waiting, self.waiting, self.waiting_tokens, self.new_tokens = self.waiting, [], 0, 0
        for prompt in waiting:
            if prompt.document is not document:
                self._put(prompt)
        self._rank(document.given, document.known)
        self.bar.advance()

    def _score(self) -> None:
        """Score what waits."""
        if not self.waiting:
            return
        # A document advances the bar with each of its prompts.
        amount = sum(1 / (len(prompt.document.queries) * _passages_of(prompt.document)) for prompt in self.waiting)
        encodings = [prompt.encoding for prompt in self.waiting]
        logits = score_prompts(self.host, encodings, self.call, part_of=(self.bar, amount))
        for prompt, logit in zip(self.waiting, logits.tolist(), strict=True):
            prompt.document.logits.setdefault(prompt.query, []).append(logit)
        self.waiting.clear()
        self.waiting_tokens = self.new_tokens = 0

    def _close_group(self) -> None:
        """Score what waits, write it down, and rank the documents that are complete.

        Where a group ends depends on its own documents alone, so that a ranking that goes on computes the groups that it would have.
        """
        self._score()
        done: list[ScoredDocument] = []
        for place in [place for place, document in self.pending.items() if document.is_complete]:
            document = self.pending.pop(place)
            scores = {query: self._combine(document, query) for query in document.queries}
            done.append(ScoredDocument(document.given.id, document.digest, scores))
            self.scored += len(scores)
            self._rank(document.given, document.known | scores)
        if self.log is not None:
            self.log.write(done)
        self.is_divided = False

    def _combine(self, document: _Pending, query: int) -> Scored:
        logit, best = self.passages.combine(document.logits[query])
        return Scored(torch.tensor(logit, dtype=self.dtype).item(), document.passages[best])

    @property
    def dtype(self) -> torch.dtype:
        """Of logits, as `rank` has them."""
        return torch.promote_types(self.host.model.dtype, torch.float32)

    def _rank(self, given: Given, scores: Mapping[int, Scored]) -> None:
        metadata = given.content.metadata if isinstance(given.content, Document) else None
        for query, (logit, passage) in scores.items():
            self.best[query].add(logit, given.number, given.id, passage, metadata)

    # --- results ----------------------------------------------------------------------------------------------------------

    def rankings(self, world: int) -> QueryRankings:
        """The rankings of all processes. Raises InputError where there is nothing."""
        if world > 1:
            parts = gather_objects(([best.heap for best in self.best], self.failed, self.scored, self.reused))
            self.best = [Best(self.top_n) for _ in self.keys]
            self.scored = sum(scored for _, _, scored, _ in parts)
            self.reused = sum(reused for _, _, _, reused in parts)
            for heaps, failed, _, _ in parts:
                self.failed |= failed
                for best, heap in zip(self.best, heaps, strict=True):
                    best.merge(heap)
        if not any(best.heap for best in self.best):
            self.selection.refuse_nothing(self.failed)
        bias = self.host.model.config.logit_bias
        results = {key: best.results(bias, self.dtype) for key, best in zip(self.keys, self.best, strict=True)}
        return QueryRankings(results, self.failed, tuple(self.selection.remarks()), self.scored, self.reused)


def _passages_of(document: _Pending) -> int:
    """How many passages a document has, of which one is read."""
    passage = document.passages[0]
    return 1 if passage is None else passage.count
