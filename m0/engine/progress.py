"""How far a long call has come."""

from __future__ import annotations

import math
import shutil
import sys
from time import monotonic

BAR_SECONDS, LINE_SECONDS = 0.1, 30.0
"""Least time between two states of the bar, and between two lines of a log."""


class Progress:
    """On stderr, share done and time left: a bar where it is a terminal, else a line every 30 seconds."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self.total, self.label, self.shown = max(total, 1), label, shown
        self.bar = shown and is_terminal()
        self.done, self.begin = 0, monotonic()
        self.last = -math.inf if self.bar else self.begin  # a short run leaves no line in a log

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        now = monotonic()
        if not self.shown:
            return
        due = now - self.last >= (BAR_SECONDS if self.bar else LINE_SECONDS)
        if not due and not (self.bar and self.done >= self.total):
            return
        self.last = now
        share = self.done / self.total
        left = (now - self.begin) * (1 - share) / max(share, 1e-9)
        if self.bar:
            width = max(10, min(40, shutil.get_terminal_size().columns - 40))
            filled = math.floor(share * width)
            _write(f"\r{self.label:8} [{'#' * filled}{'.' * (width - filled)}] {share:4.0%}, {left:5.0f} s left")
        elif self.done < self.total:
            _write(f"m0: {self.label}: {share:.0%}, {left:.0f} s left\n")

    def close(self) -> None:
        if self.bar:
            _write("\r\033[K")


def is_terminal() -> bool:
    """Whether stderr is one."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _write(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()
