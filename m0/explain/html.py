"""Explanations as a page: one file, no network.

Words are shaded. Pictures are shown at their own resolution under a heat map that can be faded in and out; on a page of a PDF the words of
its text layer lie over it. The value of a word or cell stands next to the pointer, or to what has the keyboard's focus; a click on a
word (or a picture) of the query shows what of the document answers it.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m0.checkpoints.files import write_atomically
from m0.errors import InputError
from m0.explain.explanation import FORMATTERS, Explanation, Word
from m0.explain.numbers import (
    LEAST_TOP_SHARE,
    MOST_TOP_WORDS,
    decimals_for,
    decimals_of,
    format_relevance,
    legend,
    max_abs_relevance,
    normalize_relevance,
    picture_title,
    top_words,
)
from m0.explain.page_words import PageWord
from m0.explain.show import NEGATIVE_COLOUR, POSITIVE_COLOUR, colours, text_and_pictures
from m0.inputs.originals import encode_picture
from m0.interp.words import find_words
from m0.paths import path_of

CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What no page may hold."""
LEAST_WIDTH, MOST_WIDTH, MOST_HEIGHT = 160, 920, 1320
"""In which a picture is shown, in pixels of the page; a button shows it in its own size."""
PAGE_STYLE = "body { margin: 0; background: #fff } @media (prefers-color-scheme: dark) { body { background: #14171a } }"
PAGE_KEYS = """
document.addEventListener('keydown', e => { if (e.target !== document.body || e.ctrlKey || e.metaKey || e.altKey || !'np'.includes(e.key)) return;
  const root = [...document.querySelectorAll('.m0')].find(one => one.getBoundingClientRect().bottom > 0); if (root) root.m0jump(e.key === 'n' ? 1 : -1); });
"""


@cache
def style() -> str:
    """The style of an explanation."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


@cache
def script() -> str:
    """The function that brings an explanation to life, of the element that holds it and its data."""
    return Path(__file__).with_name("page.js").read_text(encoding="utf-8").strip()


def page(
    explanations: Sequence[Explanation], path: Any = None, title: str = "Why these scores", names: Sequence[str] | None = None
) -> str:
    """A page with one explanation after the other, such as a whole ranking's. `names`: what the documents are called. Raises
    InputError where the path refuses."""
    if names is not None and len(names) != len(explanations):
        raise InputError(f"there are {len(names)} names for {len(explanations)} explanations.")
    titles = [f"{place}. {name}" for place, name in enumerate(names, 1)] if names else [""] * len(explanations)
    body = "\n".join(_section(explanation, name, "m0explain") for explanation, name in zip(explanations, titles, strict=True))
    text = CONTROL_CHARACTERS.sub(
        "\ufffd",
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{PAGE_STYLE}{style()}</style>'
        f"<script>const m0explain = {script()};{PAGE_KEYS}</script></head><body>{body}</body></html>",
    )
    if path is not None:
        path = path_of(path)
        try:
            # Names of files may hold bytes that are no text.
            write_atomically(path, lambda place: Path(place).write_text(text, encoding="utf-8", errors="backslashreplace"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    return text


def fragment(explanation: Explanation, name: str = "") -> str:
    """One explanation as a part of a page (a notebook's cell), with its own style and script."""
    return CONTROL_CHARACTERS.sub("\ufffd", _section(explanation, name, script(), f"<style>{style()}</style>"))


def _section(explanation: Explanation, name: str, function: str, lead: str = "") -> str:
    """An explanation's element. `function`: the script that is called with it; `lead`: what stands before all else in it."""
    numbers = _Numbers(explanation)
    place = f"{escape(name)}: " if name else ""
    rows = {f"share of the {key}": f"{value:.0%}" for key, value in explanation.shares.items()}
    rows |= {f"ledger: {key}": f"{value:.4g}" for key, value in explanation.ledger.items()}
    table = "".join(f"<tr><td>{escape(key)}</td><td>{value}</td></tr>" for key, value in rows.items())
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in explanation.notes)
    return (
        f'<section class="m0" aria-label="{escape(name or "explanation")}">{lead}<h2>{place}score {explanation.score:.4f}, '
        f"logit {explanation.logit:.3f}, by {escape(explanation.method)}</h2>"
        f'<p class="legend">{escape(legend(explanation))}</p>{_bar(numbers)}{_top_list(numbers)}'
        f'{_side(numbers, "query")}<div class="row" role="status"></div>{_side(numbers, "document")}'
        f"<details><summary>shares and ledger</summary><table>{table}</table></details>{notes}"
        f'<div class="tip" role="tooltip" hidden></div><div class="said" aria-live="polite"></div>'
        f"<script>{function}(document.currentScript.parentElement, {_script_data(numbers)})</script></section>"
    )


class _Numbers:
    """An explanation with what its numbers are written and coloured by."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation, self.scale = explanation, max_abs_relevance(explanation)
        self.decimals = decimals_of(explanation)
        self.top = top_words(explanation)
        self.is_top = {id(word) for word in self.top}
        self.number_by_word = {id(word): number for number, word in enumerate(explanation.words)}
        self.number_by_page_word = {id(word): number for number, word in enumerate(explanation.page_words)}

    def place(self, word: Word | PageWord) -> tuple[str, int]:
        """The class of a word's element, and its number among those."""
        return ("w", self.number_by_word[id(word)]) if isinstance(word, Word) else ("p", self.number_by_page_word[id(word)])

    def text(self, value: float) -> str:
        return format_relevance(value, self.decimals, self.explanation.signed)

    def tint(self, value: float) -> str:
        """Colour and strength of a word's background, for the class "tint"."""
        return _tint(normalize_relevance(value, self.scale))


def _tint(share: float) -> str:
    return f"--t:{' '.join(map(str, POSITIVE_COLOUR if share > 0 else NEGATIVE_COLOUR))};--a:{abs(share):.3f}"


def _bar(numbers: _Numbers) -> str:
    key = "".join(
        f'<span class="key tint" style="{_tint(share)}">{name}</span>'
        for share, name in (((1, "for"), (-1, "against")) if numbers.explanation.signed else ((1, "relevant"),))
    )
    controls = ""
    if numbers.explanation.pictures:
        controls = (
            '<label>heat map <input type="range" min="0" max="100" value="70" aria-label="how strong the heat map is"></label>'
            '<label><input type="checkbox" class="togrey">picture in grey</label>'
        )
    jumps = (
        '<button type="button" class="previous" aria-keyshortcuts="p">previous highlighted word<kbd>p</kbd></button>'
        '<button type="button" class="next" aria-keyshortcuts="n">next highlighted word<kbd>n</kbd></button>'
    )
    return f'<div class="bar">{key}{controls}{jumps if numbers.top else ""}</div>'


def _top_list(numbers: _Numbers) -> str:
    if not numbers.top:
        return ""
    found = []
    for word in numbers.top:
        value = numbers.text(word.relevance)
        found.append(
            f'<li><button type="button" class="tint" style="{numbers.tint(word.relevance)}">'
            f"<bdi>{escape(word.text)}</bdi><b>{value}</b></button></li>"
        )
    return f'<span class="side">top words of the document</span><ol class="top">{"".join(found)}</ol>'


def _side(numbers: _Numbers, side: Any) -> str:
    parts = []
    for part in text_and_pictures(numbers.explanation, side):
        if isinstance(part, int):
            parts.append(_picture_html(numbers, part))
            continue
        inner = "".join(escape(piece) if isinstance(piece, str) else _word_html(numbers, piece) for piece in part)
        label = f"text of the {side}; the arrow keys go from word to word"
        parts.append(f'<div class="text" dir="auto" role="group" aria-label="{label}">{inner}</div>')
    return f'<div class="{side}"><span class="side">{side}</span>{"".join(parts)}</div>'


def _word_html(numbers: _Numbers, word: Word) -> str:
    mark = " hi" if id(word) in numbers.is_top else ""
    number = numbers.number_by_word[id(word)]
    style = numbers.tint(word.relevance)
    return f'<span class="w tint{mark}" data-n="{number}" tabindex="-1" style="{style}">{escape(word.text)}</span>'


def _picture_html(numbers: _Numbers, number: int) -> str:
    shown = numbers.explanation.pictures[number]
    width, height = shown.picture.original_size
    wide = max(4.0, min(max(LEAST_WIDTH, min(width, MOST_WIDTH)), MOST_HEIGHT * width / height))
    file, own = _original(numbers.explanation, number)
    still = Image.fromarray(colours(shown.cells.numpy().astype(np.float64), numbers.scale))
    title = picture_title(numbers.explanation, number)
    rows, columns = shown.cells.shape
    words = [(place, word) for place, word in enumerate(numbers.explanation.page_words) if word.picture == number]
    overlay = "".join(_page_word_html(numbers, place, word, rows, columns) for place, word in words)
    if overlay:
        label = "words of the page; the arrow keys go from word to word"
        overlay = f'<div class="pagewords" role="listbox" aria-label="{label}">{overlay}</div>'
    zoom = '<button type="button" class="zoom" aria-pressed="false" hidden>own size</button>' if own > wide else ""
    note = "" if shown.picture.original else "; shown as the model saw it"
    label = f"heat map of picture {number}, {rows} x {columns} cells; the arrow keys go from cell to cell"
    return (
        f'<figure><div class="frame"><div class="pic" data-n="picture {number}" '
        f'style="--wide:{wide:.0f}px;--own:{own}px;aspect-ratio:{width}/{height}">'
        f'<img class="seen" alt="picture {number}" src="{_data_url(file)}">'
        f'<img class="still" alt="relevance" src="{_data_url(_png(still))}">'
        f'<canvas role="application" aria-label="{label}" hidden></canvas>{overlay}</div></div>'
        f"<figcaption>{escape(title)}{note} {zoom}</figcaption></figure>"
    )


def _page_word_html(numbers: _Numbers, place: int, word: PageWord, rows: int, columns: int) -> str:
    left, top, right, bottom = word.cells
    box = (left / columns, top / rows, (right - left) / columns, (bottom - top) / rows)
    style = ";".join(f"{name}:{100 * edge:.2f}%" for name, edge in zip(("left", "top", "width", "height"), box, strict=True))
    label = escape(f"{word.text}, {numbers.text(word.relevance)}")
    mark = " hi" if id(word) in numbers.is_top else ""
    return (
        f'<span class="p{mark}" data-p="{place}" role="option" aria-selected="false" tabindex="-1" aria-label="{label}" '
        f'style="{style}"></span>'
    )


def _original(explanation: Explanation, number: int) -> tuple[bytes, int]:
    """The file of a picture as it was before it was resized, where that was kept, else as the model saw it; and its width in pixels."""
    picture = explanation.pictures[number].picture
    if picture.original is None:
        return encode_picture(Image.fromarray(picture.pixels)), int(picture.pixels.shape[1])
    with Image.open(io.BytesIO(picture.original)) as image:
        return picture.original, image.width


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _data_url(file: bytes) -> str:
    kind = "png" if file[:4] == b"\x89PNG" else "webp" if file[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def _script_data(numbers: _Numbers) -> str:
    """What the script needs, as JSON: every number as it is shown, so that it cannot round otherwise."""
    explanation, decimals = numbers.explanation, numbers.decimals
    data: dict[str, Any] = {
        "colours": [POSITIVE_COLOUR, NEGATIVE_COLOUR],
        "signed": explanation.signed,
        "scale": float(f"{numbers.scale:.6g}"),
        "decimals": decimals,
        "top": [MOST_TOP_WORDS, LEAST_TOP_SHARE],
        "words": {number: round(word.relevance, decimals) for number, word in enumerate(explanation.words)},
        "pictures": [_rounded(picture.cells.tolist(), decimals) for picture in explanation.pictures],
        "page_words": [
            {
                "text": word.text,
                "picture": word.picture,
                "cells": _rounded(list(word.cells), 3),
                "relevance": round(word.relevance, decimals),
            }
            for word in explanation.page_words
        ],
        "top_words": [numbers.place(word) for word in numbers.top],
        "matrix": None if explanation.interaction is None else _matrix_data(explanation),
    }
    # Nothing in the data may end the script.
    return json.dumps(data).replace("<", "\\u003c")


def _matrix_data(explanation: Explanation) -> dict[str, Any]:
    assert explanation.interaction is not None
    numbers = {span: place for place, span in enumerate(find_words(explanation.encoding))}
    query_spans, shown, values = explanation.interaction.by_word(explanation.encoding)
    cells = [
        explanation.interaction.on_picture(explanation.encoding, place)[1] if picture.side == "document" else None
        for place, picture in enumerate(explanation.pictures)
    ]
    scales, decimals = [], []
    for row in range(len(query_spans)):
        tensors = [values[row], *(some[row] for some in cells if some is not None)]
        scales.append(max([float(tensor.abs().max()) for tensor in tensors if tensor.numel()] + [1e-12]))
        decimals.append(decimals_for(scales[-1]))
    return {
        "query": [str(numbers.get(span, span.text)) for span in query_spans],
        "names": [span.text for span in query_spans],
        "document": [numbers[span] for span in shown],
        "values": [_rounded(row, digits) for row, digits in zip(values.tolist(), decimals, strict=True)],
        "pictures": [
            some and [_rounded(row, digits) for row, digits in zip(some, decimals, strict=True)]
            for some in (None if some is None else some.tolist() for some in cells)
        ],
        "scales": [float(f"{scale:.6g}") for scale in scales],
        "decimals": decimals,
    }


def _rounded(value: Any, decimals: int) -> Any:
    return [_rounded(item, decimals) for item in value] if isinstance(value, list) else round(value, decimals)


FORMATTERS.update(page=page, fragment=fragment)
