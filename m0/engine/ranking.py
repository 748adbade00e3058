"""A query and documents in, a ranking out: documents are opened ahead by threads while those before them are scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from m0.engine.batching import CHUNK_BATCHES
from m0.engine.cascade import Cascade
from m0.engine.host import Host
from m0.engine.options import RunOptions
from m0.engine.parallel import gather_objects, is_split
from m0.engine.progress import Progress
from m0.engine.results import FailedDocument, RankedDocument, Ranking
from m0.engine.scoring import ScoringCall, score_prompts
from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError
from m0.inputs.ahead import encode_document, read_ahead, warn_if_files
from m0.inputs.document import Document
from m0.inputs.passages import PAGES, Passage, Passages
from m0.inputs.prompt import Cut, CutPages, Encoding, Limits, whole_number
from m0.inputs.reading import read_parts_and_warn
from m0.inputs.stream import Part
from m0.model.attention import group_equal
from m0.model.head import relevance

UNSORTED_RESULTS = 256
"""Results beyond twice those asked for, before the worst are let go."""


@dataclass
class _Document:
    """A document of which some passages are scored or wait."""

    given: Any
    scored: list[_ScoredPassage] = field(default_factory=list)
    is_complete: bool = False
    """Whether all its passages were read."""


class _ScoredPassage(NamedTuple):
    passage: Passage | None
    logit: float
    tokens: dict[str, int]
    cut: tuple[Cut | CutPages, ...]


@dataclass
class _Ranker:
    """One ranking under way."""

    host: Host
    query: list[Part]
    limits: Limits
    passages: Passages
    how: ScoringCall
    cascade: Cascade | None
    top_n: int | None
    bar: Progress
    """Of the whole ranking: documents that are done."""
    open_documents: dict[int, _Document] = field(default_factory=dict)
    waiting: dict[tuple[int, int], tuple[Passage | None, Encoding]] = field(default_factory=dict)
    """Prompts that are not scored yet, by the numbers of the document and its passage."""
    results: list[RankedDocument] = field(default_factory=list)
    failed: list[FailedDocument] = field(default_factory=list)

    def read(self, documents: Iterable[Any], total: int | None, on_error: str) -> InputError | None:
        """Open all documents, and score those that are ready while the next are opened. Returns what must be raised."""
        # Who watches, a cascade and processes that share the documents see all of them in one call.
        at_once = self.cascade is not None or self.how.shared or bool(self.host.sessions)
        tokens, index = 0, -1
        settings, tokenizer = self.host.image_settings, self.host.prompt.tokenizer
        for index, given, passage, parts, is_last in read_ahead(documents, settings, self.passages, tokenizer):
            document = self.open_documents.setdefault(index, _Document(given))
            document.is_complete = is_last
            try:
                encoding = encode_document(self.host.prompt, self.query, parts, self.limits)
                self.waiting[index, passage.number if passage else 1] = passage, encoding
                tokens += len(encoding)
            except InputError as error:
                self.fail(index, str(error))
                if on_error == "raise":
                    return type(error)(f"document {index}: {error}")
                self.bar.advance()
            self.bar.show(f"{index + 1:,}{f' of {total:,}' if total else ''} read")
            if tokens >= CHUNK_BATCHES * self.how.batch_tokens and not at_once:
                self.score()
                tokens = 0
        if at_once:
            self.bar.restart_clock()
        return InputError("the list of documents is empty.") if index < 0 else None

    def fail(self, index: int, error: str) -> None:
        """A document that cannot be used, and with it all its passages."""
        given = self.open_documents.pop(index).given
        self.failed.append(FailedDocument(index, error, given, given.id if isinstance(given, Document) else None))
        for key in [key for key in self.waiting if key[0] == index]:
            del self.waiting[key]

    def score(self) -> None:
        """Score what waits."""
        if not self.waiting:
            return
        # A document of many passages advances the bar with each of them.
        is_whole = self.passages.score == "first"
        amount = sum(1 / (1 if passage is None or is_whole else passage.count) for passage, _ in self.waiting.values())
        drafts, done = self.draft_scores(self.cascade, amount) if self.cascade else ({}, 0.0)
        full = [key for key in self.waiting if key not in drafts]
        encodings = [self.waiting[key][1] for key in full]
        full_logits = score_prompts(self.host, encodings, self.how, part_of=(self.bar, amount - done))
        by_key = dict(zip(full, full_logits.tolist(), strict=True)) | drafts
        for (index, number), (passage, encoding) in self.waiting.items():
            scored = _ScoredPassage(passage, by_key[index, number], encoding.counts, encoding.cut)
            self.open_documents[index].scored.append(scored)
        self.finish({index for index, _ in drafts}, full_logits.dtype)
        self.waiting.clear()

    def finish(self, approximate: set[int], dtype: torch.dtype) -> None:
        """Make results of the documents whose passages are all scored."""
        complete = [
            index for index in dict.fromkeys(index for index, _ in self.waiting) if self.open_documents[index].is_complete
        ]
        documents = [self.open_documents.pop(index) for index in complete]
        combined = [self.passages.combine([one.logit for one in document.scored]) for document in documents]
        logits = torch.tensor([logit for logit, _ in combined], dtype=dtype)
        scores = relevance(logits, self.host.model.config.logit_bias).tolist()
        for index, document, logit, score, (_, best) in zip(
            complete, documents, logits.tolist(), scores, combined, strict=True
        ):
            passage, _, tokens, cut = document.scored[best]
            about = (document.given.id, document.given.metadata) if isinstance(document.given, Document) else (None, None)
            self.results.append(
                RankedDocument(index, score, logit, document.given, tokens, cut, index in approximate, *about, passage)
            )
        if self.top_n is not None and len(self.results) > 2 * self.top_n + UNSORTED_RESULTS:  # more need not be kept
            self.results = best_first(self.results)[: self.top_n]

    def draft_scores(self, cascade: Cascade, amount: float) -> tuple[dict[tuple[int, int], float], float]:
        """Cheap logits of the documents that a cascade does not score in full, by passage, and how many documents' work that was."""
        draft_prompts = {key: encoding for key, (_, encoding) in self.waiting.items()}
        if cascade.max_pixels is not None:
            small_query = cascade.smaller(self.query)
            small_documents = {key: cascade.smaller(encoding.parts["document"]) for key, encoding in draft_prompts.items()}
            draft_prompts = {
                key: self.host.prompt.encode(small_query, parts, self.limits) for key, parts in small_documents.items()
            }
        layers = self.host.model.config.decoder.num_layers
        draft_cost = sum(map(len, draft_prompts.values())) * (cascade.depth or layers) / layers
        full_tokens = sum(len(encoding) for _, encoding in self.waiting.values())
        by_document = group_equal(index for index, _ in draft_prompts)
        full_cost = full_tokens * min(cascade.keep / len(by_document), 1)
        done = amount * draft_cost / (draft_cost + full_cost)
        logits = score_prompts(self.host, list(draft_prompts.values()), self.how, cascade, (self.bar, done)).tolist()
        of_documents = {index: self.passages.combine([logits[i] for i in members])[0] for index, members in by_document.items()}
        order = sorted(of_documents, key=lambda index: -of_documents[index])
        dropped = set(order[cascade.keep :])
        return {key: logit for key, logit in zip(draft_prompts, logits, strict=True) if key[0] in dropped}, done

    def agree_on_failures(self, first_error: InputError | None) -> InputError | None:
        """Processes that share a ranking agree on what they have read: what one of them cannot use, none does. Returns what all raise."""
        gathered = gather_objects((str(first_error) if first_error else "", {f.index: f.error for f in self.failed}))
        if messages := [text for text, _ in gathered if text]:
            return InputError(messages[0])
        failed_anywhere = {index: error for _, errors in gathered for index, error in errors.items()}
        failed_here = {f.index for f in self.failed}
        for index, error in sorted(failed_anywhere.items()):
            if index not in failed_here:
                self.fail(index, error)
        keys = [encoding.key for _, encoding in self.waiting.values()]
        if len(set(gather_objects(sha256(repr(keys).encode()).hexdigest()))) > 1:
            return InputError("the processes that share a ranking were given different documents or queries.")
        return None


def best_first(results: list[RankedDocument]) -> list[RankedDocument]:
    """In a ranking's order: draft scores behind full ones, ties as given."""
    return sorted(results, key=lambda result: (result.approximate, -result.logit, result.index))


def rank(
    host: Host,
    query: Any,
    documents: Sequence[Any] | Iterator[Any],
    top_n: int | None,
    on_error: Literal["raise", "skip"],
    cascade: Cascade | None,
    limits: Limits,
    run: RunOptions,
    passages: Passages = PAGES,
) -> Ranking:
    """As `Reranker.rank`, whose arguments these are. Of an iterator of documents only the best `top_n` and what is being read are held."""
    top_n = None if top_n is None else whole_number(top_n, "top_n")
    total = None if isinstance(documents, Iterator) else len(documents)
    check_ranking(host, total, on_error, cascade, limits, run)
    how = ScoringCall(run.tokens(host.model.device), run.progress, VisualFeatures(host.model, host.sessions), run.shared)
    if not isinstance(documents, Iterator):
        warn_if_files(documents, host.image_settings)
    query_parts = read_parts_and_warn(query, "query", host.image_settings)
    with closing(Progress(total, "scoring", run.progress)) as bar:
        ranker = _Ranker(host, query_parts, limits, passages, how, cascade, top_n, bar)
        error = ranker.read(documents, total, on_error)
        if run.shared:
            error = ranker.agree_on_failures(error)
        if error is not None:
            raise error
        ranker.score()
    return Ranking(best_first(ranker.results)[:top_n], ranker.failed)


def check_ranking(
    host: Host, total: int | None, on_error: str, cascade: Cascade | None, limits: Limits, run: RunOptions
) -> None:
    """Raises InputError where a ranking cannot be made so."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}, but must be 'raise' or 'skip'.")
    if total == 0:
        raise InputError("the list of documents is empty.")
    host.prompt.check(limits)
    if cascade is not None and not isinstance(cascade, Cascade):
        raise InputError(f"cascade is {type(cascade).__name__}, but must be a Cascade.")
    if cascade is not None and (cascade.depth or 0) > (layers := host.model.config.decoder.num_layers):
        raise InputError(f"the cascade's depth is {cascade.depth}, but the decoder has {layers} layers.")
    if run.shared and not dist.is_initialized():
        raise InputError("shared is set, but there are no processes to share with; see m0.engine.parallel.processes.")
    if run.shared and is_split(host.model):
        raise InputError("shared is set, but the model is split over the same processes: all of them score every document.")


def remove_documents(ranking: Ranking, errors: dict[int, str]) -> Ranking:
    """The ranking without some of its documents, which are listed as failed, with why."""
    failed = [FailedDocument(r.index, errors[r.index], r.document, r.id) for r in ranking if r.index in errors]
    return replace(ranking, results=[r for r in ranking if r.index not in errors], failed=[*ranking.failed, *failed])
