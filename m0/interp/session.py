"""What recording and editing have in common: hooks that know which rows belong to which pair.

While a session is open, the reranker does not share a document's computation among queries: every pair has rows of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from m0.attention import Block, Packing
from m0.batch import Batch
from m0.errors import InputError, M0Error
from m0.images import ImageSettings, Picture
from m0.interp.taps import Handles, Tap, attach
from m0.model import RerankerModel
from m0.prompt import Encoding

Own = TypeVar("Own", bound="Session")


class Scorer(Protocol):
    """What is needed of a `Reranker`."""

    model: RerankerModel
    image_settings: ImageSettings
    sessions: list[Any]

    def encode(self, query: Any, document: Any) -> Encoding: ...

    def logits_of(self, encodings: list[Encoding]) -> list[float]: ...


@dataclass(frozen=True)
class Rows:
    """Where one pair's or picture's share of an activation lies."""

    number: int
    """Of the pair among all that were met; of the picture among those looked at where the activation is the tower's."""
    index: tuple[Any, ...]
    """Of the first axes of the tensor."""
    tokens: range
    """Which of its tokens (patches, visual tokens) the rows are; in the last layer often the last alone."""


class Session:
    """Attached to some taps between `__enter__` and `__exit__`. Subclasses say what happens with what is seen."""

    def __init__(self, reranker: Scorer, taps: Sequence[Tap], every_token: bool = False) -> None:
        self.reranker, self.watched, self.every_token = reranker, list(taps), every_token
        self.handles = Handles()
        self.encodings: list[Encoding] = []
        """Of all pairs met so far, in the order given."""
        self.numbers: list[int] = []
        """Of the pairs in the batch that is being computed."""
        self.packing: Packing | None = None
        self.pictures: list[Picture] = []

    def see(self, tap: Tap, x: Tensor, block: Block | None) -> Tensor:
        raise NotImplementedError

    # --- attaching ----------------------------------------------------------------------------------------------------

    def __enter__(self: Own) -> Own:
        for tap in self.watched:
            attach(self.reranker.model, tap, self._seen(tap), self.handles)
        if self.every_token:
            _ask_for_every_token(self.reranker.model, self.handles)
        self.reranker.sessions.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.handles.remove()
        self.reranker.sessions.remove(self)

    def _seen(self, tap: Tap) -> Callable[[Tensor, Block | None], Tensor]:
        return lambda x, block: self.see(tap, x, block)

    # --- what the reranker tells --------------------------------------------------------------------------------------

    def begin(self, encodings: Sequence[Encoding]) -> None:
        """A call begins, with these pairs."""
        self.first = len(self.encodings)
        self.encodings += encodings

    def meet(self, numbers: Sequence[int], packing: Packing) -> None:
        """These pairs of the call go through the decoder next, one sequence each."""
        self.numbers, self.packing = [self.first + number for number in numbers], packing

    def look(self, pictures: Sequence[Picture]) -> None:
        """These pictures go through the vision tower next."""
        self.pictures = list(pictures)

    # --- which rows are whose -----------------------------------------------------------------------------------------

    def rows(self, tap: Tap, x: Tensor, block: Block | None) -> Iterator[Rows]:
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
                yield Rows(self.numbers[sequence], (place,), range(length - block.query_tokens, length))
            return
        for sequence, number in enumerate(self.numbers):
            if tap.rows == "sequences" or x.shape[0] != self.packing.total:
                yield Rows(number, (slice(sequence, sequence + 1),), range(lengths[sequence] - 1, lengths[sequence]))
            else:
                end = starts[sequence] + lengths[sequence]
                yield Rows(number, (slice(starts[sequence], end),), range(lengths[sequence]))

    def _picture_rows(self, tap: Tap, block: Block | None) -> Iterator[Rows]:
        if not self.pictures:
            raise M0Error(
                "a picture was seen outside a call of the reranker; score pairs through it while recording or editing."
            )
        if block is not None:
            for place, member in enumerate(block.members):
                yield Rows(member, (place,), range(block.query_tokens))
            return
        start = 0
        for number, picture in enumerate(self.pictures):
            count = picture.num_tokens if tap.rows == "cells" else picture.grid[0] * picture.grid[1]
            yield Rows(number, (slice(start, start + count),), range(count))
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


def forward(reranker: Scorer, encodings: Sequence[Encoding]) -> Tensor:
    """Logits of some prompts in one batch, (prompts,), through which gradients flow; open sessions see them.

    Unlike `Reranker.logits_of`, nothing is detached, moved or split into smaller batches. Raises InputError for none.
    """
    if not encodings:
        raise InputError("the list of prompts is empty.")
    model = reranker.model
    batch = Batch.of(encodings, share=False, device=model.device)
    for session in reranker.sessions:
        session.begin(encodings)
        session.meet(range(len(encodings)), batch.packing)
        session.look(batch.pictures)
    features = None
    if batch.pictures:
        patches = torch.cat([picture.patches for picture in batch.pictures]).to(model.device)
        features = model.vision(patches, [picture.grid for picture in batch.pictures])
    return batch.score(model, features)


def prompts(reranker: Scorer, pairs: Iterable[Any]) -> list[Encoding]:
    """Pairs of query and document -> prompts; what is a prompt already stays as it is."""
    return [pair if isinstance(pair, Encoding) else reranker.encode(*pair) for pair in pairs]
