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
from m0.train.checkpoints import describe_last_checkpoint, lock_run, write_checkpoint
from m0.train.config import TrainConfig
from m0.train.data import Examples
from m0.train.learner import ADAPTER_NAME, Learner, load_reranker, sum_over_processes
from m0.train.microbatches import MicroBatch, MicroBatchBuilder
from m0.train.mining import mine_for_stage
from m0.train.record import CURVES_IMAGE, CurveWriter, draw_curves, print_message, write_run_description
from m0.train.resuming import compared_settings, start_or_resume
from m0.train.updates import StageUpdater
from m0.train.validation import Validation

RESULT_FOLDER = "result"


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
            run = _TrainingRun(config, resume)
            with lock_run(run.directory) if run.rank == 0 else contextlib.nullcontext():
                return run.train()
        except M0Error:
            raise
        except OSError as error:
            raise TrainError(f"the run cannot go on: {error}; {describe_last_checkpoint(path_of(config.output))}") from None
        except RuntimeError as error:
            if dist.is_initialized() and _is_connection_error(error):
                raise TrainError(
                    f"another process of this run has ended; {describe_last_checkpoint(path_of(config.output))} Continue with --resume."
                ) from None
            raise


class _TrainingRun:
    def __init__(self, config: TrainConfig, resume: bool) -> None:
        self.config = config
        self.directory = path_of(config.output)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        _check_world_size(config, self.world)
        needs_scores = any(stage.distils for stage in config.stages)
        examples = Examples([path_of(path) for path in config.data], config.on_bad_line, needs_scores)
        validation_examples = (
            Examples([path_of(path) for path in config.validation], config.on_bad_line, needs_scores)
            if config.validation
            else None
        )
        _check_rankable(config, examples)
        if self.rank == 0:
            for sentence in (*examples.bad, *(validation_examples.bad if validation_examples else ())):
                print_message(f"left out: {sentence}")
        self.steps = [
            stage.steps or stage.epochs * math.ceil(len(examples) / stage.queries_per_step) for stage in config.stages
        ]
        self.hashes = {**examples.hashes, **(validation_examples.hashes if validation_examples else {})}
        self.examples, self.builder = examples, MicroBatchBuilder(config, examples, self.rank, self.world)
        self.validation = Validation(validation_examples, self.builder) if validation_examples else None
        self.record: CurveWriter | None = None
        start = start_or_resume(self.directory, config, self.hashes, resume, self.rank, self.world)
        self.first_stage, self.steps_done = start.stage, start.step
        self.trained: dict[str, Tensor] = start.trained
        self.resumed: dict[str, Tensor] | None = start.learner

    def train(self) -> Path:
        try:
            return self._train_stages()
        except BaseException:
            if self.record is not None:
                self.record.close()  # so that what is said next does not stand in the bar
            raise

    def _train_stages(self) -> Path:
        config = self.config
        for number in range(self.first_stage, len(config.stages)):
            torch.manual_seed(config.seed)
            learner = Learner(config, config.stages[number], self.trained)
            reranker = learner.reranker
            if self.rank == 0 and self.record is None:
                write_run_description(
                    self.directory, config, self.hashes, self.world, str(reranker.model.device), self.steps_done
                )
                self.record = CurveWriter(self.directory, self.steps_done, sum(self.steps))
            if self.validation is not None and number == self.first_stage:
                self.validation.encode_all(reranker)
            mined = mine_for_stage(self.directory, config, number, reranker, self.examples, self.rank, self.world)
            self.builder.begin_stage(number, mined)
            self._train_stage(number, learner)
            self.trained |= {
                name.removeprefix("parameter/"): value
                for name, value in learner.state().items()
                if name.startswith("parameter/")
            }
            del learner, reranker
        result = self.directory / RESULT_FOLDER
        if self.rank == 0:
            assert self.record is not None
            self.record.close()
            self.record = None
            _write_result(config, self.trained, result)
            if draw_curves(self.directory) is None:
                print_message(
                    f"{CURVES_IMAGE} needs matplotlib: pip install 'm0-reranker[plot]'; the figures are in curves.csv"
                )
        if self.world > 1:
            dist.barrier()
        return result

    def _train_stage(self, number: int, learner: Learner) -> None:
        stage, steps, before = self.config.stages[number], self.steps[number], sum(self.steps[:number])
        updates = StageUpdater(self.directory, number, steps, before, learner, self.rank, self.world)
        if self.resumed is not None:
            learner.restore(self.resumed)
            self.resumed = None
        queries_used, from_start = 0, self.steps_done == before
        with ThreadPoolExecutor(1) as reader:  # reads and tokenizes the next step while this one computes
            next_micro_batches: Future[list[MicroBatch]] | None = None
            for step in range(self.steps_done - before, steps):
                micro_batches = (next_micro_batches or reader.submit(self.builder.for_step, step, learner.reranker)).result()
                if step + 1 < steps:
                    next_micro_batches = reader.submit(self.builder.for_step, step + 1, learner.reranker)
                queries_used += sum(len(micro_batch.lists) for micro_batch in micro_batches)
                row = updates.update(step, micro_batches)
                self.steps_done += 1
                last = step + 1 == steps
                if self.validation and (last or self.steps_done % self.config.validate_every == 0):
                    row |= self.validation.measure(learner, stage)
                if self.record is not None:
                    self.record.add(row)
                if last or self.steps_done % self.config.checkpoint_every == 0:
                    if last and from_start and not sum_over_processes([float(queries_used)])[0]:
                        raise TrainError(f"stage {number + 1} has trained on nothing: none of its queries could be used.")
                    updates.check_last_update(step, micro_batches[0])
                    self._save_checkpoint(number, learner)

    def _save_checkpoint(self, number: int, learner: Learner) -> None:
        tensors = learner.state()  # every process takes part: its weights may be spread over all
        if self.rank == 0:
            tensors |= {f"trained/{name}": value for name, value in self.trained.items() if f"parameter/{name}" not in tensors}
            description = {
                "stage": number,
                "step": self.steps_done,
                "config": compared_settings(self.config),
                "data": self.hashes,
            }
            write_checkpoint(self.directory, self.steps_done, tensors, description, self.config.keep_checkpoints)


def _check_world_size(config: TrainConfig, world: int) -> None:
    """Whether so many processes can do what each stage asks."""
    for number, stage in enumerate(config.stages, 1):
        if stage.queries_per_step // stage.queries_per_pass % world:
            raise TrainError(
                f"stage {number}: a step has {stage.queries_per_step // stage.queries_per_pass} passes, but must have a "
                f"multiple of {world}, the number of processes; change queries_per_step or queries_per_pass."
            )
        if stage.hard_negatives and world > 1 and config.parallel == "fsdp":
            raise TrainError(f'stage {number}: hard_negatives are mined in whole models; use parallel = "ddp", or mine before.')


def _check_rankable(config: TrainConfig, examples: Examples) -> None:
    """Whether each stage's loss finds what it compares."""
    for number, stage in enumerate(config.stages, 1):
        alone = not (stage.in_batch_negatives or stage.hard_negatives or (stage.negatives and examples.num_rankable))
        if alone and set(stage.loss) != {"bce"}:
            raise TrainError(
                f"stage {number}: there is nothing to rank, as no query meets a document that is not its positive; "
                "give negatives, or set in_batch_negatives or hard_negatives."
            )


def _write_result(config: TrainConfig, trained: Mapping[str, Tensor], directory: Path) -> None:
    torch.manual_seed(config.seed)
    reranker = load_reranker(config, trained, finished=True)
    if config.result == "adapter" or (config.result == "auto" and config.trains_lora):
        reranker.adapters.save(directory, ADAPTER_NAME)
        return
    if config.trains_lora:
        reranker.adapters.merge()
    reranker.save_pretrained(directory, dtype=getattr(torch, config.dtype))


def _is_connection_error(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("connection", "gloo", "nccl", "peer", "timed out", "timeout"))
