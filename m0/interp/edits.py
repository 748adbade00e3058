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

from m0.engine.watching import Scorer
from m0.errors import InputError
from m0.inputs.prompt import Encoding
from m0.interp.positions import Selector, check_selector
from m0.interp.session import ActivationSlice, Session
from m0.interp.taps import Tap, check_heads, find_taps
from m0.model.attention import Block

EditFunction = Callable[[Tensor], Tensor]
"""Gets the chosen part of one pair's activation, rows first (scores and pattern: heads, queries, keys)."""


def zero(x: Tensor) -> Tensor:
    """Zeros in the place of x, of any shape: ablation."""
    return torch.zeros_like(x)


def scale(factor: float) -> EditFunction:
    """Multiply by a number. Raises InputError for what is no number."""
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise InputError(f"factor is {factor!r}, but must be a number.")
    return lambda x: x * factor


def add(vector: Tensor) -> EditFunction:
    """Steer: add a vector, (width,) or any shape that broadcasts, to every row (Turner et al. 2023).

    Raises InputError for what is no tensor, and, when the model runs, for a shape that does not fit.
    """
    put = replace(vector)
    return lambda x: x + put(x)


def replace(value: Tensor) -> EditFunction:
    """Put a value, (rows, width) or any shape that broadcasts, in the place of what is there: activation patching (Vig et al. 2020,
    Meng et al. 2022).

    Raises InputError for what is no tensor, and, when the model runs, for a shape that does not fit.
    """
    _check_tensor(value)

    def put(x: Tensor) -> Tensor:
        try:
            return value.to(x.device, x.dtype).expand_as(x)
        except RuntimeError:
            raise InputError(
                f"a tensor of shape {tuple(value.shape)} cannot take the place of one of {tuple(x.shape)}."
            ) from None

    return put


def mean(values: Tensor) -> EditFunction:
    """Put the mean of other rows in the place of every row. `values`: (rows, width), such as were recorded on other pairs.

    Raises InputError for what is no tensor or has no rows.
    """
    _check_tensor(values, rows=True)
    return replace(values.mean(0, keepdim=True))


def resample(values: Tensor, seed: int = 0) -> EditFunction:
    """Put a row drawn at random from others in the place of each row, whatever its position. `values`: (rows, width).

    Raises InputError for what is no tensor or has no rows.
    """
    _check_tensor(values, rows=True)
    generator = torch.Generator().manual_seed(seed)

    def put(x: Tensor) -> Tensor:
        chosen = torch.randint(len(values), (len(x),), generator=generator)
        return replace(values[chosen.to(values.device)])(x)

    return put


def _check_tensor(value: Any, rows: bool = False) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"an edit is given {type(value).__name__}, but must be given a tensor.")
    if rows and (value.ndim == 0 or not len(value)):
        raise InputError(f"an edit is given a tensor of shape {tuple(value.shape)}, which has no rows.")


@dataclass(frozen=True)
class Edit:
    """A function, and where it applies."""

    function: EditFunction
    at: Selector | None = None
    to: Selector | None = None
    heads: Sequence[int] | None = None
    pair: int | None = None
    """Only in the pair of this number in the call; None: in all."""


class Editing(Session):
    """A `with` block that changes activations.

    Raises InputError for heads that a tap does not have, and for `to` where it is no pattern.
    """

    def __init__(self, reranker: Scorer, edits: Mapping[Tap, list[Edit]], every_token: bool = False) -> None:
        for tap, tap_edits in edits.items():
            for edit in tap_edits:
                check_heads(tap, edit.heads)
                if edit.to is not None and not tap.is_pattern:
                    raise InputError(f"`to` chooses keys of scores and patterns, and {tap.name} is neither.")
        super().__init__(reranker, list(edits), every_token)
        self.edits = edits

    @classmethod
    def of(
        cls,
        reranker: Scorer,
        edits: Mapping[str, EditFunction],
        at: Selector | None = None,
        to: Selector | None = None,
        heads: int | Sequence[int] | None = None,
        every_token: bool = False,
    ) -> Editing:
        """The same place for every edit; hook points by shell patterns. Raises InputError for what cannot be chosen or done."""
        if not isinstance(edits, Mapping) or not edits:
            raise InputError("edits must be a mapping of taps' names to functions, and not an empty one.")
        for name, where in (("at", at), ("to", to)):
            if where is not None:
                check_selector(where, name)
        by_tap: dict[Tap, list[Edit]] = {}
        for names, function in edits.items():
            if not callable(function):
                raise InputError(f"the edit of {names!r} is {type(function).__name__}, but must be a function of a tensor.")
            for tap in find_taps(reranker.model.config, names):
                by_tap.setdefault(tap, []).append(Edit(function, at, to, check_heads(tap, heads)))
        return cls(reranker, by_tap, every_token)

    def begin(self, encodings: Sequence[Encoding]) -> None:
        """A call begins, with these pairs. Raises InputError where an edit's selector chooses nothing in any of them."""
        super().begin(encodings)
        taps_by_selector: dict[Selector, list[Tap]] = {}
        for tap, tap_edits in self.edits.items():
            for edit in tap_edits:
                for where in (edit.at, edit.to):
                    if where is not None and edit.pair is None:  # experiments, which say the pair, have looked themselves
                        taps_by_selector.setdefault(where, []).append(tap)
        for where, taps in taps_by_selector.items():
            self.check_selects_any(taps, where)

    def process(self, tap: Tap, x: Tensor, block: Block | None) -> Tensor:
        """What takes the place of an activation x, (rows, ...) or (sequences, heads, queries, keys), of the same shape.

        Raises InputError where an edit returns another shape.
        """
        result = x
        parts = list(self.slices(tap, x, block))
        for edit in self.edits[tap]:
            for part in parts:
                if edit.pair is not None and part.number != self.first + edit.pair:
                    continue
                index = self._index(tap, edit, part, x)
                if index is None:
                    continue
                before = result[index]
                after = edit.function(before.clone())  # a function may write into what it gets
                if not isinstance(after, Tensor) or after.shape != before.shape:
                    shape = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
                    raise InputError(f"the edit of {tap.name} returned {shape}, but must return shape {tuple(before.shape)}.")
                if result is x:
                    result = x.clone()
                result[index] = after.to(x.dtype)
        return result

    def _index(self, tap: Tap, edit: Edit, part: ActivationSlice, x: Tensor) -> tuple[Any, ...] | None:
        """Index of what the edit gets; None: nothing here, as the last layer has the score token's row alone."""

        def numbers(where: Selector | None, known: range) -> Tensor | None:
            if where is None:
                return None
            rows = [n - known.start for n in self.selected_rows(tap, part, where) if n in known]
            return torch.tensor(rows, dtype=torch.long, device=x.device)

        at = numbers(edit.at, part.tokens)
        if at is not None and not len(at):
            return None
        heads = None if edit.heads is None else torch.tensor(list(edit.heads), device=x.device)
        if not tap.is_pattern:
            if at is None and heads is None:
                return part.index
            start, stop = part.index[0].start, part.index[0].stop
            rows = torch.arange(start, stop, device=x.device) if at is None else start + at
            return (rows,) if heads is None else (rows[:, None], heads[None, :])
        to = numbers(edit.to, range(x.shape[-1]))
        if at is None and to is None and heads is None:
            return part.index
        heads = torch.arange(x.shape[1], device=x.device) if heads is None else heads
        queries = torch.arange(x.shape[2], device=x.device) if at is None else at
        keys = torch.arange(x.shape[3], device=x.device) if to is None else to
        return (part.index[0], heads[:, None, None], queries[:, None], keys)
