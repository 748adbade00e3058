"""What a ranking is: documents with their scores, best first, and those that could not be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m0.inputs.passages import Passage
from m0.inputs.prompt import Cut, CutPages

if TYPE_CHECKING:
    from m0.inputs.pages import PageInfo


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
    id: str | None = None
    """Of a `Document`."""
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    """Of a `Document`, untouched."""
    passage: Passage | None = None
    """Which page or piece of the document stands for it; `tokens` and `cut` are of this one. None: the document is one piece."""

    @property
    def page(self) -> PageInfo | None:
        """The page that stands for the document; None where it has no pages."""
        return None if self.passage is None else self.passage.page


@dataclass(frozen=True)
class FailedDocument:
    """A document that could not be ranked (`on_error="skip"`)."""

    index: int
    error: str
    document: Any = field(repr=False)
    id: str | None = None


@dataclass(frozen=True)
class Ranking(Sequence[RankedDocument]):
    """Documents, best first; ties keep the order given. Behaves as a list of its results."""

    results: list[RankedDocument]
    failed: list[FailedDocument] = field(default_factory=list)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self.results[place]

    def __len__(self) -> int:
        return len(self.results)
