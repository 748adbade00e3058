"""Pages, slides and lines of text as pictures, with what stands where: in many typefaces, scripts, sizes and layouts."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from nano.spelling import UNSPACED, WORD_PIECE, fold
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
SCRIPTS = {"ar": "arabic", "fa": "arabic", "ur": "arabic", "he": "hebrew", "th": "thai", "bn": "bengali", "as": "bengali"}
SCRIPTS |= dict.fromkeys(("hi", "mr", "ne"), "devanagari") | dict.fromkeys(("ja", "ko", "zh", "zh-Hant"), "cjk")
SCRIPTS |= dict.fromkeys(("ru", "uk", "bg", "be", "mk", "sr"), "cyrillic") | {"el": "greek"}
SCRIPTS |= dict.fromkeys("am az gu hy ka kk km kn ky lo ml mn my pa si ta te".split(), "other")
CJK_FACES = {"ja": 0, "ko": 1, "zh": 2, "zh-Hant": 3}
"""Number of the language's face in the CJK collections."""
SHAPED = ("arabic", "hebrew", "thai", "devanagari", "bengali")
RIGHT_TO_LEFT = ("arabic", "hebrew")
PAPERS = ((255, 255, 255), (255, 255, 255), (255, 255, 255), (250, 246, 235), (238, 242, 246), (225, 225, 220))
DARK_PAPERS = ((30, 30, 36), (20, 40, 80), (0, 0, 0), (60, 20, 40))
PAGE_SIZES = ((644, 896), (588, 840), (672, 868), (560, 784))
SLIDE_SIZES = ((896, 504), (840, 616), (784, 588))


def script_of(language: str) -> str:
    return SCRIPTS.get(language, "latin")


def unspaced(language: str) -> bool:
    """Whether a language is written without blanks, so that characters stand for words."""
    return language in ("ja", "zh", "zh-Hant", "th", "km", "my", "lo")


# --- typefaces --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Face:
    path: str
    index: int
    family: str
    vietnamese: bool = False


class Faces:
    """The typefaces that `nano/build_data.py` has found, by script; two families are kept out of training."""

    def __init__(self, data: Path) -> None:
        self.seen: dict[str, list[Face]] = defaultdict(list)
        self.held_out: dict[str, list[Face]] = defaultdict(list)
        for line in (data / "fonts.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            face = Face(str(data / row["file"]), row["index"], row["family"], bool(row.get("vietnamese")))
            for script in row["scripts"]:
                (self.held_out if row["held_out"] else self.seen)[script].append(face)

    def choose(self, language: str, rng: random.Random, held_out: bool = False) -> Face:
        script = script_of(language)
        faces = (self.held_out.get(script) if held_out else None) or self.seen[script]
        if script == "cjk":
            faces = [face for face in faces if face.index == CJK_FACES.get(language, 0)]
        elif language == "vi":
            faces = [face for face in faces if face.vietnamese] or faces
        return rng.choice(faces)


@lru_cache(maxsize=600)
def font_of(face: Face, size: int, shaped: bool) -> ImageFont.FreeTypeFont:
    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(face.path, size, index=face.index, layout_engine=engine)


@lru_cache(maxsize=300_000)
def _advance(font: ImageFont.FreeTypeFont, text: str) -> float:
    return font.getlength(text)


@lru_cache(maxsize=200_000)
def _word_places(
    font: ImageFont.FreeTypeFont, piece: str
) -> tuple[float, tuple[tuple[str, float, float, tuple[float, ...]], ...]]:
    """Width of a piece between blanks, and of each folded word in it: left, right, and the middle of each letter."""
    width = _advance(font, piece)
    advances = [_advance(font, c) for c in piece]
    total = sum(advances) or 1.0
    edges, at = [0.0], 0.0
    for advance in advances:
        at += advance
        edges.append(at * width / total)
    words = []
    for match in WORD_PIECE.finditer(piece):
        start, end = match.span()
        word = fold(match[0])
        if not word:
            continue
        if len(word) == end - start:
            middles = tuple((edges[i] + edges[i + 1]) / 2 for i in range(start, end))
        else:
            step = (edges[end] - edges[start]) / len(word)
            middles = tuple(edges[start] + (i + 0.5) * step for i in range(len(word)))
        words.append((word, edges[start], edges[end], middles))
    return width, tuple(words)


# --- what stands on a picture -----------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """Words that stand on a picture, in the order of drawing, in its pixels."""

    words: list[str] = field(default_factory=list)
    """Folded."""
    boxes: list[Box] = field(default_factory=list)
    middles: list[list[tuple[float, float]]] = field(default_factory=list)
    """Of each word's letters."""
    sizes: list[int] = field(default_factory=list)
    """Of the type each word is set in, in pixels."""

    def add(self, places: tuple, left: float, baseline: float, size: int, backwards: bool, width: float) -> None:
        for word, start, end, middles in places:
            if backwards:
                start, end, middles = width - end, width - start, tuple(width - m for m in middles)
            self.words.append(word)
            self.boxes.append((left + start, baseline - 0.8 * size, left + end, baseline + 0.22 * size))
            self.middles.append([(left + m, baseline - 0.27 * size) for m in middles])
            self.sizes.append(size)

    def moved(self, across: float, down: float) -> Drawn:
        boxes = [(a + across, b + down, c + across, d + down) for a, b, c, d in self.boxes]
        middles = [[(x + across, y + down) for x, y in some] for some in self.middles]
        return Drawn(list(self.words), boxes, middles, list(self.sizes))

    def scaled(self, across: float, down: float) -> Drawn:
        boxes = [(a * across, b * down, c * across, d * down) for a, b, c, d in self.boxes]
        middles = [[(x * across, y * down) for x, y in some] for some in self.middles]
        return Drawn(list(self.words), boxes, middles, [round(size * down) for size in self.sizes])

    def turned(self, degrees: float, size: tuple[int, int]) -> Drawn:
        """As `Image.rotate` turns a picture of this size, about its middle."""
        sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        x0, y0 = size[0] / 2, size[1] / 2

        def turn(x: float, y: float) -> tuple[float, float]:
            return x0 + (x - x0) * cosine + (y - y0) * sine, y0 - (x - x0) * sine + (y - y0) * cosine

        boxes = []
        for a, b, c, d in self.boxes:
            (x, y), half, tall = turn((a + c) / 2, (b + d) / 2), (c - a) / 2, (d - b) / 2
            boxes.append((x - half, y - tall, x + half, y + tall))
        return Drawn(list(self.words), boxes, [[turn(*m) for m in some] for some in self.middles], list(self.sizes))


def pieces_of(text: str, language: str) -> list[str]:
    """What a line may be broken between."""
    if unspaced(language):
        return [p for p in re.split(r"\s+", UNSPACED.sub(r" \1 ", text)) if p]
    return text.split()


def write_text(
    draw: ImageDraw.ImageDraw,
    text: str,
    language: str,
    face: Face,
    size: int,
    area: Box,
    ink: tuple[int, int, int],
    drawn: Drawn,
    spacing: float = 1.3,
    middle: bool = False,
) -> float:
    """Text broken into lines inside `area`; returns where it ended, in pixels from the top."""
    script = script_of(language)
    font = font_of(face, size, script in SHAPED)
    backwards, blank = script in RIGHT_TO_LEFT, 0.0 if unspaced(language) else _advance(font, " ")
    left, top, right, bottom = area
    step = size * spacing
    y, line, reached = top, [], 0.0

    def flush() -> None:
        start = left + (right - left - reached) / 2 if middle else left
        for piece, at, width, places in line:
            x = right - at - width if backwards and not middle else start + at
            baseline = y + 0.82 * size + (step - size) / 2
            draw.text((x, baseline), piece, font=font, fill=ink, anchor="ls")
            drawn.add(places, x, baseline, size, backwards, width)

    for piece in pieces_of(text, language):
        width, places = _word_places(font, piece)
        at = reached + blank if line else 0.0
        if line and at + width > right - left:
            flush()
            y += step
            line, at = [], 0.0
        if y + step > bottom:
            line = []
            break
        if width <= right - left:
            line.append((piece, at, width, places))
            reached = at + width
    if line and y + step <= bottom:
        flush()
        y += step
    return y


# --- lines ------------------------------------------------------------------------------------------------------------


def colours(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Paper and ink."""
    if rng.random() < 0.12:
        return rng.choice(DARK_PAPERS), rng.choice([(230, 230, 230), (255, 255, 255), (255, 220, 120), (170, 210, 255)])
    return rng.choice(PAPERS), rng.choice(
        [(0, 0, 0), (20, 20, 20), (20, 20, 20), (70, 70, 70), (150, 20, 40), (20, 60, 160), (0, 90, 60)]
    )


def draw_crop(
    text: str, language: str, face: Face, size: int, shape: tuple[int, int], rng: random.Random, plain: bool = False
) -> tuple[Image.Image, Drawn]:
    """A crop of a page of text, whose lines may be cut at its edges. `plain`: black on white."""
    width, height = shape
    paper, ink = ((255, 255, 255), (20, 20, 20)) if plain else colours(rng)
    picture, drawn = Image.new("RGB", shape, paper), Drawn()
    draw = ImageDraw.Draw(picture)
    spacing = rng.uniform(1.1, 1.7)
    left = rng.uniform(-0.5, 1.5) * size if rng.random() < 0.7 else rng.uniform(0, width / 3)
    write_text(
        draw,
        text,
        language,
        face,
        size,
        (left, rng.uniform(-0.6, 0.9) * size, width + size, height + 2 * size),
        ink,
        drawn,
        spacing,
    )
    return picture, drawn


# --- pages ------------------------------------------------------------------------------------------------------------


@dataclass
class Style:
    """How a page is set."""

    size: tuple[int, int]
    face: Face
    heading_face: Face
    body: int
    heading: int
    layout: str
    paper: tuple[int, int, int] = (255, 255, 255)
    ink: tuple[int, int, int] = (20, 20, 20)
    accent: tuple[int, int, int] = (20, 20, 20)
    spacing: float = 1.35
    margin: int = 40


LAYOUTS = ("article", "article", "article", "columns", "list", "table", "slide")


def choose_style(
    language: str,
    faces: Faces,
    rng: random.Random,
    held_out: bool = False,
    body: tuple[int, int] = (14, 24),
    layout: str | None = None,
) -> Style:
    face = faces.choose(language, rng, held_out)
    layout = layout or rng.choice(LAYOUTS)
    size = rng.randint(*body)
    paper, ink = colours(rng) if rng.random() < 0.4 else ((255, 255, 255), (20, 20, 20))
    accent = rng.choice([ink, ink, (150, 20, 40), (20, 60, 160)]) if sum(paper) > 400 else ink
    heading_face = face if rng.random() < 0.6 else faces.choose(language, rng, held_out)
    if layout == "slide":
        size = max(size, 20)
    return Style(
        size=rng.choice(SLIDE_SIZES if layout == "slide" else PAGE_SIZES),
        face=face,
        heading_face=heading_face,
        body=size,
        heading=rng.randint(max(20, round(1.2 * size)), max(30, round(1.9 * size))),
        layout=layout,
        paper=paper,
        ink=ink,
        accent=accent,
        spacing=rng.uniform(1.2, 1.6),
        margin=rng.randint(24, 64),
    )


def draw_page(
    heading: str, text: str, language: str, style: Style, rng: random.Random, figure: Image.Image | None = None
) -> tuple[Image.Image, Drawn]:
    """A page of a section: its heading and as much of its text as there is room for. RGB, sides multiples of 28 pixels."""
    width, height = style.size
    page, drawn = Image.new("RGB", style.size, style.paper), Drawn()
    draw = ImageDraw.Draw(page)
    left, right, bottom = style.margin, width - style.margin, height - style.margin
    middle = style.layout == "slide" and rng.random() < 0.5
    y = write_text(
        draw,
        heading,
        language,
        style.heading_face,
        style.heading,
        (left, style.margin, right, height // 2),
        style.accent,
        drawn,
        1.25,
        middle,
    )
    y += rng.randint(4, 16)
    if rng.random() < 0.3:
        draw.line((left, y, right, y), fill=style.accent, width=rng.randint(1, 3))
        y += 10
    if figure is not None:
        shown = figure.convert("RGB")
        shown.thumbnail((right - left, height // 3))
        page.paste(shown, (left, round(y)))
        y += shown.height + 12
    _LAYOUT_WRITERS[style.layout](draw, text, language, style, (left, y, right, bottom), rng, drawn)
    if style.layout != "slide" and rng.random() < 0.5:
        number = Drawn()
        write_text(
            draw,
            str(rng.randint(1, 400)),
            "en",
            style.face,
            14,
            (width / 2 - 20, height - 22, width / 2 + 40, height),
            style.ink,
            number,
        )
    return page, drawn


def sentences_of(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?;:。！？؟।])\s+|(?<=[。！？])", text) if s]


def _write_article(draw, text, language, style, area, rng, drawn) -> float:
    left, y, right, bottom = area
    paragraphs, current = [], ""
    for sentence in sentences_of(text):
        current = f"{current} {sentence}".strip()
        if len(current) > rng.randint(120, 500):
            paragraphs.append(current)
            current = ""
    for paragraph in [*paragraphs, current]:
        if paragraph and y + 2 * style.body < bottom:
            y = write_text(
                draw, paragraph, language, style.face, style.body, (left, y, right, bottom), style.ink, drawn, style.spacing
            )
            y += rng.uniform(0.3, 0.9) * style.body
    return y


def _write_columns(draw, text, language, style, area, rng, drawn) -> float:
    left, top, right, bottom = area
    gap = 24
    half = (right - left - gap) / 2
    pieces = sentences_of(text)
    cut = max(1, len(pieces) // 2)
    for column, part in enumerate((pieces[:cut], pieces[cut:])):
        x = left + column * (half + gap)
        _write_article(draw, " ".join(part), language, style, (x, top, x + half, bottom), rng, drawn)
    return bottom


def _write_list(draw, text, language, style, area, rng, drawn) -> float:
    left, y, right, bottom = area
    mark = rng.choice("•–▪")
    for number, sentence in enumerate(sentences_of(text), 1):
        if y + 2 * style.body > bottom:
            break
        sign = f"{number}." if mark == "–" else mark
        indent = 1.6 * style.body
        here = (left + indent, y, right, bottom)
        if script_of(language) not in RIGHT_TO_LEFT:
            draw.text(
                (left, y + 0.82 * style.body + (style.spacing - 1) * style.body / 2),
                sign,
                font=font_of(style.face, style.body, False),
                fill=style.ink,
                anchor="ls",
            )
        y = write_text(draw, sentence, language, style.face, style.body, here, style.ink, drawn, style.spacing)
        y += rng.uniform(0.2, 0.6) * style.body
    return y


def _write_table(draw, text, language, style, area, rng, drawn) -> float:
    left, y, right, bottom = area
    pieces = pieces_of(text, language)
    joiner = "" if unspaced(language) else " "
    columns = rng.randint(2, 4)
    wide = (right - left) / columns
    while pieces and y + 3 * style.body < bottom:
        deepest = y
        for column in range(columns):
            count = rng.randint(1, 6) * (3 if unspaced(language) else 1)
            cell, pieces = pieces[:count], pieces[count:]
            x = left + column * wide
            end = write_text(
                draw,
                joiner.join(cell),
                language,
                style.face,
                style.body,
                (x + 6, y + 4, x + wide - 6, min(bottom, y + 4.5 * style.body)),
                style.ink,
                drawn,
                1.2,
            )
            deepest = max(deepest, end)
        deepest += 6
        draw.rectangle((left, y, right, deepest), outline=style.accent)
        for column in range(1, columns):
            draw.line((left + column * wide, y, left + column * wide, deepest), fill=style.accent)
        y = deepest
    return y


_LAYOUT_WRITERS = {
    "article": _write_article,
    "columns": _write_columns,
    "list": _write_list,
    "table": _write_table,
    "slide": _write_list,
}


def degrade(picture: Image.Image, drawn: Drawn, rng: random.Random, chance: float = 1.0) -> tuple[Image.Image, Drawn]:
    """As scanners and mail programs leave pages: turned by up to 2 degrees, blurred a little, compressed, with noise. Each by chance."""
    if rng.random() < 0.25 * chance:
        degrees = rng.uniform(-2, 2)
        corner = picture.getpixel((0, 0))
        picture, drawn = (
            picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=corner),
            drawn.turned(degrees, picture.size),
        )
    if rng.random() < 0.25 * chance:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    if rng.random() < 0.2 * chance:
        noise = Image.effect_noise(picture.size, rng.uniform(4, 18)).convert("RGB")
        picture = Image.blend(picture, noise, rng.uniform(0.03, 0.15))
    if rng.random() < 0.25 * chance:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(30, 85))
        picture = Image.open(file).convert("RGB")
    return picture, drawn
