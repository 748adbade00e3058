"""What m0-nano learns from: emoji, sections of manuals, drawings and functions, each able to show itself in many ways."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from PIL import Image, ImageEnhance, ImageFilter

from m0.inputs.images import resize

Content = str | Image.Image | list
"""A side of a pair: text, a picture, or a list of both."""
SECTION_CHARACTERS = 600
CODE_CHARACTERS = 400
SENTENCE_ENDS = ".!?。！？؟।"


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Emoji:
    """One concept: a picture, and the texts in every language that training may see."""

    def __init__(self, row: dict, folder: Path) -> None:
        self.category = row["category"]
        self.image = Image.open(folder / row["image"]).convert("RGBA")
        self.names = {k: v for k, v in row["names"].items() if k not in row["held_out"]}
        held = {row["names"][k].casefold() for k in row["held_out"]}
        self.keywords: dict[str, list[str]] = {}
        for language, words in row["keywords"].items():
            # A held-out name listed among the keywords of its language would not be held out.
            if words := [word for word in words if language not in row["held_out"] or word.casefold() not in held]:
                self.keywords[language] = words
        self.languages = sorted(set(self.names) | set(self.keywords))
        self.texts = {t.casefold() for t in (*self.names.values(), *(w for ws in self.keywords.values() for w in ws))}

    def text(self, rng: random.Random, short: bool) -> str:
        """A name, a keyword, or as a document several of them."""
        language = rng.choice(self.languages)
        name, words = self.names.get(language), self.keywords.get(language, [])
        if name and (rng.random() < 0.5 or not words):
            if short or not words or rng.random() < 0.5:
                return name
            return ", ".join([name, *rng.sample(words, min(len(words), rng.randint(1, 4)))])
        if short:
            # Names are longer than keywords: two keywords together come nearer to one.
            return rng.choice(words) if rng.random() < 0.6 else " ".join(rng.sample(words, min(2, len(words))))
        return ", ".join(rng.sample(words, min(len(words), rng.randint(1, 5))))

    def picture(self, rng: random.Random, unchanged_chance: float) -> Image.Image:
        return augment(self.image, rng, unchanged_chance)

    def is_also_true(self, words: str) -> bool:
        """Whether these words are true of it, too."""
        return words in self.texts


class Section:
    """A section of a manual in one language: heading, text, perhaps a figure, and its page as a picture."""

    def __init__(self, row: dict, folder: Path) -> None:
        self.id, self.language, self.heading, self.text_ = row["id"], row["language"], row["heading"], row["text"]
        self.folder, self.figure_file = folder, row.get("figure")
        sentences, start = [], 0
        for i, character in enumerate(self.text_):
            if character in SENTENCE_ENDS and i - start > 30:
                sentences.append(self.text_[start : i + 1].strip())
                start = i + 1
        self.sentences = sentences or [self.text_]

    def document(self, rng: random.Random) -> str:
        length = rng.randint(SECTION_CHARACTERS // 4, SECTION_CHARACTERS)
        first = 0 if rng.random() < 0.6 else rng.randrange(len(self.sentences))
        return " ".join(self.sentences[first:])[:length]

    def opening(self, rng: random.Random) -> str:
        """Its first characters, mostly as many as are measured with."""
        return self.text_[
            : SECTION_CHARACTERS if rng.random() < 0.7 else rng.randint(SECTION_CHARACTERS // 4, SECTION_CHARACTERS)
        ]

    def pair(self, rng: random.Random) -> tuple[str, str]:
        """A query and a document: the heading, some of its words, or a sentence; and a stretch of the section."""
        document, kind = self.document(rng), rng.random()
        if kind < 0.25:
            return draw_words(document, rng), document
        if kind < 0.8 or len(self.sentences) < 3:
            return self.heading, document
        length = rng.randint(SECTION_CHARACTERS // 4, SECTION_CHARACTERS)
        asked = rng.randrange(min(3, len(self.sentences)))
        rest = [s for i, s in enumerate(self.sentences) if i != asked or rng.random() < 0.3]
        return self.sentences[asked][:120], " ".join(rest)[:length]

    def mixed(self, rng: random.Random) -> list:
        """Its figure and the text around it."""
        assert self.figure_file
        figure = Image.open(self.folder / self.figure_file).convert("RGB")
        figure.thumbnail((112, 112))
        document = self.document(rng)
        return [document, figure] if rng.random() < 0.5 else [figure, document]

    def is_also_true(self, words: str) -> bool:
        return self.heading.casefold() == words


class Drawing:
    """A clip-art drawing, its name, and the folder it lies in."""

    def __init__(self, row: dict, folder: Path) -> None:
        self.image = Image.open(folder / row["image"]).convert("RGBA")
        self.name = row["name"]
        self.folder = re.split(r"[/_]", row["folder"])

    def text(self, rng: random.Random, short: bool) -> str:
        words = self.name.split()
        if short and len(words) > 1 and rng.random() < 0.2:
            return rng.choice(words)
        return self.name if short or rng.random() < 0.5 else f"{self.name}, {rng.choice(self.folder)}"

    def picture(self, rng: random.Random, unchanged_chance: float) -> Image.Image:
        return augment(self.image, rng, unchanged_chance)

    def is_also_true(self, words: str) -> bool:
        return words == self.name or words in self.name.split()


class Function:
    """A function of Python's standard library and the first sentence of its docstring."""

    def __init__(self, row: dict) -> None:
        self.query, self.code = row["query"], row["code"][:CODE_CHARACTERS]

    def pair(self, rng: random.Random) -> tuple[str, str]:
        return (self.query if rng.random() < 0.8 else draw_words(self.code, rng)), self.code

    def is_also_true(self, words: str) -> bool:
        return False


Concept = Emoji | Section | Drawing | Function


def draw_words(text: str, rng: random.Random) -> str:
    """What somebody who knows the text might ask for: a phrase of it, or a few of its longer words. Teaches to match words."""
    words = text.split()
    if len(words) < len(text) / 15:  # written without blanks
        words = [text[i : i + 4] for i in range(0, len(text) - 3, 4)] or [text]
    count = min(rng.randint(1, 4), len(words))
    if rng.random() < 0.5:
        start = rng.randrange(len(words) - count + 1)
        return " ".join(words[start : start + count])
    longer = [word for word in words if len(word) > 3] or words
    return " ".join(rng.sample(longer, min(count, len(longer))))


def augment(image: Image.Image, rng: random.Random, unchanged_chance: float) -> Image.Image:
    """The picture as screens show it: other background, size, place, colour, angle, sharpness. RGB."""
    if rng.random() < unchanged_chance:
        return image.convert("RGB")  # as the file is: transparency dropped
    background = rng.choice([(255, 255, 255), (0, 0, 0), tuple(rng.randrange(256) for _ in range(3))])
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
    if rng.random() < 0.1:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = rng.randint(44, 97) if rng.random() < 0.75 else rng.randint(98, 130)
    scale = side * rng.uniform(0.65, 1.15) / max(image.size)
    inner = [max(12, round(length * scale * rng.uniform(0.9, 1.1))) for length in image.size]
    image = resize(image, (inner[0], inner[1]))
    canvas = Image.new("RGB", (side, side), background)
    offset = [rng.randint(min(side - length, 0), max(side - length, 0)) for length in inner]
    canvas.paste(image, (offset[0], offset[1]), image)
    if rng.random() < 0.3:
        canvas = ImageEnhance.Color(canvas).enhance(rng.uniform(0.2, 1.6))
    if rng.random() < 0.3:
        canvas = ImageEnhance.Brightness(canvas).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4)))
    return canvas


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def draw_sheet(
    pictures: Sequence[Image.Image], rng: random.Random, places: tuple[int, int], side: int
) -> tuple[Image.Image, list[Box]]:
    """Several emoji on one paper in rows and columns, each in a place of its own, some places perhaps empty.

    Args:
        pictures: RGBA, at most as many as there are places.
        places: rows and columns.
        side: pixels of a place.

    Returns:
        The paper, RGB, and where each emoji lies on it.
    """
    rows, columns = places
    colour = (255, 255, 255) if rng.random() < 0.6 else tuple(rng.randrange(256) for _ in range(3))
    paper, boxes = Image.new("RGB", (columns * side, rows * side), colour), []
    for picture, place in zip(pictures, rng.sample(range(rows * columns), len(pictures)), strict=True):
        if rng.random() < 0.3:
            picture = picture.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
        length = round(side * rng.uniform(0.65, 0.98))
        picture = resize(picture, (length, length))
        left = place % columns * side + rng.randint(0, side - length)
        top = place // columns * side + rng.randint(0, side - length)
        paper.paste(picture, (left, top), picture)
        boxes.append((left, top, left + length, top + length))
    return paper, boxes


def draw_random_sheet(emoji: list[Emoji], rng: random.Random) -> tuple[list[int], Image.Image, list[Box]]:
    """A sheet of some of these emoji: their numbers, the sheet, where they lie."""
    rows, columns = rng.choice([(1, 2), (2, 1), (2, 2), (2, 2), (2, 3), (3, 2), (3, 3)])
    count = rng.randint(max(2, rows * columns - 2), rows * columns)
    numbers = rng.sample(range(len(emoji)), count)
    return numbers, *draw_sheet([emoji[i].image for i in numbers], rng, (rows, columns), rng.randint(56, 92))


def open_on_white(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")


class Material:
    """All that training may see, and the held-out rows for checks on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.emoji_rows, section_rows = read_json_lines(folder / "emoji.jsonl"), read_json_lines(folder / "sections.jsonl")
        self.emoji = [concept for row in self.emoji_rows if (concept := Emoji(row, folder)).languages]
        self.sections = [Section(row, folder) for row in section_rows if not row["held_out"]]
        self.studied = [section for section in self.sections if crc32(section.id.encode()) % 2]
        """What the words stage learns by heart, whole sections in all languages; the cross-encoder's lists are of the others."""
        self.fresh = [section for section in self.sections if not crc32(section.id.encode()) % 2]
        self.drawings = [Drawing(row, folder) for row in read_json_lines(folder / "clipart.jsonl") if not row["held_out"]]
        self.functions = [Function(row) for row in read_json_lines(folder / "code.jsonl") if not row["held_out"]]
        self.held_sections = [row for row in section_rows if row["held_out"]]
        self.held_drawings = [row for row in read_json_lines(folder / "clipart.jsonl") if row["held_out"]]

    def texts(self):
        """Every text of the training part, for the tokenizer."""
        for concept in self.emoji:
            for language in concept.languages:
                yield " ".join([concept.names.get(language, ""), *concept.keywords.get(language, [])])
        for section in self.sections:
            yield f"{section.heading}\n{section.text_}"
        for drawing in self.drawings:
            yield " ".join([drawing.name, *drawing.folder])
        for function in self.functions:
            yield f"{function.query}\n{function.code}"
