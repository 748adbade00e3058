"""How a run begins: in a directory of its own, or where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from m0.errors import TrainError
from m0.train.checkpoints import find_checkpoints, read_checkpoint
from m0.train.config import TrainConfig
from m0.train.record import RUN_FILE, print_message

UNCOMPARED_SETTINGS = (
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "parallel",
    "device",
    "output",
    "data",
    "validation",
)
"""Settings that may change when a run is resumed. Data are compared by what they hold (their hashes), not by how their paths are
written."""


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins."""

    stage: int = 0
    step: int = 0
    """Updates done so far, of all stages."""
    trained: dict[str, Tensor] = field(default_factory=dict)
    """What earlier stages have trained."""
    learner: dict[str, Tensor] | None = None
    """The state of a learner that was stopped."""


def start_or_resume(
    run: Path, config: TrainConfig, hashes: Mapping[str, str], resume: bool, rank: int = 0, world: int = 1
) -> StartingPoint:
    """Make a run's directory, or take up a run that was stopped.

    Args:
        run: the run's directory.
        config, hashes: of the run and of its data, for a comparison with those it was begun with.
        resume: go on.
        rank, world: this process's number, and how many there are.

    Raises TrainError where the directory holds another run, or none to go on with.
    """
    paths = find_checkpoints(run)
    if resume:
        if not paths and _is_only_started(run, config, hashes):
            if rank == 0:
                print_message(f"{run} has no checkpoint yet: beginning anew")
            return StartingPoint()
        if not paths:
            raise TrainError(f"{run} has no checkpoint to resume from; delete it to begin anew.")
        tensors, about = _read_newest(paths)
        if changed := describe_changes(about["config"], compared_settings(config)):
            raise TrainError(
                f"{run} was begun with another config ({changed}); resume with the same, or choose another output."
            )
        if list(about["data"].values()) != list(hashes.values()):
            raise TrainError(f"{run} was begun with other data: a file has changed; choose another output.")
        if rank == 0:
            print_message(f"going on from step {about['step']}")
        trained = {name.removeprefix("trained/"): t for name, t in tensors.items() if name.startswith("trained/")}
        learner = {name: t for name, t in tensors.items() if not name.startswith("trained/")}
        return StartingPoint(about["stage"], about["step"], trained, learner)
    if run.exists() and not run.is_dir():
        raise TrainError(f"{run} is a file; output must name a directory.")
    if run.exists() and any(run.iterdir()):
        raise TrainError(f"{run} is not empty; go on with --resume, or choose another output.")
    if world > 1:
        dist.barrier()
    if rank == 0:
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainError(f"the run's directory {run} cannot be made: {error.strerror}.") from None
    return StartingPoint()


def compared_settings(config: TrainConfig) -> dict[str, Any]:
    """What must be the same in a run that is continued, as JSON gives it back."""
    values = asdict(config)
    for name in UNCOMPARED_SETTINGS:
        del values[name]
    return json.loads(json.dumps(values))


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which settings differ; empty if none."""
    changed = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if name == "stages" and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            changed += [
                f"stage {number}: {inner}"
                for number, pair in enumerate(zip(old, new, strict=True), 1)
                if (inner := describe_changes(*pair))
            ]
        elif name not in UNCOMPARED_SETTINGS and old != new:
            changed.append(f"{name} was {old!r}, is {new!r}")
    return ", ".join(changed)


def _read_newest(paths: list[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint that can be read."""
    for path in reversed(paths[1:]):
        try:
            return read_checkpoint(path)
        except TrainError as error:
            print_message(f"{error} Trying the one before.")
    return read_checkpoint(paths[0])


def _is_only_started(run: Path, config: TrainConfig, hashes: Mapping[str, str]) -> bool:
    """Whether a run that was stopped before its first checkpoint left nothing but this config's own beginnings."""
    if not (run / RUN_FILE).exists():
        return run.is_dir() and not any(run.iterdir())
    try:
        begun = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    settings = compared_settings(config)
    same_data = list(begun["data"].values()) == list(hashes.values())
    return same_data and {name: begun["config"].get(name) for name in settings} == settings
