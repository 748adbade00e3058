"""What recording and editing have in common: hooks that know which rows belong to which pair.

While a session is open, the reranker does not share a document's computation among queries: every pair has rows of its own.
A session belongs to the thread that opened it. Other threads may use the model at the same time: their calls are neither seen nor
changed, and computed as if nobody looked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from m0.attention import Block, Packing
from m0.batch import Batch
from m0.calls import CallLock, uses_model
from m0.errors import InputError, M0Error
from m0.images import Picture
from m0.interp.positions import Selector, picture_tokens
from m0.interp.taps import Handles, Tap, attach
from m0.model import RerankerModel
from m0.prompt import Encoding, PromptEncoder

CPU_VISION_PATCHES, GPU_VISION_PATCHES = 4096, 65536
"""Patches that go through the vision tower at a time, unless one picture alone has more."""
Own = TypeVar("Own", bound="Session")


class OpenSessions(threading.local):
    """What is recording or editing just now: each thread has a list of its own."""

    everywhere: list[Session]
    """Those of all threads."""

    def __init__(self, everywhere: list[Session]) -> None:  # called again in every thread
        self.here: list[Session] = []
        self.everywhere = everywhere

    def add(self, session: Session) -> None:
        self.here.append(session)
        self.everywhere.append(session)

    def remove(self, session: Session) -> None:
        self.here.remove(session)
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
    def sessions(self) -> Sequence[Session]:
        """This thread's."""
        ...

    def encode(self, query: Any, document: Any) -> Encoding: ...


@dataclass(frozen=True)
class Share:
    """Where one pair's or picture's share of an activation lies."""

    number: int
    """Of the pair among all that were met; of the picture among those looked at where the activation is the tower's."""
    index: tuple[Any, ...]
    """Of the first axes of the tensor."""
    tokens: range
    """Which of its tokens (patches, visual tokens) the rows are; in the last layer often the last alone."""


class Session:
    """Attached to some taps between `__enter__` and `__exit__`. Subclasses say what happens with what is seen."""

    records = False
    """Whether it only looks on; explanations and experiments, which run the model many times, are not recorded."""

    def __init__(self, reranker: Scorer, taps: Sequence[Tap], every_token: bool = False) -> None:
        self.reranker, self.watched, self.every_token = reranker, list(taps), every_token
        self.handles = Handles()
        self.attached: list[nn.Module] = []
        """The modules that the taps were found in."""
        self.silent = False
        self.calls = 0
        self.encodings: list[Encoding] = []
        """Of all pairs met so far, in the order given."""
        self.first = 0
        """Number of the first pair of this call."""
        self.numbers: list[int] = []
        """Of the pairs in the batch that is being computed."""
        self.packing: Packing | None = None
        self.pictures: list[Picture] = []

    def see(self, tap: Tap, x: Tensor, block: Block | None) -> Tensor:
        raise NotImplementedError

    # --- attaching ----------------------------------------------------------------------------------------------------

    def __enter__(self: Own) -> Own:
        with self.reranker.calls.shared():
            self.attach()
        self.reranker.open_sessions.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.handles.remove()
        self.reranker.open_sessions.remove(self)

    def attach(self) -> None:
        try:
            for tap in self.watched:
                attach(self.reranker.model, tap, self._seen(tap), self.handles)
        except BaseException:
            self.handles.remove()
            raise
        self.attached = self._modules()

    @property
    def astray(self) -> bool:
        """Whether the model has other modules by now, as after another adapter, and the hooks are on those that it had."""
        return any(now is not then for now, then in zip(self._modules(), self.attached, strict=True))

    def _modules(self) -> list[nn.Module]:
        return [self.reranker.model.get_submodule(tap.module) for tap in self.watched]

    def _seen(self, tap: Tap) -> Callable[[Tensor, Block | None], Tensor]:
        return lambda x, block: x if self.silent else self.see(tap, x, block)

    # --- what the reranker tells --------------------------------------------------------------------------------------

    def begin(self, encodings: Sequence[Encoding]) -> None:
        """A call begins, with these pairs."""
        self.calls += 1
        self.first = len(self.encodings)
        self.encodings += encodings

    def meet(self, numbers: Sequence[int], packing: Packing) -> None:
        """These pairs of the call go through the decoder next, one sequence each."""
        self.numbers, self.packing = [self.first + number for number in numbers], packing

    def look(self, pictures: Sequence[Picture]) -> None:
        """These pictures go through the vision tower next."""
        self.pictures = list(pictures)

    def end(self) -> None:
        """The call is over."""
        self.packing, self.pictures = None, []

    # --- which rows are whose -----------------------------------------------------------------------------------------

    def rows(self, tap: Tap, x: Tensor, block: Block | None) -> Iterator[Share]:
        """The shares of all pairs (pictures) in an activation."""
        if tap.rows in ("patches", "cells"):
            yield from self._picture_rows(tap, block)
            return
        if self.packing is None or len(self.packing.lengths) != len(self.numbers):
            raise M0Error(
                "an activation was seen outside a call of the reranker; score pairs through it while recording or editing."
            )
        lengths, starts = self.packing.lengths, self.packing.starts
        if block is not None:
            for place, sequence in enumerate(block.members):
                length = lengths[sequence]
                yield Share(self.numbers[sequence], (place,), range(length - block.query_tokens, length))
            return
        for sequence, number in enumerate(self.numbers):
            if tap.rows == "sequences" or x.shape[0] != self.packing.total:
                yield Share(number, (slice(sequence, sequence + 1),), range(lengths[sequence] - 1, lengths[sequence]))
            else:
                end = starts[sequence] + lengths[sequence]
                yield Share(number, (slice(starts[sequence], end),), range(lengths[sequence]))

    def check_found(self, taps: Iterable[Tap], where: Selector) -> None:
        """Raises InputError where a selector finds nothing in any pair of this call."""
        chosen = [(encoding, where(encoding)) for encoding in self.encodings[self.first :]]
        for tap in taps:
            of_pictures = tap.rows in ("patches", "cells")
            if not any(not of_pictures or e.origins[token].kind == "image" for e, some in chosen for token in some):
                raise InputError(
                    f"{where} finds no {'visual token' if of_pictures else 'token'} for {tap.name} in what is scored."
                )

    def chosen(self, tap: Tap, share: Share, where: Selector) -> list[int]:
        """Which tokens (patches, visual tokens) of a pair or picture a selector chooses. A picture is looked at once, however often
        this call shows it, so all its places count."""
        if tap.rows not in ("patches", "cells"):
            return where(self.encodings[share.number])
        digest = self.pictures[share.number].digest
        found: set[int] = set()
        for encoding in self.encodings[self.first :]:
            if any(picture.digest == digest for picture in encoding.pictures):
                by_picture = zip(encoding.pictures, patch_rows(tap, encoding, where(encoding)), strict=True)
                found.update(row for picture, rows in by_picture if picture.digest == digest for row in rows)
        return sorted(found)

    def _picture_rows(self, tap: Tap, block: Block | None) -> Iterator[Share]:
        if not self.pictures:
            raise M0Error(
                "a picture was seen outside a call of the reranker; score pairs through it while recording or editing."
            )
        if block is not None:
            for place, member in enumerate(block.members):
                yield Share(member, (place,), range(block.query_tokens))
            return
        start = 0
        for number, picture in enumerate(self.pictures):
            count = picture.num_tokens if tap.rows == "cells" else picture.grid[0] * picture.grid[1]
            yield Share(number, (slice(start, start + count),), range(count))
            start += count


def wants_every_token(sessions: Sequence[Session]) -> bool:
    """Whether one of them looks at all tokens of the last layer, not the score token's row alone."""
    return any(session.every_token for session in sessions)


@contextmanager
def call(reranker: Scorer, encodings: Sequence[Encoding], record: bool | Session = True) -> Iterator[None]:
    """Tell all open sessions of a call with these pairs, and of its end. `record` False: only those that edit hear of it; a
    recording: these and it alone."""
    if any(session.astray for session in reranker.sessions):
        for session in reranker.sessions:
            session.handles.remove()
        for session in reranker.sessions:  # in the old order, for who comes later sees what the others made
            session.attach()
    heard = [session for session in reranker.sessions if record is True or session is record or not session.records]
    with silence([session for session in reranker.sessions if session not in heard]):
        for session in heard:
            session.begin(encodings)
        try:
            yield
        finally:
            for session in heard:
                session.end()


@contextmanager
def silence(sessions: Sequence[Session]) -> Iterator[None]:
    """These sessions neither see nor change anything for a while."""
    before = [session.silent for session in sessions]
    for session in sessions:
        session.silent = True
    try:
        yield
    finally:
        for session, silent in zip(sessions, before, strict=True):
            session.silent = silent


def look_at(
    model: RerankerModel, sessions: Sequence[Session], pictures: Sequence[Picture], seen: MutableMapping[bytes, Tensor]
) -> Tensor | None:
    """Visual tokens of these pictures, end to end; None for none. Each different one that is not in `seen`, by digest, goes through
    the tower, and is put there."""
    if not pictures:
        return None
    unseen = {picture.digest: picture for picture in pictures if picture.digest not in seen}
    # What is watched is formed whole, scores and patterns too.
    at_a_time = CPU_VISION_PATCHES if model.device.type == "cpu" or sessions else GPU_VISION_PATCHES
    for group in _patch_groups(list(unseen.values()), at_a_time):
        for session in sessions:
            session.look(group)
        patches = torch.cat([picture.patches_on(model.device) for picture in group])
        features = model.vision(patches, [picture.grid for picture in group])
        for picture, part in zip(group, features.split([picture.num_tokens for picture in group]), strict=True):
            seen[picture.digest] = part
    return torch.cat([seen[picture.digest] for picture in pictures])


def _patch_groups(pictures: Sequence[Picture], at_a_time: int) -> Iterator[list[Picture]]:
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


@uses_model
def forward(
    reranker: Scorer, encodings: Sequence[Encoding], seen: dict[bytes, Tensor] | None = None, record: bool | Session = True
) -> Tensor:
    """Logits of some prompts in one batch, (prompts,), through which gradients flow; open sessions see them.

    Unlike `Reranker.logits_of`, nothing is detached, moved or split into smaller batches.

    Args:
        encodings: prompts, as `Reranker.encode` writes them.
        seen: visual tokens of pictures, by digest, that need not be computed again; what is computed is added.
        record: False: open recordings do not keep this; a recording: that one alone does.

    Raises InputError for none.
    """
    if not encodings:
        raise InputError("the list of prompts is empty.")
    for encoding in encodings:
        if not isinstance(encoding, Encoding):
            raise InputError(f"a prompt is {type(encoding).__name__}, but must be what encode() writes.")
    model = reranker.model
    batch = Batch.of(encodings, share=False, device=model.device)
    with call(reranker, encodings, record):
        features = look_at(model, reranker.sessions, batch.pictures, {} if seen is None else seen)
        for session in reranker.sessions:
            session.meet(range(len(encodings)), batch.packing)
        return batch.score(model, features, every_token=wants_every_token(reranker.sessions))


def prompts(reranker: Scorer, pairs: Iterable[Any]) -> list[Encoding]:
    """Pairs of query and document -> prompts; what is a prompt already stays as it is. Raises InputError for anything else."""
    found = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, Encoding):
            found.append(pair)
        elif isinstance(pair, list | tuple) and len(pair) == 2:
            if isinstance(pair[0], tuple) and isinstance(pair[1], tuple):
                raise InputError(f"pair {number} holds two tuples; is it two pairs where one is wanted?")
            found.append(reranker.encode(*pair))
        else:
            raise InputError(f"pair {number} is {type(pair).__name__}, but must be (query, document) or a prompt.")
    return found


def patch_rows(tap: Tap, encoding: Encoding, chosen: Sequence[int]) -> list[list[int]]:
    """Rows of the patches (visual tokens) under some tokens, for each of the prompt's pictures."""
    found = []
    for number, picture in enumerate(encoding.pictures):
        _, tokens = picture_tokens(encoding, number)
        places = {token: place for place, token in enumerate(tokens)}
        merged = (
            1 if tap.rows == "cells" else picture.settings.merge_size**2
        )  # the patches of a visual token follow one another
        found.append([places[token] * merged + i for token in chosen if token in places for i in range(merged)])
    return found
