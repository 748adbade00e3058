"""What recording and editing have in common: hooks that know which rows belong to which pair.

While a session is open, the reranker does not share a document's computation among queries: every pair has rows of its own.
Hooks belong to the model, so a model that is watched must not be used by another thread at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from m0.attention import Block, Packing
from m0.batch import Batch
from m0.errors import InputError, M0Error
from m0.images import ImageSettings, Picture
from m0.interp.positions import Selector, picture_tokens
from m0.interp.taps import Handles, Tap, attach
from m0.model import RerankerModel
from m0.prompt import Encoding, PromptEncoder

Own = TypeVar("Own", bound="Session")


class Scorer(Protocol):
    """What is needed of a `Reranker`."""

    model: RerankerModel
    prompt: PromptEncoder
    image_settings: ImageSettings
    sessions: list[Any]

    def encode(self, query: Any, document: Any) -> Encoding: ...

    def logits_of(self, encodings: list[Encoding]) -> list[float]: ...


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
        try:
            for tap in self.watched:
                attach(self.reranker.model, tap, self._seen(tap), self.handles)
            if self.every_token:
                _ask_for_every_token(self.reranker.model, self.handles)
        except BaseException:
            self.handles.remove()
            raise
        self.reranker.sessions.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.handles.remove()
        self.reranker.sessions.remove(self)

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


def _ask_for_every_token(model: RerankerModel, handles: Handles) -> None:
    """The last layer computes all tokens, not the score token's row alone; the score still reads that one."""

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "last_only": False}

    def after(_: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        packing: Packing = args[2]
        return output[packing.last] if output.shape[0] == packing.total else output

    handles.add(model.decoder.register_forward_pre_hook(before, with_kwargs=True).remove)
    handles.add(model.decoder.register_forward_hook(after).remove)


@contextmanager
def call(reranker: Scorer, encodings: Sequence[Encoding], record: bool = True) -> Iterator[None]:
    """Tell all open sessions of a call with these pairs, and of its end. `record` False: only those that edit hear of it."""
    heard = [session for session in reranker.sessions if record or not session.records]
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


def look_at(reranker: Scorer, pictures: Sequence[Picture], seen: dict[bytes, Tensor]) -> None:
    """Put the visual tokens of each different picture that is not in `seen`, by digest, there."""
    unseen = list({picture.digest: picture for picture in pictures if picture.digest not in seen}.values())
    if not unseen:
        return
    for session in reranker.sessions:
        session.look(unseen)
    patches = torch.cat([picture.patches for picture in unseen]).to(reranker.model.device)
    features = reranker.model.vision(patches, [picture.grid for picture in unseen])
    seen |= zip([picture.digest for picture in unseen], features.split([picture.num_tokens for picture in unseen]), strict=True)


def forward(
    reranker: Scorer, encodings: Sequence[Encoding], seen: dict[bytes, Tensor] | None = None, record: bool = True
) -> Tensor:
    """Logits of some prompts in one batch, (prompts,), through which gradients flow; open sessions see them.

    Unlike `Reranker.logits_of`, nothing is detached, moved or split into smaller batches.

    Args:
        encodings: prompts, as `Reranker.encode` writes them.
        seen: visual tokens of pictures, by digest, that need not be computed again; what is computed is added.
        record: False: open recordings do not keep this.

    Raises InputError for none.
    """
    if not encodings:
        raise InputError("the list of prompts is empty.")
    model = reranker.model
    batch = Batch.of(encodings, share=False, device=model.device)
    with call(reranker, encodings, record):
        features = None
        if batch.pictures:
            seen = {} if seen is None else seen
            look_at(reranker, batch.pictures, seen)
            features = torch.cat([seen[picture.digest] for picture in batch.pictures])
        for session in reranker.sessions:
            session.meet(range(len(encodings)), batch.packing)
        return batch.score(model, features)


def prompts(reranker: Scorer, pairs: Iterable[Any]) -> list[Encoding]:
    """Pairs of query and document -> prompts; what is a prompt already stays as it is. Raises InputError for anything else."""
    found = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, Encoding):
            found.append(pair)
        elif isinstance(pair, list | tuple) and len(pair) == 2:
            found.append(reranker.encode(*pair))
        else:
            raise InputError(f"pair {number} is {type(pair).__name__}, but must be (query, document) or a prompt.")
    return found


def picture_rows(tap: Tap, encodings: Sequence[Encoding], picture: Picture, where: Selector) -> list[int]:
    """Which of a picture's patches (visual tokens) lie under the tokens that a selector chooses in the prompts that show it. A
    picture is looked at once, however often it is shown, so all its places count."""
    merged = 1 if tap.rows == "cells" else picture.settings.merge_size**2  # the patches of a visual token follow one another
    chosen: set[int] = set()
    for encoding in encodings:
        if all(other.digest != picture.digest for other in encoding.pictures):
            continue
        wanted = set(where(encoding))
        for number, other in enumerate(encoding.pictures):
            if other.digest == picture.digest:
                _, tokens = picture_tokens(encoding, number)
                chosen |= {place * merged + i for place, token in enumerate(tokens) if token in wanted for i in range(merged)}
    return sorted(chosen)
