"""The training loop: stages, updates, checkpoints, resuming; in one process or in many under torchrun."""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m0.batch import Batch
from m0.errors import InputError, M0Error, TrainError
from m0.parallel import processes
from m0.paths import path_of
from m0.prompt import Encoding, Limits, read_parts
from m0.reranker import Reranker
from m0.train import state
from m0.train.config import Stage, TrainConfig
from m0.train.data import Candidates, Example, Examples, candidates, document_key, drawn_positives
from m0.train.learner import ADAPTER, Learner, learning_rate_factor, load, sum_over_processes
from m0.train.losses import combined
from m0.train.mining import mine
from m0.train.record import CURVES_PICTURE, RUN, Record, describe, draw_curves, write_json

RESULT = "result"
NOT_COMPARED = ("validate_every", "checkpoint_every", "keep_checkpoints", "parallel", "device", "output", "data", "validation")
"""Settings that may change when a run is resumed. Data are compared by what they hold (their hashes), not by how their paths are
written."""


@dataclass(frozen=True)
class Pass:
    """Queries that go through the model together."""

    batch: Batch
    lists: list[tuple[slice, Tensor, Tensor | None]]
    """For each query: which logits are its documents', their labels, a teacher's scores."""


@dataclass
class Totals:
    """Sums over the queries of a validation or an update."""

    loss: float = 0.0
    right: float = 0.0
    ranked: float = 0.0
    """Those that had both relevant documents and others."""
    queries: float = 0.0
    tokens: float = 0.0


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
            with state.held(run.run) if run.rank == 0 else contextlib.nullcontext():
                return run.train()
        except M0Error:
            raise
        except OSError as error:
            raise TrainError(f"the run cannot go on: {error}; {state.last_good(path_of(config.output))}") from None
        except RuntimeError as error:
            if dist.is_initialized() and _is_connection_error(error):
                raise TrainError(
                    f"another process of this run has ended; {state.last_good(path_of(config.output))} Continue with --resume."
                ) from None
            raise


class _Run:
    def __init__(self, config: TrainConfig, resume: bool) -> None:
        self.config = config
        self.run = path_of(config.output)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for number, stage in enumerate(config.stages, 1):
            if stage.queries_per_step // stage.queries_per_pass % self.world:
                raise TrainError(
                    f"stage {number}: a step has {stage.queries_per_step // stage.queries_per_pass} passes, but must have a "
                    f"multiple of {self.world}, the number of processes; change queries_per_step or queries_per_pass."
                )
            if stage.hard_negatives and self.world > 1 and config.parallel == "fsdp":
                raise TrainError(
                    f'stage {number}: hard_negatives are mined in whole models; use parallel = "ddp", or mine before.'
                )
        taught = any(stage.distils for stage in config.stages)
        self.examples = Examples([path_of(path) for path in config.data], config.on_bad_line, taught)
        self.validation = (
            Examples([path_of(path) for path in config.validation], config.on_bad_line, taught) if config.validation else None
        )
        for number, stage in enumerate(config.stages, 1):
            alone = not (stage.in_batch_negatives or stage.hard_negatives or (stage.negatives and self.examples.contrasted))
            if alone and set(stage.loss) != {"bce"}:
                raise TrainError(
                    f"stage {number}: there is nothing to rank, as no query meets a document that is not its positive; "
                    "give negatives, or set in_batch_negatives or hard_negatives."
                )
        if self.rank == 0:
            for sentence in (*self.examples.bad, *(self.validation.bad if self.validation else ())):
                _say(f"left out: {sentence}")
        self.steps = [
            stage.steps or stage.epochs * math.ceil(len(self.examples) / stage.queries_per_step) for stage in config.stages
        ]
        self.trained: dict[str, Tensor] = {}
        self.resumed: dict[str, Tensor] | None = None
        self.distils = False
        self.said: set[str] = set()
        self.mined: dict[int, tuple[Any, ...]] = {}
        self.first_stage, self.done = 0, 0
        self.record: Record | None = None
        self._begin(resume)

    def _begin(self, resume: bool) -> None:
        """Make the run's directory, or take up a run that was stopped."""
        paths = state.found(self.run)
        if resume:
            if not paths and self._untouched():
                if self.rank == 0:
                    _say(f"{self.run} has no checkpoint yet: beginning anew")
                return
            if not paths:
                raise TrainError(f"{self.run} has no checkpoint to resume from; delete it to begin anew.")
            tensors, about = self._newest(paths)
            if changed := _changes(about["config"], _comparable(self.config)):
                raise TrainError(
                    f"{self.run} was begun with another config ({changed}); resume with the same, or choose another output."
                )
            if list(about["data"].values()) != list(self._data_hashes().values()):
                raise TrainError(f"{self.run} was begun with other data: a file has changed; choose another output.")
            self.first_stage, self.done = about["stage"], about["step"]
            self.trained = {name.removeprefix("trained/"): t for name, t in tensors.items() if name.startswith("trained/")}
            self.resumed = {name: t for name, t in tensors.items() if not name.startswith("trained/")}
            if self.rank == 0:
                _say(f"going on from step {self.done}")
            return
        if self.run.exists() and not self.run.is_dir():
            raise TrainError(f"{self.run} is a file; output must name a directory.")
        if self.run.exists() and any(self.run.iterdir()):
            raise TrainError(f"{self.run} is not empty; go on with --resume, or choose another output.")
        if self.world > 1:
            dist.barrier()
        if self.rank == 0:
            try:
                self.run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainError(f"the run's directory {self.run} cannot be made: {error.strerror}.") from None

    def _newest(self, paths: list[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The newest checkpoint that can be read."""
        for path in reversed(paths[1:]):
            try:
                return state.load(path)
            except TrainError as error:
                _say(f"{error} Trying the one before.")
        return state.load(paths[0])

    def _untouched(self) -> bool:
        """Whether a run that was stopped before its first checkpoint left nothing but this config's own beginnings."""
        if not (self.run / RUN).exists():
            return self.run.is_dir() and not any(self.run.iterdir())
        try:
            begun = json.loads((self.run / RUN).read_text(encoding="utf-8"))
        except ValueError:
            return False
        mine = _comparable(self.config)
        same_data = list(begun["data"].values()) == list(self._data_hashes().values())
        return same_data and {name: begun["config"].get(name) for name in mine} == mine

    def train(self) -> Path:
        try:
            return self._train()
        except BaseException:
            if self.record is not None:
                self.record.close()  # so that what is said next does not stand in the bar
            raise

    def _train(self) -> Path:
        for number in range(self.first_stage, len(self.config.stages)):
            torch.manual_seed(self.config.seed)
            learner = Learner(self.config, self.config.stages[number], self.trained)
            if self.rank == 0 and self.record is None:
                device = str(learner.reranker.model.device)
                self._describe(device)
                self.record = Record(self.run, self.done, sum(self.steps))
            if self.validation is not None and number == self.first_stage:
                for one in range(self.rank, len(self.validation), self.world):  # a damaged picture shows before the work
                    self._validation_pass(one, learner.reranker)
            self.mined = self._mine(number, learner.reranker)
            self._stage(number, learner)
            self.trained |= {
                name.removeprefix("parameter/"): value
                for name, value in learner.state().items()
                if name.startswith("parameter/")
            }
            del learner
        result = self.run / RESULT
        if self.rank == 0:
            assert self.record is not None
            self.record.close()
            self.record = None
            self._write_result(result)
            if draw_curves(self.run) is None:
                _say(f"{CURVES_PICTURE} needs matplotlib: pip install 'm0-reranker[plot]'; the figures are in curves.csv")
        if self.world > 1:
            dist.barrier()
        return result

    def _describe(self, device: str) -> None:
        """run.json: as the run began, and each time it was taken up."""
        about = describe(self.config, self._data_hashes(), self.world, device)
        path = self.run / RUN
        if self.done and path.exists():
            try:
                begun = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # cut off by a disk that was full
                begun = {"note": "how the run began is lost: run.json was damaged"}
            taken_up = {name: about[name] for name in ("started", "versions", "git_revision", "processes", "threads", "device")}
            about = {**begun, "resumed": [*begun.get("resumed", []), {"step": self.done, **taken_up}]}
        write_json(path, about)

    # --- one stage ----------------------------------------------------------------------------------------------------

    def _stage(self, number: int, learner: Learner) -> None:
        stage, before = self.config.stages[number], sum(self.steps[:number])
        self.distils = stage.distils
        if self.resumed is not None:
            learner.restore(self.resumed)
            self.resumed = None
        used, whole = 0, self.done == before
        with ThreadPoolExecutor(1) as reader:  # reads and tokenizes the next step while this one computes
            coming: Future[list[Pass]] | None = None
            for step in range(self.done - before, self.steps[number]):
                passes = (coming or reader.submit(self._read, number, step, learner.reranker)).result()
                if step + 1 < self.steps[number]:
                    coming = reader.submit(self._read, number, step + 1, learner.reranker)
                used += sum(len(one.lists) for one in passes)
                row = self._update(number, step, learner, passes)
                self.done += 1
                last = step + 1 == self.steps[number]
                if self.validation and (last or self.done % self.config.validate_every == 0):
                    row |= self._validate(learner, stage)
                if self.record is not None:
                    self.record.add(row)
                if last or self.done % self.config.checkpoint_every == 0:
                    if last and whole and not sum_over_processes([float(used)])[0]:
                        raise TrainError(f"stage {number + 1} has trained on nothing: none of its queries could be used.")
                    self._prove(learner, stage, passes[0])
                    self._save(number, learner)

    @torch.no_grad()
    def _prove(self, learner: Learner, stage: Stage, one: Pass) -> None:
        """A loss is seen before its update: what the last update did shows in another look at one of its passes."""
        totals = Totals()
        with self._autocast(learner):
            _loss(learner.scorer(one.batch), one, stage, totals)
        self._refuse_not_finite("the loss", sum_over_processes([totals.loss])[0], after=True)

    def _update(self, number: int, step: int, learner: Learner, passes: list[Pass]) -> dict[str, Any]:
        stage, begin = self.config.stages[number], time.monotonic()
        rate = stage.learning_rate * learning_rate_factor(step, self.steps[number], stage.warmup, stage.final)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash((self.config.seed, number, step, self.rank)) & 0x7FFFFFFF)  # dropout, the same when resumed
        learner.optimizer.zero_grad(set_to_none=True)
        totals = Totals()
        for place, one in enumerate(passes):
            learner.hold_gradients(place + 1 < len(passes))
            with self._autocast(learner):
                logits = learner.scorer(one.batch)
                loss = _loss(logits, one, stage, totals) / stage.queries_per_step
            # DDP and FSDP take the mean over processes; ours is the sum over all queries of the step.
            (loss * self.world).backward()
            totals.tokens += one.batch.packing.total
        [totals.loss, totals.tokens] = sum_over_processes([totals.loss, totals.tokens])
        mean = totals.loss / stage.queries_per_step
        self._refuse_not_finite("the loss", mean)
        norm = learner.clip(stage.clip)
        self._refuse_not_finite("the gradient's norm", norm)
        try:
            learner.update()
        except TrainError as error:
            raise TrainError(f"{error}; {state.last_good(self.run)}") from None
        return {
            "stage": number + 1,
            "step": self.done + 1,
            "queries": stage.queries_per_step,
            "loss": mean,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": round(totals.tokens / (time.monotonic() - begin), 1),
        }

    @torch.no_grad()
    def _validate(self, learner: Learner, stage: Stage) -> dict[str, float | None]:
        """Loss and success@1 of every validation query against all its documents; success of those that have others than
        relevant ones, None where there are none."""
        assert self.validation is not None
        learner.scorer.eval()
        totals = Totals()
        count = len(self.validation)
        for start in range(0, count, self.world):  # as many passes in each process: the last ones may repeat a query unseen
            number = start + self.rank
            one = self._validation_pass(number % count, learner.reranker)
            with self._autocast(learner):
                logits = learner.scorer(one.batch)
                counted = totals if number < count else Totals()
                _loss(logits, one, stage, counted)
        learner.scorer.train()
        [loss, right, ranked, queries] = sum_over_processes([totals.loss, totals.right, totals.ranked, totals.queries])
        return {"validation_loss": loss / max(queries, 1), "validation_success": right / ranked if ranked else None}

    def _validation_pass(self, number: int, reranker: Reranker) -> Pass:
        assert self.validation is not None
        example = self.validation[number]
        everything = max(len(example.positive), len(example.negative), 1)
        chosen = candidates(example, everything, everything, random.Random(0))
        return self._pass([chosen], reranker, [self.validation.where(number)])

    def _save(self, number: int, learner: Learner) -> None:
        tensors = learner.state()  # every process takes part: its weights may be spread over all
        if self.rank == 0:
            tensors |= {f"trained/{name}": value for name, value in self.trained.items() if f"parameter/{name}" not in tensors}
            about = {
                "stage": number,
                "step": self.done,
                "config": _comparable(self.config),
                "data": self._data_hashes(),
            }
            state.save(self.run, self.done, tensors, about, self.config.keep_checkpoints)

    def _refuse_not_finite(self, what: str, value: float, after: bool = False) -> None:
        if not math.isfinite(value):
            when = f"after step {self.done}" if after else f"at step {self.done + 1}"
            raise TrainError(
                f"{what} is {value} {when}: training has diverged; lower learning_rate or raise warmup; "
                f"{state.last_good(self.run)}"
            )

    def _autocast(self, learner: Learner) -> contextlib.AbstractContextManager[Any]:
        if not self.config.autocast:
            return contextlib.nullcontext()
        return torch.autocast(learner.reranker.model.device.type, dtype=torch.bfloat16)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, number: int, step: int, reranker: Reranker) -> list[Pass]:
        """This process's passes of one step."""
        stage = self.config.stages[number]
        per_epoch = math.ceil(len(self.examples) / stage.queries_per_step)
        epoch, place = divmod(step, per_epoch)
        chosen = self._order(number, epoch)[place]
        size = stage.queries_per_pass
        passes = []
        for start in range(self.rank * size, len(chosen), self.world * size):
            group = chosen[start : start + size]
            examples = {i: self._example(i) for i in group}
            lists = []
            seeds = {i: f"{self.config.seed} {number} {epoch} {place} {i}" for place, i in enumerate(group, start)}
            for i in group:
                borrowed = []
                if stage.in_batch_negatives:
                    known = document_key(examples[i].query)
                    others = [j for j, e in examples.items() if j != i and document_key(e.query) != known]
                    drawn = [drawn_positives(examples[j], stage.positives, random.Random(seeds[j])) for j in others]
                    borrowed = list({document_key(d): d for some in drawn for d in some}.values())
                lists.append(candidates(examples[i], stage.positives, stage.negatives, random.Random(seeds[i]), borrowed))
            passes.append(self._pass(lists, reranker, [self.examples.where(i) for i in group]))
        return passes

    def _order(self, number: int, epoch: int) -> list[list[int]]:
        if getattr(self, "_order_of", None) != (number, epoch):
            queries = self.config.stages[number].queries_per_step
            self._order_of, self._steps = (number, epoch), self.examples.steps(queries, epoch, self.config.seed + number)
        return self._steps

    def _example(self, i: int) -> Example:
        example = self.examples[i]
        if not self.distils:  # a teacher's scores are of use to distilling losses only
            example = Example(example.query, example.positive, example.negative, None, example.grades)
        if not (hard := self.mined.get(i)):
            return example
        return Example(example.query, example.positive, hard, None, example.grades)

    def _pass(self, lists: Sequence[Candidates], reranker: Reranker, where: Sequence[str]) -> Pass:
        """Encode lists of candidates. A document that cannot be used is refused, or left out, as configured.

        Where nothing at all can be used, a stand-in keeps the processes in step; no loss is taken of it.
        """
        encodings: list[Encoding] = []
        ranges: list[tuple[slice, Tensor, Tensor | None]] = []
        limits = Limits(self.config.max_length, self.config.max_query_length, self.config.max_doc_length)
        opened: dict[str, Any] = {}
        for one, line in zip(lists, where, strict=True):
            start, labels, scores = len(encodings), [], []
            try:
                query = read_parts(one.query, "query", reranker.image_settings)
            except InputError as error:
                self._refuse(f"{line}: the query {str(one.query)[:60]!r}", error)
                continue
            for place, document in enumerate(one.documents):
                key = document_key(document)
                try:
                    if key not in opened:  # pictures are opened once a pass
                        opened[key] = read_parts(document, "document", reranker.image_settings)
                    encodings.append(reranker.prompt.encode(query, opened[key], limits))
                except InputError as error:
                    self._refuse(f"{line}: a document of the query {str(one.query)[:60]!r}", error)
                    continue
                labels.append(one.labels[place])
                scores.append(one.scores[place] if one.scores else 0.0)
            if len(encodings) > start:
                device = reranker.model.device
                teacher = torch.tensor(scores, device=device) if one.scores else None
                ranges.append((slice(start, len(encodings)), torch.tensor(labels, device=device), teacher))
        if not encodings:
            encodings.append(reranker.prompt.encode(["nothing"], ["nothing"], limits))
        return Pass(Batch.of(encodings, device=reranker.model.device), ranges)

    def _refuse(self, what: str, error: InputError) -> None:
        """A picture that turns out damaged, or a pair too long: an error, or a sentence and left out, as configured."""
        if self.config.on_bad_line == "raise":
            raise InputError(f"{what} cannot be used: {error}") from None
        sentence = f"left out: {what}: {error}"
        if sentence not in self.said:
            self.said.add(sentence)
            _say(sentence)

    def _mine(self, number: int, reranker: Reranker) -> dict[int, tuple[Any, ...]]:
        """Hard negatives for a stage, each process mining its share; kept in the run's directory for a resumed run."""
        stage = self.config.stages[number]
        if not stage.hard_negatives:
            return {}
        path = self.run / f"hard-negatives-{number + 1}.jsonl"
        if not path.exists():
            numbers = range(self.rank, len(self.examples), self.world)
            limits = {name: getattr(self.config, name) for name in ("max_length", "max_query_length", "max_doc_length")}
            reranker.model.eval()
            seed = self.config.seed + number
            mined = mine(reranker, self.examples, numbers, stage.hard_negatives, stage.mining_pool, seed, limits)
            reranker.model.train()
            if self.world > 1:
                parts: list[Any] = [None] * self.world
                dist.all_gather_object(parts, mined)
                mined = {i: documents for part in parts for i, documents in part.items()}
            if self.rank == 0:
                partial = path.with_suffix(".partial")
                with partial.open("w", encoding="utf-8") as file:
                    for i in sorted(mined):
                        file.write(json.dumps({"line": i, "negative": mined[i]}, ensure_ascii=False) + "\n")
                partial.replace(path)
            if self.world > 1:
                dist.barrier()
        with path.open(encoding="utf-8") as file:
            return {row["line"]: tuple(row["negative"]) for row in map(json.loads, file)}

    # --- the end ------------------------------------------------------------------------------------------------------

    def _write_result(self, directory: Path) -> None:
        torch.manual_seed(self.config.seed)
        reranker = load(self.config, self.trained, finished=True)
        kind = self.config.result
        if kind == "adapter" or (kind == "auto" and self.config.trains_lora):
            reranker.adapters.save(directory, ADAPTER)
            return
        if self.config.trains_lora:
            reranker.adapters.merge()
        reranker.save_pretrained(directory, dtype=getattr(torch, self.config.dtype))

    def _data_hashes(self) -> dict[str, str]:
        return {**self.examples.hashes, **(self.validation.hashes if self.validation else {})}


def _loss(logits: Tensor, one: Pass, stage: Stage, totals: Totals) -> Tensor:
    """Sum of the queries' losses; adds what is measured to `totals`."""
    total = logits.sum() * 0.0
    for places, labels, teacher in one.lists:
        own = logits[places]
        loss = combined(dict(stage.loss), own, labels, teacher)
        total = total + loss
        totals.loss += loss.item()
        relevant = labels > 0
        if relevant.any() and not relevant.all():
            totals.right += float(relevant[own.argmax()])
            totals.ranked += 1
        totals.queries += 1
    return total


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """What must be the same in a run that is continued, as JSON gives it back."""
    values = asdict(config)
    for name in NOT_COMPARED:
        del values[name]
    return json.loads(json.dumps(values))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which settings differ; empty if none."""
    changed = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if name == "stages" and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            changed += [
                f"stage {number}: {inner}"
                for number, pair in enumerate(zip(old, new, strict=True), 1)
                if (inner := _changes(*pair))
            ]
        elif name not in NOT_COMPARED and old != new:
            changed.append(f"{name} was {old!r}, is {new!r}")
    return ", ".join(changed)


def _is_connection_error(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("connection", "gloo", "nccl", "peer", "timed out", "timeout"))


def _say(sentence: str) -> None:
    print(f"m0: {sentence}", file=sys.stderr, flush=True)
