"""Checkpoints of a training run: one safetensors file each, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m0.checkpoints.files import write_beside
from m0.errors import TrainError

CHECKPOINT_FOLDER = "checkpoints"
CHECKPOINT_NAME = re.compile(r"step-(\d+)\.safetensors")


def write_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any], keep: int) -> Path:
    """Write checkpoints/step-N.safetensors, then delete all but the newest `keep`.

    `tensors`: of any shape, by name; `about`: what else the file says. The file is written under another name, forced to disk
    and renamed, so that a killed process or a full disk leaves the checkpoints before it untouched. Raises TrainError where it cannot be written.
    """
    folder = run / CHECKPOINT_FOLDER
    path = folder / f"step-{step:08d}.safetensors"

    def write(place: str) -> None:
        save_file(dict(tensors), place, metadata={"about": json.dumps(dict(about))})
        with open(place, "rb+") as file:
            os.fsync(file.fileno())

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_beside(path, write)
    except (OSError, SafetensorError) as error:
        raise TrainError(
            f"the checkpoint {path} cannot be written: {_error_reason(error)}; {describe_last_checkpoint(run)}"
        ) from None
    for old in find_checkpoints(run)[:-keep]:
        old.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keeps a second training out of a run's directory, where the system can (not on Windows). Raises TrainError in the second."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TrainError(f"another training is at work in {run}; wait for its end, or choose another output.") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def find_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in (run / CHECKPOINT_FOLDER).glob("step-*.safetensors") if CHECKPOINT_NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, of any shape, and description of a checkpoint. Raises TrainError on a damaged one."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            about = json.loads(handle.metadata()["about"])
            return {key: handle.get_tensor(key).clone() for key in handle.keys()}, about
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainError(f"{path} is not a readable checkpoint of a run: {_error_reason(error)}.") from None


def describe_last_checkpoint(run: Path) -> str:
    """Half a sentence on what a user can go on from."""
    paths = find_checkpoints(run)
    return f"the last good checkpoint is {paths[-1]}." if paths else "there is no earlier checkpoint."


def _error_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")
