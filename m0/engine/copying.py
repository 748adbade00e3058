"""Copies of a reranker, by `copy.deepcopy` and `pickle`: they share nothing with it."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NoReturn, TypeVar

import torch

from m0.engine.parallel import is_split
from m0.engine.watching import OpenSessions
from m0.errors import InputError
from m0.locks import CallLock
from m0.model.reranker_model import RerankerModel

CopiedType = TypeVar("CopiedType", bound="Copied")


class Copied:
    """What can be copied whole, and not in part."""

    calls: CallLock
    open_sessions: OpenSessions
    model: RerankerModel
    known_fingerprint: tuple[object, str] | None

    @torch.inference_mode(False)  # weights made inside it could never be explained
    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        """Another reranker that shares nothing with this one. The prefix cache is empty; a compiled model is copied uncompiled."""
        with self.calls.exclusive():
            return _restore(type(self), copy.deepcopy(self._state(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """As `__deepcopy__`. What is pickled is made here, where no other thread changes it, so it is in memory once more."""
        with self.calls.exclusive():
            return _unpickled, (
                type(self),
                pickle.dumps(self._state(), protocol=pickle.HIGHEST_PROTOCOL),
            )

    def _state(self) -> dict[str, Any]:
        """What a copy takes over. Raises InputError where there can be none."""
        if self.open_sessions.everywhere:
            raise InputError("a Reranker cannot be copied or pickled while record() or edit() is open.")
        if is_split(self.model):
            raise InputError("a split model cannot be copied or pickled, since no process holds all of it.")
        return {name: value for name, value in self.__dict__.items() if name not in ("open_sessions", "known_fingerprint")}

    def __copy__(self) -> NoReturn:
        raise InputError(
            "a Reranker is copied whole, by copy.deepcopy: two that shared one model would change it for each other."
        )


def _restore(kind: type[CopiedType], state: dict[str, Any]) -> CopiedType:
    """The copy that `_state` is of, with nothing open."""
    reranker = kind.__new__(kind)
    reranker.__dict__.update(state)
    reranker.open_sessions, reranker.known_fingerprint = OpenSessions([]), None
    return reranker


@torch.inference_mode(False)
def _unpickled(kind: type[CopiedType], data: bytes) -> CopiedType:
    return _restore(kind, pickle.loads(data))
