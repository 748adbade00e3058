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
from m0.engine.parallel import agreed, is_split
from m0.engine.progress import Progress
from m0.engine.results import FailedDocument, RankedDocument, Ranking
from m0.engine.scoring import ScoringCall, score_prompts
from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError
from m0.inputs.prompt import Encoding, Limits, whole_number
from m0.inputs.reading import encode_document, read_ahead, read_parts_and_warn, warn_if_files
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
            self.bar.begin_now()
        return None

    def score(self) -> None:
        """Score what waits."""
        if not self.waiting:
            return
        drafts, done = self.draft_scores(self.cascade) if self.cascade else ({}, 0.0)
        full = [index for index in self.waiting if index not in drafts]
        part = self.bar, len(self.waiting) - done
        found = score_prompts(self.host, [self.waiting[index] for index in full], self.how, part_of=part)
        by_index = dict(zip(full, found.tolist(), strict=True)) | drafts
        logits = torch.tensor([by_index[index] for index in self.waiting], dtype=found.dtype)
        scores = relevance(logits, self.host.model.config.logit_bias)
        for (index, encoding), logit, value in zip(self.waiting.items(), logits.tolist(), scores.tolist(), strict=True):
            about = encoding.counts, encoding.cut
            self.results.append(RankedDocument(index, value, logit, self.documents[index], *about, index in drafts))
        self.waiting.clear()

    def draft_scores(self, cascade: Cascade) -> tuple[dict[int, float], float]:
        """Cheap logits of the documents that a cascade does not score in full, and how many documents' work that was."""
        cheap = self.waiting
        if cascade.max_pixels is not None:
            asked = cascade.smaller(self.query)
            shown = {index: cascade.smaller(encoding.parts["document"]) for index, encoding in self.waiting.items()}
            cheap = {index: self.host.prompt.encode(asked, parts, self.limits) for index, parts in shown.items()}
        layers = self.host.model.config.decoder.num_layers
        draft = sum(map(len, cheap.values())) * (cascade.depth or layers) / layers
        full = sum(map(len, self.waiting.values())) * min(cascade.keep / len(cheap), 1)
        done = len(cheap) * draft / (draft + full)
        logits = score_prompts(self.host, list(cheap.values()), self.how, cascade, (self.bar, done))
        order = sorted(zip(cheap, logits.tolist(), strict=True), key=lambda pair: -pair[1])
        return dict(order[cascade.keep :]), done

    def settle_failures(self, refused: InputError | None) -> InputError | None:
        """Processes that share a ranking settle what they have read: what one of them cannot use, none does. Returns what all raise."""
        said = agreed((str(refused) if refused else "", {f.index: f.error for f in self.failed}))
        if refusals := [text for text, _ in said if text]:
            return InputError(refusals[0])
        lost = {index: error for _, errors in said for index, error in errors.items()}
        known = {f.index for f in self.failed}
        self.failed += [FailedDocument(i, error, self.documents[i]) for i, error in sorted(lost.items()) if i not in known]
        for index in lost:
            self.waiting.pop(index, None)
        keys = agreed(sha256(repr([encoding.key for encoding in self.waiting.values()]).encode()).hexdigest())
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
    warn_if_files(documents)
    asked = read_parts_and_warn(query, "query", host.image_settings)
    with closing(Progress(len(documents), "scoring", run.progress)) as bar:
        ranker = _Ranker(host, asked, documents, limits, how, cascade, bar)
        refused = ranker.read(on_error)
        if run.shared:
            refused = ranker.settle_failures(refused)
        if refused is not None:
            raise refused
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


def without(ranking: Ranking, lost: dict[int, str]) -> Ranking:
    """The ranking without some of its documents, which are listed as failed, with why."""
    failed = [FailedDocument(r.index, lost[r.index], r.document) for r in ranking if r.index in lost]
    return replace(ranking, results=[r for r in ranking if r.index not in lost], failed=[*ranking.failed, *failed])
