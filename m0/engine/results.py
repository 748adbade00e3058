"""What a ranking is: documents with their scores, best first, and those that could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from m0.inputs.prompt import Cut, CutPages


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking."""

    index: int
    """Its place in the list that was given."""
    score: float
    """Relevance between 0 and 1: sigmoid(logit - 2.65)."""
    logit: float
    """The model's raw output."""
    document: Any = field(repr=False)
    """As it was given."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of the prompt: "document", "query", "template", "total"."""
    cut: tuple[Cut | CutPages, ...] = ()
    """What was cut to keep within the limits, and pages of pictures' files that were not read; empty: nothing."""
    approximate: bool = False
    """Whether its score is only a cascade's draft score; such documents come after those that were scored in full."""


@dataclass(frozen=True)
class FailedDocument:
    """A document that could not be ranked (`on_error="skip"`)."""

    index: int
    error: str
    document: Any = field(repr=False)


@dataclass(frozen=True)
class Ranking(Sequence[RankedDocument]):
    """Documents, best first; ties keep the order given. Behaves as a list of its results."""

    results: list[RankedDocument]
    failed: list[FailedDocument] = field(default_factory=list)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self.results[place]

    def __len__(self) -> int:
        return len(self.results)
