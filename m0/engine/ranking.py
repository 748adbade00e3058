"""A query and documents in, a ranking out: documents are opened ahead by threads while those before them are scored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

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
from m0.inputs.prompt import Encoding, Limits, whole_number
from m0.inputs.reading import encode_document, read_ahead, read_side, warn_of_files
from m0.inputs.stream import Part
from m0.model.head import relevance


@dataclass
class _Ranker:
    """One ranking under way."""

    host: Host
    query: list[Part]
    documents: Sequence[Any]
    limits: Limits
    how: ScoringCall
    cascade: Cascade | None
    bar: Progress
    """Of the whole ranking: documents that are done."""
    waiting: dict[int, Encoding] = field(default_factory=dict)
    """Prompts that are not scored yet, by the document's number."""
    results: list[RankedDocument] = field(default_factory=list)
    failed: list[FailedDocument] = field(default_factory=list)

    def read(self, on_error: str) -> InputError | None:
        """Open all documents, and score those that are ready while the next are opened. Returns what must be raised."""
        # Who watches, a cascade and processes that share the documents see all of them in one call.
        at_once = self.cascade is not None or self.how.shared or bool(self.host.sessions)
        tokens = 0
        for index, parts in enumerate(read_ahead(self.documents, self.host.image_settings)):
            try:
                self.waiting[index] = encode_document(self.host.prompt, self.query, parts, self.limits)
                tokens += len(self.waiting[index])
            except InputError as error:
                self.failed.append(FailedDocument(index, str(error), self.documents[index]))
                if on_error == "raise":
                    return type(error)(f"document {index}: {error}")
                self.bar.advance()
            self.bar.show(f"{index + 1} of {len(self.documents)} read")
            if tokens >= CHUNK_BATCHES * self.how.batch_tokens and not at_once:
                self.score()
                tokens = 0
        if at_once:
            self.bar.restart_clock()
        return None

    def score(self) -> None:
        """Score what waits."""
        if not self.waiting:
            return
        drafts, done = self.draft_scores(self.cascade) if self.cascade else ({}, 0.0)
        full = [index for index in self.waiting if index not in drafts]
        bar_part = self.bar, len(self.waiting) - done
        full_logits = score_prompts(self.host, [self.waiting[index] for index in full], self.how, part_of=bar_part)
        by_index = dict(zip(full, full_logits.tolist(), strict=True)) | drafts
        logits = torch.tensor([by_index[index] for index in self.waiting], dtype=full_logits.dtype)
        scores = relevance(logits, self.host.model.config.logit_bias)
        for (index, encoding), logit, value in zip(self.waiting.items(), logits.tolist(), scores.tolist(), strict=True):
            prompt_facts = encoding.counts, encoding.cut
            self.results.append(RankedDocument(index, value, logit, self.documents[index], *prompt_facts, index in drafts))
        self.waiting.clear()

    def draft_scores(self, cascade: Cascade) -> tuple[dict[int, float], float]:
        """Cheap logits of the documents that a cascade does not score in full, and how many documents' work that was."""
        draft_prompts = self.waiting
        if cascade.max_pixels is not None:
            small_query = cascade.smaller(self.query)
            small_documents = {index: cascade.smaller(encoding.parts["document"]) for index, encoding in self.waiting.items()}
            draft_prompts = {
                index: self.host.prompt.encode(small_query, parts, self.limits) for index, parts in small_documents.items()
            }
        layers = self.host.model.config.decoder.num_layers
        draft_cost = sum(map(len, draft_prompts.values())) * (cascade.depth or layers) / layers
        full_cost = sum(map(len, self.waiting.values())) * min(cascade.keep / len(draft_prompts), 1)
        done = len(draft_prompts) * draft_cost / (draft_cost + full_cost)
        logits = score_prompts(self.host, list(draft_prompts.values()), self.how, cascade, (self.bar, done))
        order = sorted(zip(draft_prompts, logits.tolist(), strict=True), key=lambda pair: -pair[1])
        return dict(order[cascade.keep :]), done

    def agree_on_failures(self, first_error: InputError | None) -> InputError | None:
        """Processes that share a ranking agree on what they have read: what one of them cannot use, none does. Returns what all raise."""
        gathered = gather_objects((str(first_error) if first_error else "", {f.index: f.error for f in self.failed}))
        if messages := [text for text, _ in gathered if text]:
            return InputError(messages[0])
        failed_anywhere = {index: error for _, errors in gathered for index, error in errors.items()}
        failed_here = {f.index for f in self.failed}
        self.failed += [
            FailedDocument(i, error, self.documents[i]) for i, error in sorted(failed_anywhere.items()) if i not in failed_here
        ]
        for index in failed_anywhere:
            self.waiting.pop(index, None)
        keys = gather_objects(sha256(repr([encoding.key for encoding in self.waiting.values()]).encode()).hexdigest())
        if len(set(keys)) > 1:
            return InputError("the processes that share a ranking were given different documents or queries.")
        return None


def rank(
    host: Host,
    query: Any,
    documents: Sequence[Any],
    top_n: int | None,
    on_error: Literal["raise", "skip"],
    cascade: Cascade | None,
    limits: Limits,
    run: RunOptions,
) -> Ranking:
    """As `Reranker.rank`, whose arguments these are."""
    top_n = None if top_n is None else whole_number(top_n, "top_n")
    check_ranking(host, documents, on_error, cascade, limits, run)
    how = ScoringCall(run.tokens(host.model.device), run.progress, VisualFeatures(host.model, host.sessions), run.shared)
    warn_of_files(documents)
    query_parts = read_side(query, "query", host.image_settings)
    with closing(Progress(len(documents), "scoring", run.progress)) as bar:
        ranker = _Ranker(host, query_parts, documents, limits, how, cascade, bar)
        error = ranker.read(on_error)
        if run.shared:
            error = ranker.agree_on_failures(error)
        if error is not None:
            raise error
        ranker.score()
    ranker.results.sort(key=lambda result: (result.approximate, -result.logit, result.index))
    return Ranking(ranker.results[:top_n], ranker.failed)


def check_ranking(
    host: Host, documents: Sequence[Any], on_error: str, cascade: Cascade | None, limits: Limits, run: RunOptions
) -> None:
    """Raises InputError where a ranking cannot be made so."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}, but must be 'raise' or 'skip'.")
    if not documents:
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
    failed = [FailedDocument(r.index, errors[r.index], r.document) for r in ranking if r.index in errors]
    return replace(ranking, results=[r for r in ranking if r.index not in errors], failed=[*ranking.failed, *failed])
