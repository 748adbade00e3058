"""Queries with their documents, read, tokenized and packed: what goes through the model in a step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m0.engine.batch import Batch
from m0.errors import InputError
from m0.inputs.prompt import Encoding, Limits
from m0.inputs.reading import read_parts
from m0.reranker import Reranker
from m0.train.config import TrainConfig
from m0.train.data import Candidates, Example, Examples, document_key, draw_candidates, draw_positives
from m0.train.record import print_message


@dataclass(frozen=True)
class MicroBatch:
    """Queries that go through the model together."""

    batch: Batch
    lists: list[tuple[slice, Tensor, Tensor | None]]
    """For each query: which logits are its documents', their labels, a teacher's scores."""


class MicroBatchBuilder:
    """Makes this process's passes, one stage after another.

    Args:
        config: of the run.
        examples: what is trained on.
        rank, world: this process's number, and how many there are.
    """

    def __init__(self, config: TrainConfig, examples: Examples, rank: int, world: int) -> None:
        self.config, self.examples, self.rank, self.world = config, examples, rank, world
        self._reported: set[str] = set()
        self.begin_stage(0, {})

    def begin_stage(self, number: int, mined: Mapping[int, tuple[Any, ...]]) -> None:
        """Read for a stage from now on. `mined`: its hard negatives by the number of the query."""
        self._stage_number, self._stage, self._mined = number, self.config.stages[number], mined
        self._epoch: int | None = None
        self._steps: list[list[int]] = []

    def for_step(self, step: int, reranker: Reranker) -> list[MicroBatch]:
        """This process's passes of one step of the stage."""
        stage = self._stage
        per_epoch = math.ceil(len(self.examples) / stage.queries_per_step)
        epoch, place = divmod(step, per_epoch)
        chosen = self._epoch_order(epoch)[place]
        size = stage.queries_per_pass
        micro_batches = []
        for start in range(self.rank * size, len(chosen), self.world * size):
            group = chosen[start : start + size]
            examples = {i: self._example(i) for i in group}
            lists = []
            seeds = {i: f"{self.config.seed} {self._stage_number} {epoch} {place} {i}" for place, i in enumerate(group, start)}
            for i in group:
                borrowed = []
                if stage.in_batch_negatives:
                    known = document_key(examples[i].query)
                    others = [j for j, e in examples.items() if j != i and document_key(e.query) != known]
                    drawn = [draw_positives(examples[j], stage.positives, random.Random(seeds[j])) for j in others]
                    borrowed = list({document_key(d): d for some in drawn for d in some}.values())
                lists.append(draw_candidates(examples[i], stage.positives, stage.negatives, random.Random(seeds[i]), borrowed))
            micro_batches.append(self.encode(lists, reranker, [self.examples.location(i) for i in group]))
        return micro_batches

    def _epoch_order(self, epoch: int) -> list[list[int]]:
        if self._epoch != epoch:
            seed = self.config.seed + self._stage_number
            self._epoch, self._steps = epoch, self.examples.steps(self._stage.queries_per_step, epoch, seed)
        return self._steps

    def _example(self, i: int) -> Example:
        example = self.examples[i]
        if not self._stage.distils:  # a teacher's scores are of use to distilling losses only
            example = Example(example.query, example.positive, example.negative, None, example.grades)
        if not (hard := self._mined.get(i)):
            return example
        return Example(example.query, example.positive, hard, None, example.grades)

    def encode(self, lists: Sequence[Candidates], reranker: Reranker, where: Sequence[str]) -> MicroBatch:
        """Encode lists of candidates. A document that cannot be used is refused, or left out, as configured.

        Where nothing at all can be used, a stand-in keeps the processes in step; no loss is taken of it. Raises InputError (of a
        document with its file and line).

        Args:
            lists: one for each query.
            reranker: encodes.
            where: file and line of each query, for messages.
        """
        encodings: list[Encoding] = []
        ranges: list[tuple[slice, Tensor, Tensor | None]] = []
        limits = Limits(self.config.max_length, self.config.max_query_length, self.config.max_doc_length)
        parts_by_key: dict[str, Any] = {}
        for candidates, line in zip(lists, where, strict=True):
            start, labels, scores = len(encodings), [], []
            try:
                query = read_parts(candidates.query, "query", reranker.image_settings)
            except InputError as error:
                self._skip_or_raise(f"{line}: the query {str(candidates.query)[:60]!r}", error)
                continue
            for place, document in enumerate(candidates.documents):
                key = document_key(document)
                try:
                    if key not in parts_by_key:  # pictures are opened once a pass
                        parts_by_key[key] = read_parts(document, "document", reranker.image_settings)
                    encodings.append(reranker.prompt.encode(query, parts_by_key[key], limits))
                except InputError as error:
                    self._skip_or_raise(f"{line}: a document of the query {str(candidates.query)[:60]!r}", error)
                    continue
                labels.append(candidates.labels[place])
                scores.append(candidates.scores[place] if candidates.scores else 0.0)
            if len(encodings) > start:
                device = reranker.model.device
                teacher = torch.tensor(scores, device=device) if candidates.scores else None
                ranges.append((slice(start, len(encodings)), torch.tensor(labels, device=device), teacher))
        if not encodings:
            encodings.append(reranker.prompt.encode(["nothing"], ["nothing"], limits))
        return MicroBatch(Batch.of(encodings, device=reranker.model.device), ranges)

    def _skip_or_raise(self, what: str, error: InputError) -> None:
        """A picture that turns out damaged, or a pair too long: an error, or a sentence and left out, as configured."""
        if self.config.on_bad_line == "raise":
            raise InputError(f"{what} cannot be used: {error}") from None
        sentence = f"left out: {what}: {error}"
        if sentence not in self._reported:
            self._reported.add(sentence)
            print_message(sentence)
