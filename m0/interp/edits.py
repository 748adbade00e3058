"""Changing activations while the model runs.

An edit is any function from one pair's tensor to a tensor of the same shape. The ones here are zero, scale, add (steering),
replace, mean and resample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m0.attention import Block
from m0.errors import InputError
from m0.images import Picture
from m0.interp.cache import columns_of
from m0.interp.positions import Selector
from m0.interp.session import Rows, Scorer, Session
from m0.interp.taps import Tap, check_heads, find_taps
from m0.prompt import Encoding

EditFunction = Callable[[Tensor], Tensor]
"""Gets the chosen part of one pair's activation, rows first (scores and pattern: heads, queries, keys)."""


def zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def scale(factor: float) -> EditFunction:
    """Multiply."""
    return lambda x: x * factor


def add(vector: Tensor) -> EditFunction:
    """Steer: add a vector to every row (Turner et al. 2023)."""
    return lambda x: x + vector.to(x.device, x.dtype)


def replace(value: Tensor) -> EditFunction:
    """Put this in its place: activation patching (Vig et al. 2020, Meng et al. 2022). Shapes must agree or broadcast."""

    def put(x: Tensor) -> Tensor:
        try:
            return value.to(x.device, x.dtype).expand_as(x)
        except RuntimeError:
            raise InputError(
                f"a tensor of shape {tuple(value.shape)} cannot take the place of one of {tuple(x.shape)}."
            ) from None

    return put


def mean(values: Tensor) -> EditFunction:
    """Put the mean of other rows in the place of every row. `values`: (rows, ...), such as were recorded on other pairs."""
    return replace(values.mean(0, keepdim=True))


def resample(values: Tensor, seed: int = 0) -> EditFunction:
    """Put a random one of other rows in the place of each row. `values`: (rows, ...)."""

    def put(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(values), (len(x),), generator=generator)
        return replace(values[chosen.to(values.device)])(x)

    return put


@dataclass(frozen=True)
class Edit:
    """A function, and where it applies."""

    function: EditFunction
    at: Selector | None = None
    to: Selector | None = None
    heads: Sequence[int] | None = None
    pair: int | None = None
    """Only in the pair of this number among those scored; None: in all."""


class Editing(Session):
    """A `with` block that changes activations."""

    def __init__(
        self,
        reranker: Scorer,
        edits: Mapping[str, EditFunction],
        at: Selector | None = None,
        to: Selector | None = None,
        heads: Sequence[int] | None = None,
        every_token: bool = False,
    ) -> None:
        by_tap: dict[Tap, list[Edit]] = {}
        for names, function in edits.items():
            if not callable(function):
                raise InputError(f"the edit of {names!r} is {type(function).__name__}, but must be a function of a tensor.")
            for tap in find_taps(reranker.model.config, names):
                by_tap.setdefault(tap, []).append(Edit(function, at, to, heads))
        self.set(reranker, by_tap, every_token)

    def set(self, reranker: Scorer, edits: Mapping[Tap, list[Edit]], every_token: bool = False) -> None:
        for tap, some in edits.items():
            for edit in some:
                check_heads(tap, edit.heads)
                if edit.to is not None and not tap.is_pattern:
                    raise InputError(f"`to` chooses keys of scores and patterns, and {tap.name} is neither.")
        super().__init__(reranker, list(edits), every_token)
        self.edits = edits

    @classmethod
    def of(cls, reranker: Scorer, edits: Mapping[Tap, list[Edit]], every_token: bool = False) -> Editing:
        """Different edits in different places: what the experiments are made of."""
        editing = cls.__new__(cls)
        editing.set(reranker, edits, every_token)
        return editing

    def see(self, tap: Tap, x: Tensor, block: Block | None) -> Tensor:
        result = x
        shares = {rows.number: rows for rows in self.rows(tap, x, block)}
        for edit in self.edits[tap]:
            for number in shares if edit.pair is None else [edit.pair]:
                if number not in shares:
                    continue
                index = self._index(tap, edit, shares[number], x)
                if index is None:
                    continue
                before = result[index]
                after = edit.function(before)
                if after is before:
                    continue
                if not isinstance(after, Tensor) or after.shape != before.shape:
                    shape = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
                    raise InputError(f"the edit of {tap.name} returned {shape}, but must return shape {tuple(before.shape)}.")
                if before.shape == x.shape:  # all there is
                    result = after.to(x.dtype)
                    continue
                if result is x:
                    result = x.clone()
                result[index] = after.to(x.dtype)
        return result

    def _index(self, tap: Tap, edit: Edit, rows: Rows, x: Tensor) -> tuple[Any, ...] | None:
        """Index of what the edit gets; None: nothing here, as the last layer has the score token's row alone."""
        if tap.rows in ("patches", "cells"):
            encoding, first = self._shown(tap, self.pictures[rows.number])
        else:
            encoding, first = self.encodings[rows.number], 0

        def numbers(where: Selector | None, known: range) -> Tensor | None:
            if where is None:
                return None
            chosen = [n - first for n in columns_of(tap, where, encoding) if n - first in known]
            return torch.tensor([n - known.start for n in chosen], dtype=torch.long, device=x.device)

        at, heads = numbers(edit.at, rows.tokens), edit.heads
        if at is not None and not len(at):
            return None
        if not tap.is_pattern:
            start = rows.index[0].start
            if at is None and heads is None:
                return rows.index
            chosen = torch.arange(start, rows.index[0].stop, device=x.device) if at is None else start + at
            return (chosen,) if heads is None else (chosen[:, None], torch.tensor(list(heads), device=x.device)[None, :])
        to = numbers(edit.to, range(x.shape[-1]))
        if at is None and to is None and heads is None:
            return rows.index
        some_heads = torch.arange(x.shape[1], device=x.device) if heads is None else torch.tensor(list(heads), device=x.device)
        queries = torch.arange(x.shape[2], device=x.device) if at is None else at
        keys = torch.arange(x.shape[3], device=x.device) if to is None else to
        return (rows.index[0], some_heads[:, None, None], queries[:, None], keys)

    def _shown(self, tap: Tap, picture: Picture) -> tuple[Encoding, int]:
        """A prompt that shows this picture, and how many of its rows stand before the picture's. A picture is looked at once,
        so all pairs that show it see the same edit."""
        for encoding in self.encodings:
            first = 0
            for other in encoding.pictures:
                if other.digest == picture.digest:
                    return encoding, first * (1 if tap.rows == "cells" else picture.settings.merge_size**2)
                first += other.num_tokens
        raise AssertionError("a picture is looked at that no pair shows")
