"""Words of a text and which tokens they are made of, in scripts with and without blanks."""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from m0.interp.scripts import HAN, HIRAGANA, KATAKANA, UNSPACED, may_cut
from m0.prompt import Encoding, Side

FLAG, SKIN_TONE = re.compile("[\U0001f1e6-\U0001f1ff]"), re.compile("[\U0001f3fb-\U0001f3ff]")
ZERO_WIDTH_JOINER = "\u200d"
JOINERS = "'\u2019-"
END = re.compile("(?<=[.!?\u2026])\\s+|(?<=[\u3002\uff01\uff1f])|\\n+|(?<=[\u061f\u0964])\\s*")


@dataclass(frozen=True)
class Span:
    """A stretch of one part's text; of a part that is a picture, nothing from 0 to 0 with a name for it."""

    side: Side
    part: int
    start: int
    end: int
    text: str


def words_of(encoding: Encoding) -> list[Span]:
    """The words of all text parts, the document's first; punctuation marks count as words, blanks do not. No token belongs to two
    words: those that share one (several marks, characters of a script without blanks) are one word here."""
    found: list[Span] = []
    for side, number, text in _texts(encoding):
        edges = {
            edge
            for origin in encoding.origins
            if origin.side == side and origin.part == number and origin.start is not None and origin.end is not None
            for edge in (origin.start, origin.end)
        }
        spans: list[tuple[int, int]] = []
        for start, end, kind in _pieces(text):
            inner = sorted(edge for edge in edges if start < edge < end and may_cut(text, edge)) if kind == "unspaced" else []
            cuts = [start, *inner, end]
            for a, b in itertools.pairwise(cuts):
                # Nothing between them and no token ends there: one token holds the end of one and the start of the other.
                if spans and spans[-1][1] == a and a not in edges:
                    spans[-1] = (spans[-1][0], b)
                else:
                    spans.append((a, b))
        found += [Span(side, number, start, end, text[start:end]) for start, end in spans]
    return found


def _pieces(text: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of each word. Chinese characters and punctuation marks stand alone; kana of one kind stay together;
    what is seen as one sign (a flag, a family of emoji, a letter with its marks) is one."""
    pieces: list[tuple[int, int, str]] = []
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == "blank":
            continue
        start, end, before = pieces[-1] if pieces else (0, -1, "")
        touching = end == place
        joins = kind == "joined" or (touching and text[place - 1] == ZERO_WIDTH_JOINER and before == "mark")
        flag = kind == "flag" and before == "flag" and place - start == 1
        goes_on = kind == before and kind in ("word", "hiragana", "katakana", "unspaced")
        if touching and (joins or flag or goes_on):
            pieces[-1] = (start, place + 1, before)
        elif (
            kind == "mark"
            and character in JOINERS
            and touching
            and before == "word"
            and _kind(text[place + 1 : place + 2]) == "word"
        ):
            pieces[-1] = (start, place + 1, "word")
        else:
            pieces.append((place, place + 1, "mark" if kind == "joined" else kind))
    return pieces


def _kind(character: str) -> str:
    if not character or character.isspace():
        return "blank"
    for name, pattern in (("han", HAN), ("hiragana", HIRAGANA), ("katakana", KATAKANA), ("unspaced", UNSPACED), ("flag", FLAG)):
        if pattern.match(character):
            return name
    category = unicodedata.category(character)
    # Marks, joiners and skin tones belong to what stands before them.
    if category[0] == "M" or category == "Cf" or SKIN_TONE.match(character):
        return "joined"
    return "word" if category[0] in "LN" else "mark"


def sentences_of(encoding: Encoding) -> list[Span]:
    """The sentences (and lines) of all text parts."""
    found = []
    for side, number, text in _texts(encoding):
        start = 0
        for match in [*END.finditer(text), None]:
            end = len(text) if match is None else match.start()
            if text[start:end].strip():
                found.append(Span(side, number, start, end, text[start:end]))
            start = len(text) if match is None else match.end()
    return found


def _texts(encoding: Encoding) -> list[tuple[Side, int, str]]:
    sides: tuple[Side, Side] = ("document", "query")
    return [(side, i, part) for side in sides for i, part in enumerate(encoding.parts.get(side, ())) if isinstance(part, str)]


def owners_of(encoding: Encoding, spans: Sequence[Span]) -> list[int | None]:
    """For each token the number of the span it belongs to: the one it shares most characters with, or the nearest where it holds
    blanks alone. None: not a text token, or its part has no span."""
    by_part: dict[tuple[str, int], list[int]] = {}
    for number, span in enumerate(spans):
        by_part.setdefault((span.side, span.part), []).append(number)
    ends = {part: [spans[n].end for n in numbers] for part, numbers in by_part.items()}
    owners: list[int | None] = []
    for origin in encoding.origins:
        part = (origin.side, origin.part or 0)
        if origin.kind != "text" or origin.start is None or origin.end is None or part not in by_part:
            owners.append(None)
            continue
        numbers = by_part[part]
        first = bisect.bisect_right(ends[part], origin.start)
        best, common = None, 0
        for number in numbers[first:]:
            shared = min(origin.end, spans[number].end) - max(origin.start, spans[number].start)
            if spans[number].start >= origin.end:
                break
            if shared > common:
                best, common = number, shared
        if best is None:
            around = numbers[max(0, first - 1) : first + 1]
            best = min(around, key=lambda n: min(abs(spans[n].start - origin.end), abs(spans[n].end - origin.start)))  # type: ignore[operator]
        owners.append(best)
    return owners
