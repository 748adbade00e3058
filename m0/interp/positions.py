"""Which tokens: asked for as words, boxes and sides, not as numbers.

    document.words("Alpi")          the tokens of a word of the document
    query.all                       the query's tokens
    image.box(10, 20, 60, 80)       the visual tokens that show a part of this box, in the original picture's pixels
    score_token | template          either

A selector is asked for a prompt (`m0.inputs.prompt.Encoding`) and answers with token numbers, so that one selector serves many prompts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from m0.errors import InputError
from m0.inputs.graphemes import clusters, edges
from m0.inputs.images import Picture
from m0.inputs.prompt import Encoding, Side
from m0.interp.unicode_scripts import uses_spaces


@dataclass(frozen=True)
class Selector:
    """Chooses tokens of a prompt."""

    choose: Callable[[Encoding], Sequence[int]]
    name: str

    def __call__(self, encoding: Encoding) -> list[int]:
        """Token numbers, ascending; none where the prompt has nothing of the kind. Raises InputError for words, boxes, cells, parts and
        characters that are not there."""
        return sorted(set(self.choose(encoding)))

    def found(self, encoding: Encoding) -> list[int]:
        """The same, but raises InputError where it chooses none."""
        if not (chosen := self(encoding)):
            raise InputError(f"{self.name} finds no token in this prompt.")
        return chosen

    def __or__(self, other: Selector) -> Selector:
        check_selector(other, "what is joined")
        return Selector(lambda encoding: [*self(encoding), *other(encoding)], f"{self.name} | {other.name}")

    def __and__(self, other: Selector) -> Selector:
        check_selector(other, "what is joined")
        return Selector(lambda encoding: list(set(self(encoding)) & set(other(encoding))), f"{self.name} & {other.name}")

    def __sub__(self, other: Selector) -> Selector:
        check_selector(other, "what is taken away")
        return Selector(lambda encoding: list(set(self(encoding)) - set(other(encoding))), f"{self.name} - {other.name}")

    def __str__(self) -> str:
        return self.name


def check_selector(value: Any, name: str) -> None:
    """Raises InputError for anything that is no selector."""
    if not isinstance(value, Selector):
        raise InputError(f"{name} is {value!r}, but must be a selector such as document.words('Alpi') or query.all.")


class SideTokens(Selector):
    """Tokens of the query or the document: all of them, pictures included, unless some are asked for."""

    def __init__(self, side: Side) -> None:
        super().__init__(lambda encoding: [i for i, o in enumerate(encoding.origins) if o.side == side], side)
        object.__setattr__(self, "side", side)

    side: Side

    @property
    def all(self) -> Selector:
        """All of the side's tokens, pictures included."""
        return Selector(self.choose, f"{self.side}.all")

    def part(self, number: int) -> Selector:
        """The tokens of one part of a mixed side. Raises InputError, when asked, where there is none."""

        def choose(encoding: Encoding) -> list[int]:
            found = [
                i for i, origin in enumerate(encoding.origins)
                if origin.side == self.side and origin.part == number and origin.kind != "template"
            ]  # fmt: skip
            if not found:
                raise InputError(f"the {self.side} has no part {number}.")
            return found

        return Selector(choose, f"{self.side}.part({number})")

    def characters(self, start: int, end: int, part: int = 0) -> Selector:
        """The tokens that hold any of the characters `start` to `end - 1` of a part's text.

        Raises InputError, when asked, where there are none.
        """

        def choose(encoding: Encoding) -> list[int]:
            found = self._overlapping(encoding, part, start, end)
            if not found:
                raise InputError(f"part {part} of the {self.side} has no characters {start} to {end - 1}.")
            return found

        return Selector(choose, f"{self.side}.characters({start}, {end})")

    def words(self, text: str, occurrence: int | None = None) -> Selector:
        """The tokens of a word or phrase, upper and lower case alike. `occurrence`: only that one, from 0; None: all of them.

        Whole words are looked for; in scripts without spaces, and of what neither begins nor ends with a letter, the text anywhere.
        Raises InputError for what is no text, and, when asked, where the text is not found.
        """
        if not isinstance(text, str):
            raise InputError(f"words are asked for by {type(text).__name__}, but must be by text.")
        if occurrence is not None and (isinstance(occurrence, bool) or not isinstance(occurrence, int) or occurrence < 0):
            raise InputError(f"occurrence is {occurrence!r}, but must be a whole number from 0 on, or None for all.")

        def choose(encoding: Encoding) -> list[int]:
            places = [
                (number, *match)
                for number, part in enumerate(encoding.parts.get(self.side, ()))
                if isinstance(part, str)
                for match in _find_occurrences(text, part)
            ]
            if occurrence is not None:
                places = places[occurrence : occurrence + 1]
            if not places:
                which = "" if occurrence is None else f" (occurrence {occurrence})"
                raise InputError(f"the {self.side} does not hold {text!r}{which}.")
            return [i for number, start, end in places for i in self._overlapping(encoding, number, start, end)]

        return Selector(choose, f"{self.side}.words({text!r})")

    def _overlapping(self, encoding: Encoding, part: int, start: int, end: int) -> list[int]:
        return [
            i for i, origin in enumerate(encoding.origins)
            if origin.side == self.side and origin.part == part and origin.start is not None and origin.end is not None
            and origin.start < end and origin.end > start
        ]  # fmt: skip


def _find_occurrences(text: str, part: str) -> list[tuple[int, int]]:
    """Where a text holds another, in whatever form of Unicode either is written."""
    if not text.strip():
        return []
    text = unicodedata.normalize("NFC", text)
    composed, places = _compose_nfc(part)
    graphemes, known = clusters(text), edges(composed)
    # Between letters of scripts with blanks no word begins or ends, nor between a letter and its marks.
    first, last = uses_spaces(graphemes[0][0]), uses_spaces(graphemes[-1][0])
    before, after = r"(?<!\w)" if first else "", r"(?!\w)" if last else ""
    found = []
    for match in re.finditer(f"{before}{re.escape(text)}{after}", composed, re.IGNORECASE):
        start, end = match.span()
        if known is not None and ((first and known[0][start] != start) or (last and known[1][end] != end)):
            continue
        found.append((places[start][0], places[end - 1][1]))
    return found


def _compose_nfc(text: str) -> tuple[str, Sequence[tuple[int, int]]]:
    """A text in NFC, and for each of its characters the first one in the text as it is and the one after the last."""
    if unicodedata.is_normalized("NFC", text):
        return text, [(place, place + 1) for place in range(len(text))]
    composed, places, start = [], [], 0
    for grapheme in clusters(text):
        composed.append(unicodedata.normalize("NFC", grapheme))
        places += [(start, start + len(grapheme))] * len(composed[-1])
        start += len(grapheme)
    return "".join(composed), places


class ImageTokens(Selector):
    """Visual tokens. `picture` counts the prompt's pictures: the document's first, then the query's."""

    def __init__(self) -> None:
        super().__init__(lambda encoding: [i for i, o in enumerate(encoding.origins) if o.kind == "image"], "image")

    @property
    def all(self) -> Selector:
        """All visual tokens."""
        return Selector(self.choose, "image.all")

    def cell(self, row: int, column: int, picture: int = 0) -> Selector:
        """One visual token by its place in the picture's grid.

        Raises InputError for what is no whole number, and, when asked, where there is no such cell.
        """
        for name, value in (("row", row), ("column", column)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"{name} is {value!r}, but must be a whole number.")

        def choose(encoding: Encoding) -> list[int]:
            shown, tokens = picture_tokens(encoding, picture)
            rows, columns = shown.token_grid
            if not (0 <= row < rows and 0 <= column < columns):
                raise InputError(f"picture {picture} has {rows} x {columns} visual tokens and none at ({row}, {column}).")
            return [tokens[row * columns + column]]

        return Selector(choose, f"image.cell({row}, {column})")

    def box(self, left: float, top: float, right: float, bottom: float, picture: int = 0) -> Selector:
        """The visual tokens that show any part of this box, in pixels of the original picture (right and bottom excluded).

        Raises InputError for an empty box, and, when asked, for one outside the picture.
        """
        edges = (left, top, right, bottom)
        if any(isinstance(edge, bool) or not isinstance(edge, int | float) for edge in edges) or left >= right or top >= bottom:
            raise InputError(f"the box {edges} must be numbers, left below right and top below bottom.")

        def choose(encoding: Encoding) -> list[int]:
            shown, tokens = picture_tokens(encoding, picture)
            _, columns = shown.token_grid
            found = []
            for number, token in enumerate(tokens):
                x0, y0, x1, y1 = shown.cell_box(number // columns, number % columns)
                if x0 < right and x1 > left and y0 < bottom and y1 > top:
                    found.append(token)
            if not found:
                width, height = shown.original_size
                raise InputError(
                    f"the box ({left}, {top}, {right}, {bottom}) lies outside picture {picture} of {width} x {height} pixels."
                )
            return found

        return Selector(choose, f"image.box({left}, {top}, {right}, {bottom})")


def picture_tokens(encoding: Encoding, number: int) -> tuple[Picture, list[int]]:
    """A picture of a prompt and its tokens' numbers, row by row. Raises InputError where there is none of that number."""
    if not 0 <= number < len(encoding.pictures):
        raise InputError(f"picture {number} is asked for, but the prompt has {len(encoding.pictures)}.")
    tokens = [i for i, origin in enumerate(encoding.origins) if origin.kind == "image"]
    first = sum(picture.num_tokens for picture in encoding.pictures[:number])
    return encoding.pictures[number], tokens[first : first + encoding.pictures[number].num_tokens]


query, document = SideTokens("query"), SideTokens("document")
image = ImageTokens()
score_token = Selector(lambda encoding: [len(encoding) - 1], "score_token")
template = Selector(
    lambda encoding: [i for i, o in enumerate(encoding.origins) if o.side == "template" and i < len(encoding) - 1], "template"
)
everything = Selector(lambda encoding: range(len(encoding)), "everything")


def tokens(*numbers: int) -> Selector:
    """Tokens by number, for those who have them; negative ones count from the end. Raises InputError."""
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(f"a token is asked for by {number!r}, but must be by a whole number.")

    def choose(encoding: Encoding) -> list[int]:
        length = len(encoding)
        for number in numbers:
            if not -length <= number < length:
                raise InputError(f"token {number} is asked for, but the prompt has {length}.")
        return [number % length for number in numbers]

    return Selector(choose, f"tokens{numbers}")
