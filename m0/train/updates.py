"""One stage's updates: passes in, the model changed, figures out. Losses that are not finite end the run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m0.errors import TrainError
from m0.train.checkpoints import describe_last_checkpoint
from m0.train.config import Stage
from m0.train.learner import Learner, learning_rate_factor, sum_over_processes
from m0.train.losses import weighted_loss
from m0.train.microbatches import MicroBatch


@dataclass
class Totals:
    """Sums over the queries of a validation or an update."""

    loss: float = 0.0
    top_relevant: float = 0.0
    rankable: float = 0.0
    """Those that had both relevant documents and others."""
    queries: float = 0.0
    tokens: float = 0.0


def compute_loss(logits: Tensor, micro_batch: MicroBatch, stage: Stage, totals: Totals) -> Tensor:
    """Sum of the queries' losses, one number, from logits, (prompts,); adds what is measured to `totals`."""
    total = logits.sum() * 0.0
    for places, labels, teacher in micro_batch.lists:
        query_logits = logits[places]
        loss = weighted_loss(dict(stage.loss), query_logits, labels, teacher)
        total = total + loss
        totals.loss += loss.item()
        relevant = labels > 0
        if relevant.any() and not relevant.all():
            totals.top_relevant += float(relevant[query_logits.argmax()])
            totals.rankable += 1
        totals.queries += 1
    return total


class StageUpdater:
    """The updates of one stage.

    Args:
        run: the run's directory, for messages.
        number: the stage's, from 0.
        steps: updates of the stage.
        before: updates of the stages before it.
        learner: the stage's.
        rank, world: this process's number, and how many there are.
    """

    def __init__(self, run: Path, number: int, steps: int, before: int, learner: Learner, rank: int, world: int) -> None:
        self.run, self.number, self.steps, self.before = run, number, steps, before
        self.learner, self.rank, self.world = learner, rank, world
        self.stage, self.seed = learner.stage, learner.config.seed

    def update(self, step: int, micro_batches: list[MicroBatch]) -> dict[str, Any]:
        """One step of the stage, counted from 0, and its figures. Raises TrainError where it diverges."""
        stage, learner, begin = self.stage, self.learner, time.monotonic()
        rate = stage.learning_rate * learning_rate_factor(step, self.steps, stage.warmup, stage.final)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash((self.seed, self.number, step, self.rank)) & 0x7FFFFFFF)  # dropout, the same when resumed
        learner.optimizer.zero_grad(set_to_none=True)
        totals = Totals()
        for place, micro_batch in enumerate(micro_batches):
            learner.hold_gradient_sync(place + 1 < len(micro_batches))
            with learner.autocast():
                logits = learner.scorer(micro_batch.batch)
                loss = compute_loss(logits, micro_batch, stage, totals) / stage.queries_per_step
            # DDP and FSDP take the mean over processes; ours is the sum over all queries of the step.
            (loss * self.world).backward()
            totals.tokens += micro_batch.batch.packing.total
        [totals.loss, totals.tokens] = sum_over_processes([totals.loss, totals.tokens])
        mean, when = totals.loss / stage.queries_per_step, f"at step {self.before + step + 1}"
        self._check_finite("the loss", mean, when)
        norm = learner.clip(stage.clip)
        self._check_finite("the gradient's norm", norm, when)
        try:
            learner.update()
        except TrainError as error:
            raise TrainError(f"{error}; {describe_last_checkpoint(self.run)}") from None
        return {
            "stage": self.number + 1,
            "step": self.before + step + 1,
            "queries": stage.queries_per_step,
            "loss": mean,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": round(totals.tokens / (time.monotonic() - begin), 1),
        }

    @torch.no_grad()
    def check_last_update(self, step: int, micro_batch: MicroBatch) -> None:
        """A loss is seen before its update: what the last update did shows in another look at one of its passes.

        Raises TrainError where it is not finite.
        """
        totals = Totals()
        with self.learner.autocast():
            compute_loss(self.learner.scorer(micro_batch.batch), micro_batch, self.stage, totals)
        self._check_finite("the loss", sum_over_processes([totals.loss])[0], f"after step {self.before + step + 1}")

    def _check_finite(self, what: str, value: float, when: str) -> None:
        if not math.isfinite(value):
            raise TrainError(
                f"{what} is {value} {when}: training has diverged; lower learning_rate or raise warmup; {describe_last_checkpoint(self.run)}"
            )
