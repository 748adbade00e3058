"""What recording and editing have in common: hooks that know which rows belong to which pair.

While a session is open, the reranker does not share a document's computation among queries: every pair has rows of its own.
A session belongs to the thread that opened it. Other threads may use the model at the same time: their calls are neither seen nor
changed, and computed as if nobody looked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor, nn

from m0.engine.batch import Batch
from m0.engine.watching import Scorer, WatchingSession, announce_call, compute_missing_features, wants_every_token
from m0.errors import InputError, M0Error
from m0.inputs.images import Picture
from m0.inputs.prompt import Encoding
from m0.interp.positions import Selector, picture_tokens
from m0.interp.taps import HookHandles, Tap, attach_hook
from m0.locks import uses_model
from m0.model.attention import Block, Packing

SessionT = TypeVar("SessionT", bound="Session")


@dataclass(frozen=True)
class ActivationSlice:
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
        self.reranker, self.taps, self.every_token = reranker, list(taps), every_token
        self.handles = HookHandles()
        self.owner: list[WatchingSession] = []
        """The open sessions of the thread that entered this one."""
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

    def process(self, tap: Tap, x: Tensor, block: Block | None) -> Tensor:
        """What takes the place of an activation x, (rows, ...) or (sequences, heads, queries, keys), of the same shape."""
        raise NotImplementedError

    # --- attaching ----------------------------------------------------------------------------------------------------

    def __enter__(self: SessionT) -> SessionT:
        with self.reranker.calls.shared():
            self.attach()
        self.owner = self.reranker.open_sessions.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.handles.remove()
        self.reranker.open_sessions.remove(self, self.owner)

    def attach(self) -> None:
        """Put the hooks in place."""
        try:
            for tap in self.taps:
                attach_hook(self.reranker.model, tap, self._hook_of(tap), self.handles)
        except BaseException:
            self.handles.remove()
            raise
        self.attached = self._modules()

    def detach(self) -> None:
        """Take the hooks away."""
        self.handles.remove()

    @property
    def watches_patterns(self) -> bool:
        """Whether it looks at attention scores or patterns."""
        return any(tap.is_pattern for tap in self.taps)

    @property
    def hooks_stale(self) -> bool:
        """Whether the model has other modules by now, as after another adapter, and the hooks are on those that it had."""
        return any(now is not then for now, then in zip(self._modules(), self.attached, strict=True))

    def _modules(self) -> list[nn.Module]:
        return [self.reranker.model.get_submodule(tap.module) for tap in self.taps]

    def _hook_of(self, tap: Tap) -> Callable[[Tensor, Block | None], Tensor]:
        return lambda x, block: x if self.silent else self.process(tap, x, block)

    # --- what the reranker tells --------------------------------------------------------------------------------------

    def begin(self, encodings: Sequence[Encoding]) -> None:
        """A call begins, with these pairs."""
        self.calls += 1
        self.first = len(self.encodings)
        self.encodings += encodings

    def enter_batch(self, numbers: Sequence[int], packing: Packing) -> None:
        """These pairs of the call go through the decoder next, one sequence each."""
        self.numbers, self.packing = [self.first + number for number in numbers], packing

    def enter_vision_batch(self, pictures: Sequence[Picture]) -> None:
        """These pictures go through the vision tower next."""
        self.pictures = list(pictures)

    def end(self) -> None:
        """The call is over."""
        self.packing, self.pictures = None, []

    # --- which rows are whose -----------------------------------------------------------------------------------------

    def slices(self, tap: Tap, x: Tensor, block: Block | None) -> Iterator[ActivationSlice]:
        """The shares of all pairs (pictures) in an activation x, (rows, ...) or (sequences, heads, queries, keys).

        Raises M0Error outside a call of the reranker.
        """
        if tap.rows in ("patches", "cells"):
            yield from self._picture_slices(tap, block)
            return
        if self.packing is None or len(self.packing.lengths) != len(self.numbers):
            raise M0Error(
                "an activation was seen outside a call of the reranker; score pairs through it while recording or editing."
            )
        lengths, starts = self.packing.lengths, self.packing.starts
        if block is not None:
            for place, sequence in enumerate(block.members):
                length = lengths[sequence]
                yield ActivationSlice(self.numbers[sequence], (place,), range(length - block.query_tokens, length))
            return
        for sequence, number in enumerate(self.numbers):
            if tap.rows == "sequences" or x.shape[0] != self.packing.total:
                yield ActivationSlice(number, (slice(sequence, sequence + 1),), range(lengths[sequence] - 1, lengths[sequence]))
            else:
                end = starts[sequence] + lengths[sequence]
                yield ActivationSlice(number, (slice(starts[sequence], end),), range(lengths[sequence]))

    def check_selects_any(self, taps: Iterable[Tap], where: Selector) -> None:
        """Raises InputError where a selector finds nothing in any pair of this call."""
        chosen = [(encoding, where(encoding)) for encoding in self.encodings[self.first :]]
        for tap in taps:
            of_pictures = tap.rows in ("patches", "cells")
            if not any(not of_pictures or e.origins[token].kind == "image" for e, some in chosen for token in some):
                raise InputError(
                    f"{where} finds no {'visual token' if of_pictures else 'token'} for {tap.name} in what is scored."
                )

    def selected_rows(self, tap: Tap, part: ActivationSlice, where: Selector) -> list[int]:
        """Which tokens (patches, visual tokens) of a pair or picture a selector chooses. A picture is looked at once, however often
        this call shows it, so all its places count."""
        if tap.rows not in ("patches", "cells"):
            return where(self.encodings[part.number])
        digest = self.pictures[part.number].digest
        found: set[int] = set()
        for encoding in self.encodings[self.first :]:
            if any(picture.digest == digest for picture in encoding.pictures):
                by_picture = zip(encoding.pictures, patch_rows_by_picture(tap, encoding, where(encoding)), strict=True)
                found.update(row for picture, rows in by_picture if picture.digest == digest for row in rows)
        return sorted(found)

    def _picture_slices(self, tap: Tap, block: Block | None) -> Iterator[ActivationSlice]:
        if not self.pictures:
            raise M0Error(
                "a picture was seen outside a call of the reranker; score pairs through it while recording or editing."
            )
        if block is not None:
            for place, member in enumerate(block.members):
                yield ActivationSlice(member, (place,), range(block.query_tokens))
            return
        start = 0
        for number, picture in enumerate(self.pictures):
            count = picture.num_tokens if tap.rows == "cells" else picture.grid[0] * picture.grid[1]
            yield ActivationSlice(number, (slice(start, start + count),), range(count))
            start += count


@uses_model
def forward(
    reranker: Scorer,
    encodings: Sequence[Encoding],
    seen: dict[bytes, Tensor] | None = None,
    record: bool | WatchingSession = True,
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
    with announce_call(reranker, encodings, record):
        features = compute_missing_features(model, reranker.sessions, batch.pictures, {} if seen is None else seen)
        for session in reranker.sessions:
            session.enter_batch(range(len(encodings)), batch.packing)
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


def patch_rows_by_picture(tap: Tap, encoding: Encoding, chosen: Sequence[int]) -> list[list[int]]:
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
