"""Who watches while prompts are scored: what scoring tells open sessions (`m0.interp.session`), and which thread each belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from m0.inputs.images import Picture
from m0.inputs.prompt import Encoding, Limits, PromptEncoder
from m0.locks import CallLock
from m0.model.attention import Packing
from m0.model.reranker_model import RerankerModel

CPU_VISION_PATCHES, GPU_VISION_PATCHES = 4096, 65536
"""Patches that go through the vision tower at a time, unless one picture alone has more."""


class WatchingSession(Protocol):
    """What scoring needs of something that records or edits."""

    records: bool
    """Whether it only reads activations; False: it edits them."""
    silent: bool
    every_token: bool
    """Whether it looks at all tokens of the last layer, not the score token's row alone."""

    @property
    def watches_patterns(self) -> bool:
        """Whether it looks at attention scores or patterns."""
        ...

    @property
    def hooks_stale(self) -> bool:
        """Whether its hooks are on modules that the model no longer has."""
        ...

    def attach(self) -> None: ...
    def detach(self) -> None: ...
    def begin(self, encodings: Sequence[Encoding]) -> None: ...
    def enter_batch(self, numbers: Sequence[int], packing: Packing) -> None:
        """These pairs of the call go through the decoder next."""
        ...

    def enter_vision_batch(self, pictures: Sequence[Picture]) -> None:
        """These pictures go through the vision tower next."""
        ...

    def end(self) -> None: ...


class OpenSessions(threading.local):
    """What is recording or editing just now: each thread has a list of its own."""

    everywhere: list[WatchingSession]
    """Those of all threads."""

    def __init__(self, everywhere: list[WatchingSession]) -> None:  # called again in every thread
        self.here: list[WatchingSession] = []
        self.everywhere = everywhere

    def add(self, session: WatchingSession) -> list[WatchingSession]:
        """Returns this thread's list, for `remove`, which another thread may call."""
        self.here.append(session)
        self.everywhere.append(session)
        return self.here

    def remove(self, session: WatchingSession, owner: list[WatchingSession]) -> None:
        """Take a session out of the list of the thread that opened it."""
        owner.remove(session)
        self.everywhere.remove(session)

    @property
    def elsewhere(self) -> bool:
        """Whether another thread records or edits."""
        return len(self.everywhere) > len(self.here)


class Scorer(Protocol):
    """What is needed of a `Reranker`."""

    model: RerankerModel
    prompt: PromptEncoder
    calls: CallLock
    open_sessions: OpenSessions

    @property
    def sessions(self) -> Sequence[WatchingSession]:
        """This thread's."""
        ...

    def encode(self, query: Any, document: Any, limits: Limits | None = None) -> Encoding: ...


def wants_every_token(sessions: Sequence[WatchingSession]) -> bool:
    """Whether one of them looks at all tokens of the last layer, not the score token's row alone."""
    return any(session.every_token for session in sessions)


@contextmanager
def announce_call(reranker: Scorer, encodings: Sequence[Encoding], record: bool | WatchingSession = True) -> Iterator[None]:
    """Tell all open sessions of a call with these pairs, and of its end. `record` False: only those that edit hear of it; a
    recording: these and it alone."""
    if any(session.hooks_stale for session in reranker.sessions):
        for session in reranker.sessions:
            session.detach()
        for session in reranker.sessions:  # in the old order, for who comes later sees what the others made
            session.attach()
    notified = [session for session in reranker.sessions if record is True or session is record or not session.records]
    with silence([session for session in reranker.sessions if session not in notified]):
        for session in notified:
            session.begin(encodings)
        try:
            yield
        finally:
            for session in notified:
                session.end()


@contextmanager
def silence(sessions: Sequence[WatchingSession]) -> Iterator[None]:
    """These sessions neither see nor change anything for a while."""
    before = [session.silent for session in sessions]
    for session in sessions:
        session.silent = True
    try:
        yield
    finally:
        for session, silent in zip(sessions, before, strict=True):
            session.silent = silent


def compute_missing_features(
    model: RerankerModel,
    sessions: Sequence[WatchingSession],
    pictures: Sequence[Picture],
    features: MutableMapping[bytes, Tensor],
) -> Tensor | None:
    """Visual tokens of these pictures, end to end; None for none.

    `features`: by a picture's digest; each different picture that is not there goes through the tower, and is added. For pictures of a
    call, whose sessions are told; `Batch.compute_visual_features` is for training and calibration, where nothing is cached.
    """
    if not pictures:
        return None
    missing = {picture.digest: picture for picture in pictures if picture.digest not in features}
    # What is watched is formed whole, scores and patterns too.
    at_a_time = CPU_VISION_PATCHES if model.device.type == "cpu" or sessions else GPU_VISION_PATCHES
    for group in _group_by_patches(list(missing.values()), at_a_time):
        for session in sessions:
            session.enter_vision_batch(group)
        patches = torch.cat([picture.patches_on(model.device) for picture in group])
        group_features = model.vision(patches, [picture.grid for picture in group])
        for picture, part in zip(group, group_features.split([picture.num_tokens for picture in group]), strict=True):
            features[picture.digest] = part
    return torch.cat([features[picture.digest] for picture in pictures])


def _group_by_patches(pictures: Sequence[Picture], at_a_time: int) -> Iterator[list[Picture]]:
    group: list[Picture] = []
    size = 0
    for picture in pictures:
        patches = picture.grid[0] * picture.grid[1]
        if group and size + patches > at_a_time:
            yield group
            group, size = [], 0
        group.append(picture)
        size += patches
    if group:
        yield group
