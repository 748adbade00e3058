"""What may run beside what, in one process: a model is used by many calls at once, and changed by one call alone.

A call that uses the model (ranking, scoring, explaining) holds the lock with others of its kind. A call that changes it (another
adapter, quantization, new weights) waits until none of these is under way, and those that come later wait for it. docs/guides/threads-and-processes.md
says what follows for users.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from m0.errors import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class CallLock:
    """Shared by calls that use a model, exclusive for a call that changes it.

    Calls inside calls of the same thread pass. Nobody waits for ever: who changes the model comes before users that come later, and
    users that wait come before the change after next.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._users: dict[int, int] = {}
        """Calls under way that use the model, by thread."""
        self._changer: int | None = None
        self._depth = 0
        self._waiting = 0
        """Threads that wait to change the model."""
        self._queued = 0
        """Users that wait for a change."""
        self._changes = 0
        """How many changes there have been."""
        self._invited = 0
        """Users that waited for the last change and have not begun yet; the next change waits for them."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the model: no other thread changes it meanwhile."""
        me = threading.get_ident()
        with self._condition:
            if me not in self._users and self._changer != me:
                self._wait_to_use()
            self._users[me] = self._users.get(me, 0) + 1
        try:
            yield
        finally:
            with self._condition:
                self._users[me] -= 1
                if not self._users[me]:
                    del self._users[me]
                    self._condition.notify_all()

    def _wait_to_use(self) -> None:
        """Until nobody changes the model, nor waits to: but for one change at most."""
        if self._changer is None and not self._waiting:
            return
        changes_before, self._queued = self._changes, self._queued + 1
        try:
            self._condition.wait_for(lambda: self._changer is None and (not self._waiting or self._changes > changes_before))
        finally:
            if self._changes > changes_before and self._invited:
                self._invited -= 1
            else:
                self._queued -= 1
            self._condition.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Change the model: no other thread uses it meanwhile.

        Raises InputError inside a call of this thread that uses the model, which could never end.
        """
        me = threading.get_ident()
        with self._condition:
            if self._changer != me:
                if me in self._users:
                    raise InputError("the model cannot be changed from inside a call that uses it.")
                self._waiting += 1
                try:
                    self._condition.wait_for(lambda: self._changer is None and not self._users and not self._invited)
                    self._changer = me
                finally:
                    self._waiting -= 1
                    self._condition.notify_all()  # where the wait was broken off, others need not wait any more
            self._depth += 1
        try:
            yield
        finally:
            with self._condition:
                self._depth -= 1
                if not self._depth:
                    self._changer = None
                    self._changes += 1
                    self._invited, self._queued = self._invited + self._queued, 0
                    self._condition.notify_all()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is another model's, and nobody holds it."""
        return CallLock, ()


class Guarded(Protocol):
    """What belongs to one model."""

    calls: CallLock


def level_of_caller() -> int:
    """For `warnings.warn(..., stacklevel=...)` in the function that asks: how far up whoever called m0 is, past decorators."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("m0", "torch", "contextlib"):
        frame, level = frame.f_back, level + 1
    return level


Owner = TypeVar("Owner", bound=Guarded)


def uses_model(
    function: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """A method, or function of a reranker, during which no other thread changes the model."""

    @wraps(function)
    def call(owner: Owner, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with owner.calls.shared():
            return function(owner, *args, **kwargs)

    return call


def changes_model(
    function: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """A method that waits for the calls under way, and during which no other thread uses the model."""

    @wraps(function)
    def call(owner: Owner, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with owner.calls.exclusive():
            return function(owner, *args, **kwargs)

    return call
