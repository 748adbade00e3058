"""How an explanation's numbers are written, the same in the terminal, on pages and in JSON, and which of its words weigh most."""

from __future__ import annotations

import math

from m0.explain.explanation import Explanation, Word
from m0.explain.page_words import PageWord

SHOWN_DIGITS = 3
"""Digits that the largest relevance is written with; all others have as many decimals as it."""
MOST_TOP_WORDS = 10
LEAST_TOP_SHARE = 0.1
"""Of the largest relevance of a word that one needs to be among the top words."""
SHARES_OF_ONE = ("attention", "rollout")
"""Methods whose relevances add up to 1."""


def max_abs_relevance(explanation: Explanation) -> float:
    """The largest absolute relevance of any word of a text, or of any cell: full colour."""
    words = [abs(word.relevance) for word in explanation.words]
    cells = [float(picture.cells.abs().max()) for picture in explanation.pictures]
    return max([*words, *cells, 1e-12])


def normalize_relevance(value: float, scale: float) -> float:
    """A relevance as a share of full colour, between -1 and 1."""
    return max(-1.0, min(1.0, value / scale))


def decimals_for(scale: float) -> int:
    """How many decimals numbers have whose largest is `scale`."""
    return max(0, SHOWN_DIGITS - 1 - math.floor(math.log10(scale)))


def decimals_of(explanation: Explanation) -> int:
    """How many decimals an explanation's numbers have: words of a page, which cover parts of cells, have digits to show, too."""
    scale, words = max_abs_relevance(explanation), [abs(word.relevance) for word in explanation.page_words]
    return decimals_for(max(min(scale, max(words, default=scale)), 1e-12))


def format_relevance(value: float, decimals: int, signed: bool) -> str:
    """A relevance as it is shown: with its sign where that has a meaning, and none where nothing but zeros is left."""
    text = f"{abs(value):.{decimals}f}"
    return text if not signed or not text.strip("0.") else ("-" if value < 0 else "+") + text


def top_words(explanation: Explanation, count: int = MOST_TOP_WORDS) -> list[Word | PageWord]:
    """The document's words that weigh most, those of its texts and those of a page's text layer, in order: at most `count`, and none
    with less than a tenth of the largest relevance."""
    words: list[Word | PageWord] = [word for word in explanation.words if word.side == "document"]
    words += explanation.page_words
    least = LEAST_TOP_SHARE * max((abs(word.relevance) for word in words), default=0.0)
    found = [word for word in words if abs(word.relevance) >= max(least, 1e-12)]
    return sorted(found, key=lambda word: -abs(word.relevance))[:count]


def legend(explanation: Explanation) -> str:
    """What the numbers and colours mean: unit, method, rounding."""
    scale, decimals = max_abs_relevance(explanation), decimals_of(explanation)
    if explanation.method in SHARES_OF_ONE:
        unit = "shares of all attention, which adds up to 1"
    elif explanation.method == "attention_gradient":
        unit = "attention times its gradient, which has no unit"
    else:
        unit = f"parts of the {explanation.target}"
    text = f"Relevance by {explanation.method}: {unit}, to {decimals} decimal{'s' * (decimals != 1)}. "
    text += "Orange (+) speaks for the document, blue (-) against it" if explanation.signed else "Orange: relevant"
    text += f"; full colour is {format_relevance(scale, decimals, False)}."
    if explanation.page_words:
        text += " A word of a page has what the cells beneath it have, by area."
    return text


def picture_title(explanation: Explanation, number: int) -> str:
    """What is said of a picture: its number or page, its size, its cells, the sum over them."""
    shown, decimals = explanation.pictures[number], decimals_of(explanation)
    rows, columns = shown.cells.shape
    width, height = shown.picture.original_size
    page = explanation.page_of(shown)
    name = f"picture {number}" + ("" if page is None or page.pages == 1 else f", page {page.number}")
    relevance = format_relevance(shown.relevance, decimals, explanation.signed)
    return f"{name}, {width} x {height} pixels, {rows} x {columns} cells, relevance {relevance}"
