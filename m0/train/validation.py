"""How well a model that learns ranks the queries it does not learn from."""

from __future__ import annotations

import random

import torch

from m0.reranker import Reranker
from m0.train.config import Stage
from m0.train.data import Examples, draw_candidates
from m0.train.learner import Learner, sum_over_processes
from m0.train.microbatches import MicroBatch, MicroBatchBuilder
from m0.train.updates import Totals, compute_loss


class Validation:
    """Every validation query against all its documents.

    Args:
        examples: the queries.
        passes: encodes them.
    """

    def __init__(self, examples: Examples, builder: MicroBatchBuilder) -> None:
        self.examples, self.builder = examples, builder

    def encode_all(self, reranker: Reranker) -> None:
        """Read and encode all: a damaged picture shows before the work."""
        for number in range(self.builder.rank, len(self.examples), self.builder.world):
            self._micro_batch(number, reranker)

    @torch.no_grad()
    def measure(self, learner: Learner, stage: Stage) -> dict[str, float | None]:
        """Loss and success@1 of every validation query against all its documents; success of those that have others than
        relevant ones, None where there are none."""
        learner.scorer.eval()
        totals = Totals()
        count = len(self.examples)
        for start in range(0, count, self.builder.world):  # as many passes in each process: the last may repeat a query unseen
            number = start + self.builder.rank
            micro_batch = self._micro_batch(number % count, learner.reranker)
            with learner.autocast():
                logits = learner.scorer(micro_batch.batch)
                counted = totals if number < count else Totals()
                compute_loss(logits, micro_batch, stage, counted)
        learner.scorer.train()
        [loss, top_relevant, rankable, queries] = sum_over_processes(
            [totals.loss, totals.top_relevant, totals.rankable, totals.queries]
        )
        return {"validation_loss": loss / max(queries, 1), "validation_success": top_relevant / rankable if rankable else None}

    def _micro_batch(self, number: int, reranker: Reranker) -> MicroBatch:
        example = self.examples[number]
        all_documents = max(len(example.positive), len(example.negative), 1)
        chosen = draw_candidates(example, all_documents, all_documents, random.Random(0))
        return self.builder.encode([chosen], reranker, [self.examples.location(number)])
