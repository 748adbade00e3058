"""How far a long call has come."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import dataclass
from time import monotonic

BAR_SECONDS, LINE_SECONDS = 0.1, 30.0
"""Least time between two states of the bar, and between two lines of a log."""


class Progress:
    """On stderr, share done and time left: a bar where it is a terminal, else a line every 30 seconds."""

    def __init__(self, total: int, label: str, enabled: bool) -> None:
        self.total, self.label, self.enabled = max(total, 1), label, enabled
        self.bar = enabled and is_terminal()
        self.done, self.started = 0.0, monotonic()
        self.last_shown = -math.inf if self.bar else self.started  # a short run leaves no line in a log

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self.show()

    def part(self, total: int, amount: float) -> ProgressPart:
        """A piece of work that is counted in its own units, `total` in all, and is `amount` of this."""
        return ProgressPart(self, amount / max(total, 1))

    def restart_clock(self) -> None:
        """Count the time that is left from here: what went before is not what the rest is like."""
        self.started = monotonic()

    def show(self, status: str = "") -> None:
        """Write, where it is time to. `status`: what is under way where nothing is done yet, so that no time left is known."""
        now = monotonic()
        if not self.enabled:
            return
        complete = self.done >= self.total * (1 - 1e-9)
        due = now - self.last_shown >= (BAR_SECONDS if self.bar else LINE_SECONDS)
        if not due and not (self.bar and complete):
            return
        self.last_shown = now
        share = min(self.done / self.total, 1.0)
        left = (now - self.started) * (1 - share) / share if share else math.inf
        if self.bar:
            # As wide whatever it says, so that it covers what it said before.
            width = max(10, min(40, shutil.get_terminal_size().columns - 40))
            filled = math.floor(share * width)
            suffix = f"{left:5.0f} s left" if share else status
            _write(f"\r{self.label:8} [{'#' * filled}{'.' * (width - filled)}] {share:4.0%}, {suffix:20.20}")
        elif not complete and (share or status):
            _write(f"m0: {self.label}: {share:.0%}, {f'{left:.0f} s left' if share else status}\n")

    def close(self) -> None:
        if self.bar:
            _write("\r\033[K")


@dataclass(frozen=True)
class ProgressPart:
    """A piece of work in a `Progress`, which advances with it."""

    parent: Progress
    scale: float
    """How many units of `parent` one unit of this is."""

    def advance(self, amount: float = 1) -> None:
        self.parent.advance(amount * self.scale)

    def close(self) -> None:
        """Nothing: `parent` goes on."""


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
