"""A section of a manual as the picture of a page: a large heading, running text, its figure if it has one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Script -> file names of Noto, sans first.
FONTS = {
    "latin": ("NotoSans-Regular.ttf", "NotoSerif-Regular.ttf"),
    "arabic": ("NotoSansArabic-Regular.ttf", "NotoNaskhArabic-Regular.ttf"),
    "hebrew": ("NotoSansHebrew-Regular.ttf", "NotoSerifHebrew-Regular.ttf"),
    "cjk": ("NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc"),
    "thai": ("NotoSansThai-Regular.ttf", "NotoSerifThai-Regular.ttf"),
    "devanagari": ("NotoSansDevanagari-Regular.ttf", "NotoSerifDevanagari-Regular.ttf"),
}
SCRIPTS = {"ar": "arabic", "fa": "arabic", "he": "hebrew", "th": "thai", "hi": "devanagari", "mr": "devanagari"}
SCRIPTS |= dict.fromkeys(("ja", "ko", "zh", "zh-Hant"), "cjk")
FACES = {"ja": 0, "ko": 1, "zh": 2, "zh-Hant": 3}
"""Number of the language's face in the CJK collection."""
PAPERS = ((255, 255, 255), (255, 255, 255), (250, 246, 235), (238, 242, 246), (30, 30, 36))


def fonts(data: Path) -> list[Path]:
    """Where `nano/build_data.py` has put the type."""
    return [data / "packages" / name for name in ("fonts-noto-core", "fonts-noto-cjk")]


def unspaced(language: str) -> bool:
    """Whether a language is written without blanks, so that characters stand for words."""
    return SCRIPTS.get(language) in ("cjk", "thai")


@lru_cache(maxsize=64)
def _font(path: Path, size: int, face: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, index=face)


@lru_cache(maxsize=100_000)
def _length(font: ImageFont.FreeTypeFont, text: str) -> float:
    return font.getlength(text)


@lru_cache(maxsize=64)
def _file(folders: tuple[Path, ...], name: str) -> Path:
    return next(path for folder in folders for path in folder.rglob(name))


@dataclass
class Word:
    """A word of a heading and where it stands, in pixels."""

    text: str
    box: tuple[float, float, float, float]


def draw_page(
    heading: str,
    text: str,
    language: str,
    folders: list[Path],
    seed: str,
    figure: Image.Image | None = None,
    words: list[Word] | None = None,
) -> Image.Image:
    """One of several layouts and sizes, chosen by `seed`; RGB, a multiple of 28 pixels on each side. The heading's words are
    added to `words`."""
    rng = random.Random(f"{seed} {language}")
    width, height = rng.choice([(224, 280), (252, 252), (280, 224), (252, 308), (224, 336)])
    paper = rng.choice(PAPERS)
    ink = (230, 230, 230) if sum(paper) < 200 else (20, 20, 20)
    accent = rng.choice([ink, ink, (150, 20, 40), (20, 60, 160)]) if sum(paper) > 200 else ink
    page = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(page)
    style = rng.randrange(2)
    file = _file(tuple(folders), FONTS[SCRIPTS.get(language, "latin")][style])
    face = FACES.get(language, 0)
    margin, top = rng.randint(8, 16), rng.randint(8, 16)
    bottom = _write(
        draw,
        heading,
        _font(file, rng.choice([20, 22, 24, 26]), face),
        (margin, top),
        width - margin,
        height // 2,
        accent,
        language,
        words,
    )
    bottom += rng.randint(4, 10)
    if rng.random() < 0.3:
        draw.line((margin, bottom, width - margin, bottom), fill=accent, width=1)
        bottom += 6
    if figure is not None:
        shown = figure.convert("RGB")
        shown.thumbnail((width - 2 * margin, height // 3))
        page.paste(shown, (margin, bottom))
        bottom += shown.height + 6
    _write(
        draw,
        text[:600],
        _font(file, rng.choice([9, 10, 11]), face),
        (margin, bottom),
        width - margin,
        height - 6,
        ink,
        language,
    )
    return page


def _write(draw, text, font, at, right, bottom, ink, language, words=None) -> int:
    """Text broken into lines that fit, from `at` down to `bottom`; returns where it ended. Adds what it wrote to `words`."""
    left, y = at
    spaced = not unspaced(language)
    pieces = text.split(" ") if spaced else list(text)
    joiner = " " if spaced else ""
    step = int(font.size * 1.3)
    backwards = SCRIPTS.get(language) in ("arabic", "hebrew")
    gap = _length(font, joiner) if joiner else 0.0
    line: list[tuple[str, float]] = []
    reached = 0.0
    for piece in [*pieces, None]:
        length = 0.0 if piece is None else _length(font, piece)
        if piece is not None and (not line or reached + gap + length <= right - left):
            line.append((piece, reached + gap if line else 0.0))
            reached = line[-1][1] + length
            continue
        if y + step > bottom:
            break
        draw.text((right - reached if backwards else left, y), joiner.join(word for word, _ in line), font=font, fill=ink)
        if words is not None:
            for word, before in line:
                after = before + _length(font, word)
                ends = (right - after, right - before) if backwards else (left + before, left + after)
                words.append(Word(word, (ends[0], y, ends[1], y + step)))
        y += step
        line, reached = ([(piece, 0.0)], length) if piece is not None else ([], 0.0)
    return y
