"""What was recorded, by name, pair, layer, head, word and box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.inputs.prompt import Encoding
from m0.interp.positions import Selector, check_selector
from m0.interp.session import Session, patch_rows_by_picture
from m0.interp.taps import Tap, check_heads
from m0.model.attention import Block


@dataclass(frozen=True)
class RecordedTensor:
    """One tensor and which tokens (patches) its rows are."""

    tensor: Tensor
    tokens: Sequence[int]


class Activation(Sequence[Tensor]):
    """One activation of every pair that was scored: `activation[pair]` is its tensor.

    An activation of the vision tower is that of all pictures of the pair, end to end; scores and patterns, whose sizes
    differ from picture to picture, are those of the pair's first one (see `picture`).
    """

    def __init__(
        self, tap: Tap, recorded: list[list[RecordedTensor]], encodings: list[Encoding], head: int | None = None
    ) -> None:
        self.tap, self.encodings = tap, encodings
        self._recorded, self._head = recorded, head

    def __len__(self) -> int:
        return len(self._recorded)

    def __getitem__(self, pair):  # type: ignore[no-untyped-def]
        if isinstance(pair, slice):
            return [self[i] for i in range(*pair.indices(len(self)))]
        parts = self._recorded_for(pair)
        if self.tap.is_pattern:
            return self._one_head(parts[0].tensor)
        return self._one_head(torch.cat([part.tensor for part in parts]) if len(parts) > 1 else parts[0].tensor)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[pair] for pair in range(len(self)))

    @property
    def tensor(self) -> Tensor:
        """The activation of the only pair, of the tap's shape, such as (tokens, hidden) or (heads, tokens, tokens).

        Raises InputError where there are several.
        """
        if len(self) != 1:
            raise InputError(f"{self.tap.name} was recorded for {len(self)} pairs; say which one: activation[pair].")
        return self[0]

    def picture(self, number: int, pair: int = 0) -> Tensor:
        """The activation of one picture of a pair, of the tap's shape, such as (patches, hidden); of the vision tower only.

        Raises InputError where there is no such picture.
        """
        parts = self._recorded_for(pair)
        if self.tap.rows not in ("patches", "cells") or not 0 <= number < len(parts):
            raise InputError(f"{self.tap.name} of pair {pair} has no picture {number}.")
        return self._one_head(parts[number].tensor)

    def head(self, number: int) -> Activation:
        """The same of one head, whose axis is dropped."""
        check_heads(self.tap, [number])
        return Activation(self.tap, self._recorded, self.encodings, number)

    def at(self, where: Selector, to: Selector | None = None, pair: int | None = None) -> Tensor:
        """The rows of some tokens, (chosen, ...); of scores and patterns, of some queries, (heads, chosen, keys), and `to` some keys.

        `pair` may be left out where there is only one. Of the tower, rows are the patches under these visual tokens, and scores
        and patterns are those of the one picture that they lie in. Raises InputError where the tokens are not there or were not
        recorded.
        """
        if pair is None and len(self) != 1:
            raise InputError(f"{self.tap.name} was recorded for {len(self)} pairs; say which one: at(..., pair=0).")
        check_selector(where, "where")
        if to is not None:
            check_selector(to, "to")
            if not self.tap.is_pattern:
                raise InputError(f"`to` chooses keys of scores and patterns, and {self.tap.name} is neither.")
        pair = 0 if pair is None else pair
        parts = self._recorded_for(pair)
        encoding = self.encodings[pair]
        if self.tap.rows not in ("patches", "cells"):
            rows = self._rows(where, encoding, parts[0])
            if not self.tap.is_pattern:
                return self[pair][rows]
            tensor = self[pair][..., rows, :]
            return tensor if to is None else tensor[..., to.found(encoding)]
        by_picture = rows_by_picture(self.tap, where, encoding)
        if not self.tap.is_pattern:
            return torch.cat([self._one_head(part.tensor)[rows] for part, rows in zip(parts, by_picture, strict=True)])
        numbers = [number for number, rows in enumerate(by_picture) if rows]
        if len(numbers) != 1:
            raise InputError(f"{self.tap.name} is one picture's, but {where} lies in {len(numbers)}.")
        (number,) = numbers
        tensor = self._one_head(parts[number].tensor)[..., by_picture[number], :]
        return tensor if to is None else tensor[..., rows_by_picture(self.tap, to, encoding)[number]]

    def _rows(self, where: Selector, encoding: Encoding, recorded: RecordedTensor) -> list[int]:
        places = {token: row for row, token in enumerate(recorded.tokens)}
        chosen = where.found(encoding)
        if missing := [token for token in chosen if token not in places]:
            raise InputError(
                f"{self.tap.name} was not recorded at token {missing[0]} ({where}); "
                "in the last layer only the score token is computed, unless record(..., every_token=True)."
            )
        return [places[token] for token in chosen]

    def _recorded_for(self, pair: int) -> list[RecordedTensor]:
        if not -len(self._recorded) <= pair < len(self._recorded):
            raise InputError(f"pair {pair} is asked for, but {len(self._recorded)} were recorded.")
        if not self._recorded[pair]:
            raise InputError(
                f"{self.tap.name} has nothing for pair {pair}: the pair shows no picture, or its call did not get that far."
            )
        return self._recorded[pair]

    def _one_head(self, tensor: Tensor) -> Tensor:
        if self._head is None:
            return tensor
        return tensor[self._head] if self.tap.is_pattern else tensor[:, self._head]

    def __repr__(self) -> str:
        return f"{self.tap.name} {self.tap.shape} of {len(self)} pair{'s' * (len(self) != 1)}"


def rows_by_picture(tap: Tap, where: Selector, encoding: Encoding) -> list[list[int]]:
    """Rows of the patches (visual tokens) under some tokens, for each of the prompt's pictures. Raises InputError where a token is
    none of a picture."""
    chosen = where.found(encoding)
    if outside := [token for token in chosen if encoding.origins[token].kind != "image"]:
        raise InputError(f"{tap.name} holds pictures, but token {outside[0]} ({where}) is none of a picture.")
    return patch_rows_by_picture(tap, encoding, chosen)


class Cache:
    """Everything recorded. `cache[name]` is an `Activation`; `cache.stack(pattern)` one tensor over layers."""

    def __init__(self) -> None:
        self.encodings: list[Encoding] = []
        self._taps: dict[str, Tap] = {}
        self._pairs: dict[str, dict[int, RecordedTensor]] = defaultdict(dict)
        self._pictures: dict[str, dict[tuple[int, bytes], RecordedTensor]] = defaultdict(dict)
        """By call and the picture's digest."""
        self._calls: list[int] = []
        """In which call each pair was."""

    def __getitem__(self, name: str) -> Activation:
        if name not in self._taps:
            raise InputError(f"{name!r} was not recorded; recorded were {', '.join(list(self._taps)[:6])} ...")
        tap = self._taps[name]
        if tap.rows in ("patches", "cells"):
            pictures = self._pictures[name]
            recorded = [
                [pictures[call, p.digest] for p in encoding.pictures if (call, p.digest) in pictures]
                for call, encoding in zip(self._calls, self.encodings, strict=True)
            ]
        else:
            pairs = self._pairs[name]
            recorded = [[pairs[number]] if number in pairs else [] for number in range(len(self.encodings))]
        return Activation(tap, recorded, self.encodings)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._taps

    def __len__(self) -> int:
        return len(self._taps)

    @property
    def names(self) -> list[str]:
        """Names of what was recorded, in the order data flows."""
        return list(self._taps)

    def stack(self, pattern: str, pair: int = 0) -> Tensor:
        """The activations of one pair whose names match, stacked over layers: (layers, rows, ...). Raises InputError where none does,
        or where their shapes differ, as in the decoder's last layer."""
        tensors = [self[name][pair] for name in self.names if fnmatchcase(name, pattern)]
        if not tensors:
            raise InputError(f"nothing recorded is named {pattern!r}.")
        if len({tensor.shape for tensor in tensors}) > 1:
            raise InputError(
                f"the activations named {pattern!r} have different shapes; record(..., every_token=True) evens them."
            )
        return torch.stack(tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        recorded = [some for group in self._pairs.values() for some in group.values()]
        recorded += [some for shown in self._pictures.values() for some in shown.values()]
        storages = (some.tensor.untyped_storage() for some in recorded)
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Recording(Session):
    """A `with` block that keeps activations. Entering gives the `Cache`, which stays whole afterwards."""

    records = True

    def __init__(self, reranker: Scorer, taps: Sequence[Tap], at: Selector | None = None, every_token: bool = False) -> None:
        if at is not None:
            check_selector(at, "at")
        super().__init__(reranker, taps, every_token)
        self.at, self.cache = at, Cache()

    def __enter__(self) -> Cache:  # type: ignore[override]
        super().__enter__()
        self.cache.encodings = self.encodings
        self.cache._taps = {tap.name: tap for tap in self.taps}
        return self.cache

    def begin(self, encodings: Sequence[Encoding]) -> None:
        """A call begins, with these pairs. Raises InputError where `at` chooses nothing in any of them."""
        super().begin(encodings)
        self.cache._calls += [self.calls] * len(encodings)
        if self.at is not None:
            self.check_selects_any(self.taps, self.at)

    def process(self, tap: Tap, x: Tensor, block: Block | None) -> Tensor:
        """Keep every pair's share of an activation x, (rows, ...) or (sequences, heads, queries, keys); returns x, or what lies on the way to
        the score.
        """
        parts = []
        # What is kept must lie on the way to the score, or no gradient would reach it.
        keeps_graph = torch.is_grad_enabled() and x.requires_grad
        for location in self.slices(tap, x, block):
            part = x[location.index]
            recorded, tokens = part, list(location.tokens)
            if self.at is not None:
                tokens = [token for token in self.selected_rows(tap, location, self.at) if token in location.tokens]
                rows = torch.tensor([token - location.tokens.start for token in tokens], dtype=torch.long, device=x.device)
                recorded = part.index_select(-2 if tap.is_pattern else 0, rows)
                if keeps_graph:
                    part = part.index_copy(-2 if tap.is_pattern else 0, rows, recorded)
            elif not keeps_graph and not x.is_contiguous():
                recorded = part.clone()  # a part of something larger, which need not be kept
            parts.append(part)
            if tap.rows in ("patches", "cells"):
                digest = self.pictures[location.number].digest
                self.cache._pictures[tap.name][self.calls, digest] = RecordedTensor(recorded, tokens)
            else:
                self.cache._pairs[tap.name][location.number] = RecordedTensor(recorded, tokens)
        if not keeps_graph:
            return x
        return torch.stack(parts) if block is not None else torch.cat(parts)
