"""A training run: stages, checkpoints, the result; in one process or in many under torchrun."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from m0.engine.parallel import processes
from m0.errors import M0Error, TrainError
from m0.paths import path_of
from m0.train.config import TrainConfig
from m0.train.data import Examples
from m0.train.learner import ADAPTER, Learner, load, sum_over_processes
from m0.train.mining import mine_for_stage
from m0.train.passes import Pass, Passes
from m0.train.record import CURVES_PICTURE, Record, draw_curves, say, write_description
from m0.train.resuming import begin, comparable
from m0.train.state import held, last_good, save
from m0.train.updates import Updates
from m0.train.validation import Validation

RESULT = "result"


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train as configured.

    Writes into `config.output`: run.json (config, versions, data hashes), checkpoints/, curves.csv, curves.png (where
    matplotlib is installed), tensorboard/ (where it is installed), hard-negatives-N.jsonl (where they are mined), and result/: an adapter in peft's format or a full checkpoint.

    Args:
        config: what to train.
        resume: go on from the newest checkpoint of the same run. In one process on a CPU the weights come out bit for bit as
            if nothing had happened.

    Returns: the directory of the result. Raises TrainError, InputError or ConfigError, one sentence each.
    """
    with processes():
        try:
            run = _Run(config, resume)
            with held(run.run) if run.rank == 0 else contextlib.nullcontext():
                return run.train()
        except M0Error:
            raise
        except OSError as error:
            raise TrainError(f"the run cannot go on: {error}; {last_good(path_of(config.output))}") from None
        except RuntimeError as error:
            if dist.is_initialized() and _is_connection_error(error):
                raise TrainError(
                    f"another process of this run has ended; {last_good(path_of(config.output))} Continue with --resume."
                ) from None
            raise


class _Run:
    def __init__(self, config: TrainConfig, resume: bool) -> None:
        self.config = config
        self.run = path_of(config.output)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        _check_processes(config, self.world)
        taught = any(stage.distils for stage in config.stages)
        examples = Examples([path_of(path) for path in config.data], config.on_bad_line, taught)
        unseen = (
            Examples([path_of(path) for path in config.validation], config.on_bad_line, taught) if config.validation else None
        )
        _check_ranking(config, examples)
        if self.rank == 0:
            for sentence in (*examples.bad, *(unseen.bad if unseen else ())):
                say(f"left out: {sentence}")
        self.steps = [
            stage.steps or stage.epochs * math.ceil(len(examples) / stage.queries_per_step) for stage in config.stages
        ]
        self.hashes = {**examples.hashes, **(unseen.hashes if unseen else {})}
        self.examples, self.passes = examples, Passes(config, examples, self.rank, self.world)
        self.validation = Validation(unseen, self.passes) if unseen else None
        self.record: Record | None = None
        beginning = begin(self.run, config, self.hashes, resume, self.rank, self.world)
        self.first_stage, self.done = beginning.stage, beginning.step
        self.trained: dict[str, Tensor] = beginning.trained
        self.resumed: dict[str, Tensor] | None = beginning.learner

    def train(self) -> Path:
        try:
            return self._train()
        except BaseException:
            if self.record is not None:
                self.record.close()  # so that what is said next does not stand in the bar
            raise

    def _train(self) -> Path:
        config = self.config
        for number in range(self.first_stage, len(config.stages)):
            torch.manual_seed(config.seed)
            learner = Learner(config, config.stages[number], self.trained)
            reranker = learner.reranker
            if self.rank == 0 and self.record is None:
                write_description(self.run, config, self.hashes, self.world, str(reranker.model.device), self.done)
                self.record = Record(self.run, self.done, sum(self.steps))
            if self.validation is not None and number == self.first_stage:
                self.validation.try_all(reranker)
            mined = mine_for_stage(self.run, config, number, reranker, self.examples, self.rank, self.world)
            self.passes.begin_stage(number, mined)
            self._stage(number, learner)
            self.trained |= {
                name.removeprefix("parameter/"): value
                for name, value in learner.state().items()
                if name.startswith("parameter/")
            }
            del learner, reranker
        result = self.run / RESULT
        if self.rank == 0:
            assert self.record is not None
            self.record.close()
            self.record = None
            _write_result(config, self.trained, result)
            if draw_curves(self.run) is None:
                say(f"{CURVES_PICTURE} needs matplotlib: pip install 'm0-reranker[plot]'; the figures are in curves.csv")
        if self.world > 1:
            dist.barrier()
        return result

    def _stage(self, number: int, learner: Learner) -> None:
        stage, steps, before = self.config.stages[number], self.steps[number], sum(self.steps[:number])
        updates = Updates(self.run, number, steps, before, learner, self.rank, self.world)
        if self.resumed is not None:
            learner.restore(self.resumed)
            self.resumed = None
        used, whole = 0, self.done == before
        with ThreadPoolExecutor(1) as reader:  # reads and tokenizes the next step while this one computes
            coming: Future[list[Pass]] | None = None
            for step in range(self.done - before, steps):
                passes = (coming or reader.submit(self.passes.of_step, step, learner.reranker)).result()
                if step + 1 < steps:
                    coming = reader.submit(self.passes.of_step, step + 1, learner.reranker)
                used += sum(len(one.lists) for one in passes)
                row = updates.update(step, passes)
                self.done += 1
                last = step + 1 == steps
                if self.validation and (last or self.done % self.config.validate_every == 0):
                    row |= self.validation.measure(learner, stage)
                if self.record is not None:
                    self.record.add(row)
                if last or self.done % self.config.checkpoint_every == 0:
                    if last and whole and not sum_over_processes([float(used)])[0]:
                        raise TrainError(f"stage {number + 1} has trained on nothing: none of its queries could be used.")
                    updates.prove(step, passes[0])
                    self._save(number, learner)

    def _save(self, number: int, learner: Learner) -> None:
        tensors = learner.state()  # every process takes part: its weights may be spread over all
        if self.rank == 0:
            tensors |= {f"trained/{name}": value for name, value in self.trained.items() if f"parameter/{name}" not in tensors}
            about = {"stage": number, "step": self.done, "config": comparable(self.config), "data": self.hashes}
            save(self.run, self.done, tensors, about, self.config.keep_checkpoints)


def _check_processes(config: TrainConfig, world: int) -> None:
    """Whether so many processes can do what each stage asks."""
    for number, stage in enumerate(config.stages, 1):
        if stage.queries_per_step // stage.queries_per_pass % world:
            raise TrainError(
                f"stage {number}: a step has {stage.queries_per_step // stage.queries_per_pass} passes, but must have a "
                f"multiple of {world}, the number of processes; change queries_per_step or queries_per_pass."
            )
        if stage.hard_negatives and world > 1 and config.parallel == "fsdp":
            raise TrainError(f'stage {number}: hard_negatives are mined in whole models; use parallel = "ddp", or mine before.')


def _check_ranking(config: TrainConfig, examples: Examples) -> None:
    """Whether each stage's loss finds what it compares."""
    for number, stage in enumerate(config.stages, 1):
        alone = not (stage.in_batch_negatives or stage.hard_negatives or (stage.negatives and examples.contrasted))
        if alone and set(stage.loss) != {"bce"}:
            raise TrainError(
                f"stage {number}: there is nothing to rank, as no query meets a document that is not its positive; "
                "give negatives, or set in_batch_negatives or hard_negatives."
            )


def _write_result(config: TrainConfig, trained: Mapping[str, Tensor], directory: Path) -> None:
    torch.manual_seed(config.seed)
    reranker = load(config, trained, finished=True)
    if config.result == "adapter" or (config.result == "auto" and config.trains_lora):
        reranker.adapters.save(directory, ADAPTER)
        return
    if config.trains_lora:
        reranker.adapters.merge()
    reranker.save_pretrained(directory, dtype=getattr(torch, config.dtype))


def _is_connection_error(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("connection", "gloo", "nccl", "peer", "timed out", "timeout"))
