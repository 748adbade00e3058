"""How well a model that learns ranks the queries it does not learn from."""

from __future__ import annotations

import random

import torch

from m0.reranker import Reranker
from m0.train.config import Stage
from m0.train.data import Examples, candidates
from m0.train.learner import Learner, sum_over_processes
from m0.train.passes import Pass, Passes
from m0.train.updates import Totals, loss_of


class Validation:
    """Every validation query against all its documents.

    Args:
        examples: the queries.
        passes: encodes them.
    """

    def __init__(self, examples: Examples, passes: Passes) -> None:
        self.examples, self.passes = examples, passes

    def try_all(self, reranker: Reranker) -> None:
        """Read and encode all: a damaged picture shows before the work."""
        for number in range(self.passes.rank, len(self.examples), self.passes.world):
            self._pass(number, reranker)

    @torch.no_grad()
    def measure(self, learner: Learner, stage: Stage) -> dict[str, float | None]:
        """Loss and success@1 of every validation query against all its documents; success of those that have others than
        relevant ones, None where there are none."""
        learner.scorer.eval()
        totals = Totals()
        count = len(self.examples)
        for start in range(0, count, self.passes.world):  # as many passes in each process: the last may repeat a query unseen
            number = start + self.passes.rank
            one = self._pass(number % count, learner.reranker)
            with learner.autocast():
                logits = learner.scorer(one.batch)
                counted = totals if number < count else Totals()
                loss_of(logits, one, stage, counted)
        learner.scorer.train()
        [loss, right, ranked, queries] = sum_over_processes([totals.loss, totals.right, totals.ranked, totals.queries])
        return {"validation_loss": loss / max(queries, 1), "validation_success": right / ranked if ranked else None}

    def _pass(self, number: int, reranker: Reranker) -> Pass:
        example = self.examples[number]
        everything = max(len(example.positive), len(example.negative), 1)
        chosen = candidates(example, everything, everything, random.Random(0))
        return self.passes.encoded([chosen], reranker, [self.examples.where(number)])
