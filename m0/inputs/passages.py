"""Long documents as passages: pages of a file, and pieces of a text; and how the scores of passages make a document's.

A document is scored by its best passage (MaxP), by its first (FirstP), or by the mean of its best (Dai & Callan 2019, "Deeper Text
Understanding for IR with Contextual Neural Language Modeling").
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tokenizers import Tokenizer

from m0.errors import InputError
from m0.inputs.graphemes import cluster_bounds
from m0.inputs.images import Picture
from m0.inputs.prompt import whole_number
from m0.inputs.stream import Part
from m0.inputs.truncation import encode_text

if TYPE_CHECKING:
    from m0.inputs.pages import Page, PageInfo

AGGREGATIONS = ("max", "first", "mean")
WITHIN_CHARACTER, WITHIN_CLUSTER, BETWEEN_CHARACTERS, BLANK = range(4)
"""How well a text is cut at a place."""


class Span(NamedTuple):
    """Characters of a text of a document: `part` counts its parts, pictures among them; of a page's text layer it is 0."""

    part: int
    start: int
    end: int


@dataclass(frozen=True)
class Passage:
    """Which passage of a document a score is of."""

    number: int
    """From 1."""
    count: int
    """How many passages the document has."""
    spans: tuple[Span, ...] = ()
    """What it holds of the document's texts; empty: texts are not cut."""
    page: PageInfo | None = None
    """The page it is, or lies on."""
    source: Page | None = field(default=None, compare=False, repr=False)
    """The same page, to read it: its words, and its boxes in the PDF's own coordinates. No part of `to_json`."""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; pages as the fields of `PageInfo`."""
        page = None if self.page is None else asdict(self.page)
        return {"number": self.number, "count": self.count, "spans": [span._asdict() for span in self.spans], "page": page}


@dataclass(frozen=True)
class Passages:
    """How documents are cut into passages, and how the passages' scores make the document's.

    A document whose text has at most `tokens` tokens is one passage. Else each text is cut into pieces of at most `tokens`, at blanks where there
    are any, which overlap; short parts share a passage; a picture goes with the text before it; pieces of blanks alone are left out. A
    character that takes more tokens by itself stays whole. Each page of a PDF, TIFF or CBZ is a passage, and its text (`"as": "text"`,
    `"as": "both"`) is cut further. Raises InputError for fields that cannot be used.
    """

    tokens: int | None = 512
    """Most tokens of text in a passage; None: texts are not cut, and passages are pages alone."""
    overlap: int | None = None
    """Tokens at the end of a piece that the next one begins with, about; None: an eighth of `tokens`."""
    score: Literal["max", "first", "mean"] = "max"
    """The document's logit: that of its best passage, of its first, or the mean of its `best` highest."""
    best: int = 3
    """How many passages "mean" is of; a document with fewer counts those it has."""

    def __post_init__(self) -> None:
        if self.tokens is not None:
            object.__setattr__(self, "tokens", whole_number(self.tokens, "tokens"))
            if self.overlap is None:
                object.__setattr__(self, "overlap", self.tokens // 8)
            if isinstance(self.overlap, bool) or not isinstance(self.overlap, int) or not 0 <= self.overlap <= self.tokens // 2:
                raise InputError(
                    f"overlap is {self.overlap!r}, but must be a whole number from 0 to half of tokens, {self.tokens // 2}."
                )
        if self.score not in AGGREGATIONS:
            raise InputError(f"score is {self.score!r}, but must be one of {', '.join(AGGREGATIONS)}.")
        object.__setattr__(self, "best", whole_number(self.best, "best"))

    @classmethod
    def of(cls, value: Any) -> Passages:
        """What the argument `passages` stands for: None and "pages" are pages as they are. Raises InputError."""
        if value is None or value == "pages":
            return PAGES
        if not isinstance(value, cls):
            raise InputError(f'passages is {value!r}, but must be Passages(...), "pages" or None.')
        return value

    def combine(self, logits: Sequence[float]) -> tuple[float, int]:
        """The document's logit, and the number (from 0) of the passage that stands for it, (passages,) -> ()."""
        winner = best_of(logits)
        if self.score == "mean":
            highest = heapq.nlargest(self.best, logits)
            return sum(highest) / len(highest), winner
        return logits[winner], winner


PAGES = Passages(tokens=None, overlap=0)


def best_of(logits: Sequence[float]) -> int:
    """The number (from 0) of the highest logit, of equals the first, (passages,) -> ()."""
    return max(range(len(logits)), key=lambda number: (logits[number], -number))


def cut_parts(parts: Sequence[Part], how: Passages, tokenizer: Tokenizer) -> list[tuple[tuple[Span, ...], list[Part]]]:
    """Parts of a document -> its passages: the characters each holds, and its parts."""
    if how.tokens is None:
        return [((), list(parts))]
    found: list[tuple[list[Span], list[Part]]] = [([], [])]
    size = 0
    for number, part in enumerate(parts):
        if isinstance(part, Picture):
            found[-1][1].append(part)
            continue
        for start, end, tokens in _pieces(part, how.tokens, how.overlap or 0, tokenizer):
            spans = found[-1][0]
            if spans and (size + tokens > how.tokens or spans[-1].part == number):
                found.append(([], []))
                size = 0
            found[-1][0].append(Span(number, start, end))
            found[-1][1].append(part[start:end])
            size += tokens
    held = [(tuple(spans), some) for spans, some in found]
    return [one for one in held if any(not isinstance(part, str) or part.strip() for part in one[1])] or held[:1]


def _pieces(text: str, tokens: int, overlap: int, tokenizer: Tokenizer) -> Iterator[tuple[int, int, int]]:
    """Start, end and tokens of each piece of a text."""
    offsets = encode_text(tokenizer, text).offsets
    if len(offsets) <= tokens:
        yield 0, len(text), len(offsets)
        return
    stops = _stops(text, offsets)
    starts = [0, *(start for start, _ in offsets[1:]), len(text)]
    first = 0
    while True:
        last = _end_of_piece(stops, first, min(first + tokens, len(offsets)), tokens)
        # A piece by itself may take more tokens than in its text.
        while (size := len(encode_text(tokenizer, text[starts[first] : starts[last]]).ids)) > tokens:
            shorter = _end_of_piece(stops, first, max(last - (size - tokens), first + 1), tokens)
            if shorter >= last:  # one character
                break
            last = shorter
        yield starts[first], starts[last], size
        if last == len(offsets):
            return
        first = max(range(max(last - overlap, first + 1), last + 1), key=lambda place: (stops[place], -place))


def _end_of_piece(stops: Sequence[int], first: int, most: int, tokens: int) -> int:
    """Where a piece ends that begins at `first`: at `most` if it can, and before it only in its second half if that can be."""
    if most == len(stops) - 1:
        return most
    best = max(range(min(first + tokens // 2 + 1, most), most + 1), key=lambda place: (stops[place], place))
    if stops[best] != WITHIN_CHARACTER:
        return best
    places = itertools.chain(range(most, first, -1), itertools.count(most + 1))
    return next(place for place in places if stops[place] != WITHIN_CHARACTER)


def _stops(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each place between tokens how well a text is cut there: BLANK, BETWEEN_CHARACTERS, WITHIN_CLUSTER where a character as readers
    see it is longer than a passage, and WITHIN_CHARACTER, where it cannot be cut. (tokens + 1,)"""
    known = cluster_bounds(text)
    is_edge = [True] * (len(text) + 1) if known is None else (known[0] == known[1]).tolist()
    found = [BLANK]
    for (_, end), (start, _) in itertools.pairwise(offsets):
        if start < end:  # tokens of one character name the same place
            found.append(WITHIN_CHARACTER)
        elif not is_edge[start]:
            found.append(WITHIN_CLUSTER)
        else:
            found.append(BLANK if text[start].isspace() or text[start - 1].isspace() else BETWEEN_CHARACTERS)
    return [*found, BLANK]
