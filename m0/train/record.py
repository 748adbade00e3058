"""What a training run leaves behind for people: a description of itself, its curves as CSV and PNG, and a line of progress."""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import m0
from m0.checkpoints.files import write_beside
from m0.errors import TrainError
from m0.train.config import TrainConfig

CURVE_COLUMNS = (
    "stage", "step", "queries", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds",
    "validation_loss", "validation_success",
)  # fmt: skip
CURVES_FILE = "curves.csv"
CURVES_IMAGE = "curves.png"
RUN_FILE = "run.json"
PROGRESS_INTERVAL_SECONDS = 10.0
"""How often a line is printed where there is no terminal."""


def describe_run(config: TrainConfig, hashes: Mapping[str, str], processes: int, device: str) -> dict[str, Any]:
    """All one needs to know to run it again."""
    return {
        "config": asdict(config),
        "seed": config.seed,
        "data": dict(hashes),
        "versions": {
            "m0": m0.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git_revision": _git_revision(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "device": device,
        "platform": platform.platform(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def write_run_description(
    run: Path, config: TrainConfig, hashes: Mapping[str, str], processes: int, device: str, step: int
) -> None:
    """run.json: as the run began, and each time it was taken up. `step`: updates done so far."""
    description = describe_run(config, hashes, processes, device)
    path = run / RUN_FILE
    if step and path.exists():
        try:
            first_description = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # cut off by a disk that was full
            first_description = {"note": "how the run began is lost: run.json was damaged"}
        resumed_with = {
            name: description[name] for name in ("started", "versions", "git_revision", "processes", "threads", "device")
        }
        description = {**first_description, "resumed": [*first_description.get("resumed", []), {"step": step, **resumed_with}]}
    write_json(path, description)


def print_message(sentence: str) -> None:
    """Tell the user, beside the result."""
    print(f"m0: {sentence}", file=sys.stderr, flush=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    text = json.dumps(dict(values), indent=2, default=str) + "\n"
    write_beside(path, lambda place: Path(place).write_text(text, encoding="utf-8"))


class CurveWriter:
    """The growing curves of a run. Rows after `step` (of a run that is continued) are dropped first.

    Args:
        run: the run's directory.
        step: updates done so far.
        steps: updates in all.
    """

    def __init__(self, run: Path, step: int, steps: int) -> None:
        self.path, self.steps, self.first = run / CURVES_FILE, steps, step
        rows = [row for row in read_curves(self.path) if int(row["step"]) <= step] if self.path.exists() else []
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        self.begin = time.monotonic()
        self.shown = 0.0
        self.terminal = sys.stderr.isatty()
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CURVE_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.path)
        self.board = _open_tensorboard(run)

    def add(self, row: dict[str, Any]) -> None:
        """One update's figures; `seconds` is added here."""
        row = {**row, "seconds": round(self.seconds_before + time.monotonic() - self.begin, 3)}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, CURVE_COLUMNS).writerow(row)
        if self.board is not None:
            for name, value in row.items():
                if name not in ("stage", "step") and value is not None:
                    self.board.add_scalar(name, value, row["step"])
        self._print_progress(row)

    def close(self) -> None:
        """Take the line of progress away, and end TensorBoard's file."""
        if self.board is not None:
            self.board.close()
        if self.terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def _print_progress(self, row: Mapping[str, Any]) -> None:
        now, done = time.monotonic(), row["step"] == self.steps
        if not done and now - self.shown < (0.1 if self.terminal else PROGRESS_INTERVAL_SECONDS):
            return
        self.shown = now
        passed = row["step"] - self.first
        left = (now - self.begin) / max(passed, 1) * (self.steps - row["step"])
        text = (
            f"stage {row['stage']}, step {row['step']}/{self.steps}, loss {row['loss']:.4f}, "
            f"learning rate {row['learning_rate']:.1e}, {row['tokens_per_second']:,.0f} tokens/s, {_format_duration(left)} left"
        )
        if self.terminal:
            columns = shutil.get_terminal_size().columns
            room = max(0, min(24, columns - len(text) - 4))
            filled = round(room * row["step"] / self.steps)
            bar = f"[{'#' * filled}{'.' * (room - filled)}] " if room > 5 else ""
            sys.stderr.write(f"\r\033[K{bar}{text}"[: columns + 4])
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def read_curves(path: Path) -> list[dict[str, str]]:
    """Rows of a curves.csv. Raises TrainError where another version wrote it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step")]
    if rows and set(rows[0]) != set(CURVE_COLUMNS):
        raise TrainError(f"{path} has other columns than this version of m0 writes.")
    return rows


def draw_curves(run: Path) -> Path | None:
    """curves.csv -> curves.png: loss, learning rate and validation over the steps. None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = read_curves(run / CURVES_FILE)
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    losses = np.array([float(row["loss"]) for row in rows])
    above.plot(steps, losses, color="0.8", linewidth=0.8)
    width = max(1, len(rows) // 50)
    if len(rows) >= width:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        above.plot(steps[width - 1 :], smooth, color="#0072b2", label=f"loss, mean of {width}")
    checked = [row for row in rows if row["validation_loss"]]
    if checked:
        at = [int(row["step"]) for row in checked]
        above.plot(at, [float(row["validation_loss"]) for row in checked], "o-", color="#d55e00", label="validation loss")
        ranked = [
            row for row in checked if row["validation_success"]
        ]  # empty where no query had others than relevant documents
        below.plot(
            [int(row["step"]) for row in ranked],
            [float(row["validation_success"]) for row in ranked],
            "o-",
            color="#d55e00",
            label="validation success@1",
        )
        below.set_ylim(0, 1)
    above.set_ylabel("loss")
    above.legend(frameon=False)
    rate = below.twinx() if checked else below
    rate.plot(steps, [float(row["learning_rate"]) for row in rows], color="#009e73", linewidth=0.9)
    rate.set_ylabel("learning rate")
    if checked:
        below.set_ylabel("success@1")
    for first, second in itertools.pairwise(rows):
        if first["stage"] != second["stage"]:
            above.axvline(int(second["step"]), color="0.6", linestyle=":")
            below.axvline(int(second["step"]), color="0.6", linestyle=":")
    below.set_xlabel("step")
    figure.savefig(run / CURVES_IMAGE, dpi=120)
    return run / CURVES_IMAGE


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _open_tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))


def _git_revision() -> str | None:
    """Of the working directory, marked where it has changes; None outside a repository."""
    try:
        run = _command_output("git", "rev-parse", "HEAD")
        return run + ("+changes" if _command_output("git", "status", "--porcelain", "-uno") else "") if run else None
    except (OSError, subprocess.SubprocessError):
        return None


def _command_output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.strip() if done.returncode == 0 else ""
