"""The two values that go with every call: how long prompts may be (`Limits`), and how the call is run (`RunOptions`)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from m0.engine.batch import tokens_at_a_time
from m0.errors import InputError
from m0.inputs.prompt import Limits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunOptions:
    """How a call is run. Memory and time depend on it, and no result does."""

    batch_tokens: int | None = None
    """Tokens that go through the model at a time; None: 2048 on a CPU, 16384 on a GPU."""
    progress: bool = False
    """Show a bar on stderr, or a line every 30 seconds where that is no terminal."""
    shared: bool = False
    """Under torchrun, share the documents out over all processes (`m0.engine.parallel.processes`), which must all make the same call;
    each gets the whole result. Of `rank` only."""

    def tokens(self, device: torch.device) -> int:
        """Tokens at a time on a device. Raises InputError for less than 1."""
        return tokens_at_a_time(self.batch_tokens, device)


class Keywords(TypedDict, total=False):
    """Keyword arguments of every call that takes `limits` and `run`: their fields, one by one."""

    max_length: int
    max_query_length: int
    max_doc_length: int | None
    batch_tokens: int | None
    progress: bool
    shared: bool


def settle(limits: Limits | None, run: RunOptions | None, keywords: Any) -> tuple[Limits, RunOptions]:
    """The limits and options of a call, given as values or field by field (`keywords`). Raises InputError where something is given both ways, or has another type, and
    TypeError, as Python does, for a keyword that there is not."""
    settled: list[Any] = []
    for name, kind, value in (("limits", Limits, limits), ("run", RunOptions, run)):
        given = {field.name: keywords.pop(field.name) for field in fields(kind) if field.name in keywords}
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} is {type(value).__name__}, but must be {kind.__name__}.")
        if value is not None and given:
            raise InputError(f"{next(iter(given))} is given both in {name} and by itself; give it once.")
        settled.append(kind(**given) if value is None else value)
    if keywords:
        raise TypeError(f"there is no argument {next(iter(keywords))!r}.")
    return settled[0], settled[1]
