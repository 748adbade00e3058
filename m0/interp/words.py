"""Words of a text and which tokens they are made of, in scripts with and without spaces."""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m0.inputs.graphemes import clusters, edges
from m0.inputs.prompt import Encoding, Side
from m0.interp.unicode_scripts import HAN, HIRAGANA, KATAKANA, UNSPACED_SCRIPTS, can_break_before

WORD_JOINERS = "'\u2019-"
SENTENCE_END = re.compile("(?<=[.!?\u2026])\\s+|(?<=[\u3002\uff01\uff1f])|[\\r\\n]+|(?<=[\u061f\u0964])\\s*")


@dataclass(frozen=True)
class Span:
    """A chunk of one part's text; of a part that is a picture, nothing from 0 to 0 with a name for it."""

    side: Side
    part: int
    start: int
    end: int
    text: str


def find_words(encoding: Encoding) -> list[Span]:
    """The words of all text parts, the document's first; punctuation marks count as words, spaces do not. No token belongs to two
    words: those that share one (several marks, characters of a script without spaces) are one word here."""
    found: list[Span] = []
    for side, number, text in _text_parts(encoding):
        inside_token = _is_inside_token(encoding, side, number, len(text))
        spans: list[tuple[int, int]] = []
        for start, end, kind in _split_into_words(text):
            free = (np.flatnonzero(~inside_token[start + 1 : end]) + start + 1).tolist() if kind == "unspaced" else []
            cuts = [start, *(place for place in free if can_break_before(text, place)), end]
            for a, b in itertools.pairwise(cuts):
                # Nothing between them but a token that holds the end of one and the start of the other.
                if spans and spans[-1][1] == a and inside_token[a]:
                    spans[-1] = (spans[-1][0], b)
                else:
                    spans.append((a, b))
        found += [Span(side, number, start, end, text[start:end]) for start, end in spans]
    return found


def _is_inside_token(encoding: Encoding, side: Side, part: int, length: int) -> NDArray[np.bool_]:
    """For each place in a text, from 0 to its length, whether some token goes on across it."""
    steps = np.zeros(length + 2, dtype=np.int64)
    for origin in encoding.origins:
        here = (origin.side, origin.part) == (side, part)
        if here and origin.start is not None and origin.end is not None and origin.end > origin.start:
            steps[origin.start + 1] += 1
            steps[origin.end] -= 1
    return np.cumsum(steps) > 0


def _split_into_words(text: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of each word. Chinese characters and punctuation marks stand alone; kana of one kind stay together;
    what is seen as one sign (a flag, a family of emoji, a letter with its marks) is one."""
    pieces: list[tuple[int, int, str]] = []
    graphemes = clusters(text)
    kinds = [_grapheme_kind(grapheme) for grapheme in graphemes]
    place = 0
    for grapheme, kind, behind in zip(graphemes, kinds, [*kinds[1:], "blank"], strict=True):
        start, end, before = pieces[-1] if pieces else (0, -1, "")
        touching, here, place = end == place, place, place + len(grapheme)
        goes_on = kind == before and kind in ("word", "hiragana", "katakana", "unspaced")
        between = kind == "mark" and grapheme in WORD_JOINERS and before == behind == "word"
        if kind == "blank":
            continue
        if touching and (kind == "joined" or goes_on or between):
            pieces[-1] = (start, place, before)
        else:
            pieces.append((here, place, "mark" if kind == "joined" else kind))
    return pieces


def _grapheme_kind(grapheme: str) -> str:
    """What a cluster is, by its first character that is no mark."""
    if grapheme.isspace():
        return "blank"
    # Marks and invisible signs that stand alone belong to what is before them.
    base = next((character for character in grapheme if not _is_combining(character)), None)
    if base is None:
        return "joined"
    for name, pattern in (("han", HAN), ("hiragana", HIRAGANA), ("katakana", KATAKANA), ("unspaced", UNSPACED_SCRIPTS)):
        if pattern.match(base):
            return name
    return "word" if unicodedata.category(base)[0] in "LN" else "mark"


def _is_combining(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "M" or category == "Cf"


def find_sentences(encoding: Encoding) -> list[Span]:
    """The sentences (and lines) of all text parts."""
    found = []
    for side, number, text in _text_parts(encoding):
        start, known = 0, edges(text)
        for match in [*SENTENCE_END.finditer(text), None]:
            end, following = (len(text), len(text)) if match is None else match.span()
            if known is not None:  # a full stop may have a variation selector
                end = int(known[1][end])
                following = max(end, int(known[0][following]))
            if text[start:end].strip():
                found.append(Span(side, number, start, end, text[start:end]))
            start = following
    return found


def _text_parts(encoding: Encoding) -> list[tuple[Side, int, str]]:
    sides: tuple[Side, Side] = ("document", "query")
    return [(side, i, part) for side in sides for i, part in enumerate(encoding.parts.get(side, ())) if isinstance(part, str)]


def assign_tokens_to_spans(encoding: Encoding, spans: Sequence[Span]) -> list[int | None]:
    """For each token the number of the span it belongs to: the one it shares most characters with, or the nearest where it holds
    spaces alone. None: not a text token, or its part has no span."""
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
