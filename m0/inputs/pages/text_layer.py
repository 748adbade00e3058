"""The text of a PDF's page as a reader of the page would have it, and where its words stand."""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from m0.inputs.pages.documents import Document, Placement, has_annotations, opened_page
from m0.inputs.pages.hidden import remove_hidden

HYPHENS = "\x02\ufffe"
"""What PDFium makes of a hyphen and the line end behind it, by one way of asking or another."""
KEEP_AFTER = {"all", "cross", "ex", "half", "high", "ill", "long", "low", "non", "self", "short", "well"}
"""First halves of English words whose hyphen is mostly their own."""
SAMPLE = 200
"""Characters by whose direction a page is taken to run."""
WORD = re.compile(r"[\w\u00ad-]+")


class Piece(NamedTuple):
    """A word of the text layer, in the PDF's own coordinates: left, bottom, right, top."""

    text: str
    box: tuple[float, float, float, float]


class Layer(NamedTuple):
    """A page made ready: its text page, and by how many degrees the page was turned to read from left to right."""

    text: Any
    box: tuple[float, float, float, float]
    turn: int


@contextmanager
def text_layer(document: Document, index: int) -> Iterator[Layer]:
    """The text page of a page. Notes and filled-in fields are made part of the page, layers that are off are taken out, and words
    that run sideways are laid straight: PDFium gives the lines of such a page in the wrong order, or joined.
    """
    with opened_page(document.pdf, index) as page:
        plain = not document.layers and not has_annotations(page) and page.get_rotation() == 0
        text = page.get_textpage()
        try:
            if plain and _direction(text) == 0:
                yield Layer(text, page.get_bbox(), 0)
                return
        finally:
            text.close()
    turn = _make_ready(document, index)
    with opened_page(document.copy, index) as page:
        if document.layers:
            remove_hidden(page)
        text = page.get_textpage()
        try:
            yield Layer(text, page.get_bbox(), turn)
        finally:
            text.close()


def _make_ready(document: Document, index: int) -> int:
    """Flatten the copy's page and turn it so that most of its words run from left to right; by how many degrees, anticlockwise."""
    if index in document.changed:
        return document.changed[index]
    with opened_page(document.copy, index) as page:
        if has_annotations(page) and page.formenv:
            page.flatten()
        elif has_annotations(page):
            raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
    with opened_page(document.copy, index) as page:
        text = page.get_textpage()
        turn = _direction(text)
        text.close()
        left, bottom, right, top = page.get_bbox()
        if turn:
            cos, sin = _cos_sin(turn)
            raw.FPDFPage_TransFormWithClip(page, raw.FS_MATRIX(cos, sin, -sin, cos, 0, 0), None)
        box = turned((left, bottom, right, top), turn)
        page.set_mediabox(*box)
        page.set_cropbox(*box)
        page.set_rotation(0)
    document.changed[index] = turn
    return turn


def _direction(text: Any) -> int:
    """By how many degrees, in quarters, a page must be turned anticlockwise for most of its words to run from left to right."""
    count = text.count_chars()
    angles: Counter[int] = Counter()
    for place in range(0, count, max(1, count // SAMPLE)):
        if chr(raw.FPDFText_GetUnicode(text, place)).isspace() or raw.FPDFText_IsGenerated(text, place) == 1:
            continue
        angle = raw.FPDFText_GetCharAngle(text, place)
        if angle >= 0:
            angles[round(math.degrees(angle) / 90) % 4 * 90] += 1
    return angles.most_common(1)[0][0] if angles else 0


def _cos_sin(turn: int) -> tuple[int, int]:
    return {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]


def turned(box: tuple[float, float, float, float], turn: int) -> tuple[float, float, float, float]:
    """A box (left, bottom, right, top) after a turn about the origin, anticlockwise."""
    cos, sin = _cos_sin(turn)
    corners = [(cos * x - sin * y, sin * x + cos * y) for x in box[::2] for y in box[1::2]]
    return min(x for x, _ in corners), min(y for _, y in corners), max(x for x, _ in corners), max(y for _, y in corners)


# --- text ---------------------------------------------------------------------------------------------------------------


def page_text(layer: Layer) -> str:
    """The text within the page's CropBox."""
    return clean(layer.text.get_text_bounded(*layer.box))


def clean(text: str) -> str:
    """Words broken at line ends joined, ligatures and other forms as plain letters (NFKC), no control characters."""
    text = unicodedata.normalize("NFKC", _joined(text.replace("\r\n", "\n").replace("\r", "\n")))
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Cn")
    )


def _joined(text: str) -> str:
    """Whether a hyphen at a line's end is the word's own cannot be known. It is kept beside digits and capitals, in words with other
    hyphens, where the page has the word with it elsewhere, and behind a few first halves; else it goes."""
    if not any(mark in text for mark in HYPHENS):
        return text
    text = text.replace(HYPHENS[1], HYPHENS[0])
    words = Counter(word.lower() for word in WORD.findall(text.replace(HYPHENS[0], " \x01 ")))

    def join(found: re.Match[str]) -> str:
        first, second = found[1], found[2]
        whole, parted = words[(first + second).lower()], words[f"{first}-{second}".lower()]
        kept = (
            "-" in first + second
            or not second[:1].isalpha()
            or any(character.isdigit() for character in first)
            or second[0].isupper() != first.isupper()
            or parted > whole
            or (parted == whole and first.lower() in KEEP_AFTER)
        )
        return f"{first}-{second}" if kept else first + second

    return re.sub(rf"([\w-]*){HYPHENS[0]}([\w-]*)", join, text)


# --- words --------------------------------------------------------------------------------------------------------------


def page_words(layer: Layer) -> list[Piece]:
    """The words within the CropBox, in the order of the text, in the coordinates of the page as the PDF has it."""
    found: list[Piece] = []
    letters: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []

    def end() -> None:
        # Of letters beyond the first plane PDFium gives two halves.
        word = clean("".join(letters).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")).strip()
        if word and boxes:
            cluster_bounds = list(zip(*boxes, strict=True))
            box = (min(cluster_bounds[0]), min(cluster_bounds[1]), max(cluster_bounds[2]), max(cluster_bounds[3]))
            found.append(Piece(word, turned(box, -layer.turn % 360)))
        letters.clear()
        boxes.clear()

    for place in range(layer.text.count_chars()):
        character = chr(raw.FPDFText_GetUnicode(layer.text, place))
        if character in HYPHENS:
            letters.append("-")
            if (box := _char_box(layer.text, place)) and _meet(box, layer.box):
                boxes.append(box)
            end()
        elif character.isspace() or raw.FPDFText_IsGenerated(layer.text, place) == 1:
            end()
        elif (box := _char_box(layer.text, place)) and _meet(box, layer.box):
            letters.append(character)
            boxes.append(box)
    end()
    return found


def _char_box(text: Any, place: int) -> tuple[float, float, float, float] | None:
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    if not raw.FPDFText_GetCharBox(text, place, left, right, bottom, top):
        return None
    return left.value, bottom.value, right.value, top.value


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def shown(box: tuple[float, float, float, float], placement: Placement) -> tuple[float, float, float, float]:
    """A box of the PDF (left, bottom, right, top) -> left, top, right, bottom on the page as it is shown, in points; what of it lies
    outside the page is cut off."""
    left, bottom, right, top = turned(_moved(box, placement.box), -placement.turn % 360)
    width, height = placement.box[2] - placement.box[0], placement.box[3] - placement.box[1]
    frame = turned((0, 0, width, height), -placement.turn % 360)
    across = [min(max(value - frame[0], 0.0), frame[2] - frame[0]) * placement.unit for value in (left, right)]
    down = [min(max(frame[3] - value, 0.0), frame[3] - frame[1]) * placement.unit for value in (top, bottom)]
    return across[0], down[0], across[1], down[1]


def unshown(box: tuple[float, float, float, float], placement: Placement) -> tuple[float, float, float, float]:
    """The opposite of `shown`: left, top, right, bottom in points of the shown page -> left, bottom, right, top in the PDF."""
    width, height = placement.box[2] - placement.box[0], placement.box[3] - placement.box[1]
    frame = turned((0, 0, width, height), -placement.turn % 360)
    left, top, right, bottom = (value / placement.unit for value in box)
    back = turned((left + frame[0], frame[3] - bottom, right + frame[0], frame[3] - top), placement.turn)
    return back[0] + placement.box[0], back[1] + placement.box[1], back[2] + placement.box[0], back[3] + placement.box[1]


def _moved(
    box: tuple[float, float, float, float], frame: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    return box[0] - frame[0], box[1] - frame[1], box[2] - frame[0], box[3] - frame[1]


# --- what a page is made of ----------------------------------------------------------------------------------------------


def has_text(layer: Layer) -> bool:
    """Whether there is text that can be read: characters that the font calls by names of its own do not count."""
    text = page_text(layer)
    return any(not character.isspace() and unicodedata.category(character) != "Co" for character in text)


def has_pictures(page: Any) -> bool:
    """Whether a raster picture lies on the page."""
    return next(iter(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])), None) is not None


def wants_text(document: Document, index: int) -> bool:
    """What "auto" asks: text that can be read, and no picture."""
    with text_layer(document, index) as layer:
        if not has_text(layer):
            return False
        page: pdfium.PdfPage = layer.text.page
        return not has_pictures(page)
