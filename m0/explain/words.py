"""Words of a text and which tokens they are made of, in scripts with and without blanks."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from m0.prompt import Encoding, Side

HAN = re.compile("[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
HIRAGANA, KATAKANA = re.compile("[\u3040-\u309f]"), re.compile("[\u30a0-\u30ff]")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Burmese, Khmer: written without blanks, and cut where the tokenizer cuts."""
JOINERS = "'\u2019-"
END = re.compile("(?<=[.!?\u2026])\\s+|(?<=[\u3002\uff01\uff1f])|\\n+|(?<=[\u061f\u0964])\\s*")


@dataclass(frozen=True)
class Span:
    """A stretch of one part's text."""

    side: Side
    part: int
    start: int
    end: int
    text: str


def words_of(encoding: Encoding) -> list[Span]:
    """The words of all text parts, the document's first; punctuation marks count as words, blanks do not."""
    found = []
    for side, number, text in _texts(encoding):
        cuts = sorted(
            edge
            for origin in encoding.origins
            if origin.side == side and origin.part == number and origin.start is not None and origin.end is not None
            for edge in (origin.start, origin.end)
        )
        for start, end, kind in _pieces(text):
            edges = [start, *(cut for cut in cuts if kind == "unspaced" and start < cut < end), end]
            edges = list(dict.fromkeys(edges))
            found += [Span(side, number, a, b, text[a:b]) for a, b in itertools.pairwise(edges)]
    return found


def _pieces(text: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of each word. Chinese characters and punctuation marks stand alone; kana of one kind stay together."""
    pieces: list[tuple[int, int, str]] = []
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == "blank":
            continue
        start, end, before = pieces[-1] if pieces else (0, -1, "")
        goes_on = end == place and kind == before and kind not in ("han", "mark")
        if (
            kind == "mark"
            and character in JOINERS
            and end == place
            and before == "word"
            and _kind(text[place + 1 : place + 2]) == "word"
        ):
            pieces[-1] = (start, place + 1, "word")
        elif goes_on:
            pieces[-1] = (start, place + 1, kind)
        else:
            pieces.append((place, place + 1, kind))
    return pieces


def _kind(character: str) -> str:
    if not character or character.isspace():
        return "blank"
    for name, pattern in (("han", HAN), ("hiragana", HIRAGANA), ("katakana", KATAKANA), ("unspaced", UNSPACED)):
        if pattern.match(character):
            return name
    # Marks belong to the letter before them: vowel signs of Hindi or Tamil, vowel points of Arabic or Hebrew.
    return "word" if unicodedata.category(character)[0] in "LNM" else "mark"


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


def token_shares(encoding: Encoding, spans: Sequence[Span]) -> list[dict[int, float]]:
    """For each token, how much of it belongs to which span, by number. Shares of a text token add up to 1 wherever its part has a
    span: by the characters it shares with them, or to the nearest where it holds blanks alone."""
    by_part: dict[tuple[str, int], list[int]] = {}
    for number, span in enumerate(spans):
        by_part.setdefault((span.side, span.part), []).append(number)
    shares: list[dict[int, float]] = []
    for origin in encoding.origins:
        if origin.kind != "text" or origin.part is None or origin.start is None or origin.end is None:
            shares.append({})
            continue
        some = by_part.get((origin.side, origin.part), [])
        common = {n: min(origin.end, spans[n].end) - max(origin.start, spans[n].start) for n in some}
        common = {n: length for n, length in common.items() if length > 0}
        if not common and some:
            middle = (origin.start + origin.end) / 2
            nearest = min(some, key=lambda n: min(abs(spans[n].start - middle), abs(spans[n].end - middle)))
            common = {nearest: 1}
        total = sum(common.values())
        shares.append({n: length / total for n, length in common.items()})
    return shares


def tokens_of(encoding: Encoding, span: Span) -> list[int]:
    """Numbers of the tokens that hold any of the span's characters."""
    return [
        i for i, origin in enumerate(encoding.origins)
        if origin.side == span.side and origin.part == span.part and origin.start is not None and origin.end is not None
        and origin.start < span.end and origin.end > span.start
    ]  # fmt: skip
