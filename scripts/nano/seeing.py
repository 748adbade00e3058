"""What the vision tower learns before a decoder layer takes part: to say in the words' own meanings what a picture shows.

Emoji and drawings: the mean of a picture's visual tokens should lie where its names lie (softmax over all concepts, or over
all names of drawings, and the cosine). Sheets of several emoji: the same for the tokens that show each. Pages: every visual token
that shows a part of a heading should lie where the word
lies that stands there (softmax over words), so that the decoder can match a query's words with pages as it does with texts;
and say which letters these are, as a first step.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from timeit import Timer

import torch
from nano.circuit import IMPORTANCE, LANGUAGE, LANGUAGES, MEANING, bag_means
from nano.material import SECTION_CHARACTERS, Box, Content, Material, Section, draw_random_sheet
from nano.pages import SCRIPTS, Word, draw_page, unspaced
from nano.tokens import Writer, compute_visual_tokens
from nano.words import RaggedLists, WordBags
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from m0.inputs.images import Picture, resize
from m0.model.reranker_model import RerankerModel

LOGIT_SCALE = 16.0
EMOJI_PER_STEP, DRAWINGS_PER_STEP, SHEETS_PER_STEP, PAGES_PER_STEP = 112, 72, 32, 0
"""Pictures of a step."""
MIN_COVERAGE = 0.25
"""A visual token of a sheet belongs to the emoji that covers most of it, if that is at least so much."""
PICTURES_AT_A_TIME = 64
VOCABULARY_WORDS, NEGATIVE_WORDS = 12_000, 3_000
"""Words that headings are made of; how many of them stand beside those of a step."""
KNOWN_LETTERS = 400
"""Characters that are told apart."""
TEXT_IMPORTANCE, BLANK_IMPORTANCE = 1.0, -3.0
"""Importance of a visual token with a part of a heading, and of one without."""
LANGUAGE_STRENGTH = 0.5
"""How much a visual token with a part of a heading speaks for its language."""


def mean_meanings(model: RerankerModel, writer: Writer, contents: list[Content]) -> Tensor:
    """Mean meaning of each text or picture, (contents, 200)."""
    table = model.decoder.embed_tokens.weight
    states, owners = [], []
    for number, content in enumerate(contents):
        if isinstance(content, str):
            states.append(table[torch.tensor(writer.words(content), dtype=torch.long)])
            owners += [number] * len(states[-1])
    picture_numbers = [number for number, content in enumerate(contents) if not isinstance(content, str)]
    if picture_numbers:
        for number, visual_tokens in zip(
            picture_numbers, compute_visual_tokens(model, [writer.picture(contents[i]) for i in picture_numbers]), strict=True
        ):
            states.append(visual_tokens)
            owners += [number] * len(visual_tokens)
    return bag_means(torch.cat(states), torch.tensor(owners), len(contents))


@dataclass
class Batch:
    """Pictures ready for the tower, and what they show."""

    pictures: list[Picture]
    emoji: Tensor
    """Number of each emoji's concept; these pictures come first."""
    names: Tensor
    """Number of each drawing's name; these come next."""
    sheets: list[Sheet]
    """These come next."""
    pages: list[Page]


@dataclass
class Sheet:
    emoji: Tensor
    """Number of each emoji's concept."""
    places: Tensor
    """Which of them each visual token shows, (tokens,); -1: none."""


@dataclass
class Page:
    language: int
    words: list[str]
    cover: Tensor
    """How much of each visual token each word covers, (tokens, words), at most about 1."""
    letters: Tensor
    """The same of each letter, (tokens, KNOWN_LETTERS)."""


class VisionTraining:
    """Batches and losses. `vectors`: where the concepts of the words stage lie, each of length 1."""

    def __init__(
        self,
        model: RerankerModel,
        writer: Writer,
        material: Material,
        words: WordBags,
        vectors: Tensor,
        languages: list[str],
        fonts: list[Path],
        seed: int,
    ) -> None:
        self.model, self.writer, self.material, self.words = model, writer, material, words
        self.rng, self.fonts, self.languages = random.Random(seed), fonts, languages
        self.targets = vectors[: len(material.emoji)]
        counted: Counter[str] = Counter()
        letters: Counter[str] = Counter()
        for section in material.sections:
            for text, weight in ((section.heading, 3), (section.text_[:SECTION_CHARACTERS], 1)):
                for word in split_words(text, section.language):
                    counted[word.casefold()] += weight
                    letters.update(word.casefold())
        self.vocabulary = [word for word, _ in counted.most_common(VOCABULARY_WORDS) if word.strip()]
        self.letter_number = {letter: number for number, (letter, _) in enumerate(letters.most_common(KNOWN_LETTERS))}
        self.letters = nn.Linear(model.config.decoder.hidden_size, KNOWN_LETTERS)
        self.bfloat16 = bfloat16_is_faster()

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, unchanged_chance: float) -> Batch:
        rng, material = self.rng, self.material
        emoji = rng.sample(range(len(material.emoji)), EMOJI_PER_STEP)
        drawings = rng.sample(material.drawings, DRAWINGS_PER_STEP)
        sheets = [self._sheet() for _ in range(SHEETS_PER_STEP)]
        pages = [self._page() for _ in range(PAGES_PER_STEP)]
        images = [material.emoji[i].picture(rng, unchanged_chance) for i in emoji] + [
            d.picture(rng, unchanged_chance) for d in drawings
        ]
        return Batch(
            [*map(self.writer.picture, images), *(picture for picture, _ in sheets), *(picture for picture, _ in pages)],
            torch.tensor(emoji),
            torch.tensor([self.words.name_number[drawing.name] for drawing in drawings]),
            [sheet for _, sheet in sheets],
            [page for _, page in pages],
        )

    def _sheet(self) -> tuple[Picture, Sheet]:
        numbers, image, boxes = draw_random_sheet(self.material.emoji, self.rng)
        picture = self.writer.picture(image)
        largest, places = coverage(boxes, image, picture).max(1)
        return picture, Sheet(torch.tensor(numbers), places.where(largest >= MIN_COVERAGE, -1))

    def _page(self) -> tuple[Picture, Page]:
        """A page as it is drawn for the sections, or its upper part, with a heading from training or words of its text."""
        rng = self.rng
        section: Section = rng.choice(self.material.sections)
        heading, is_whole = section.heading, rng.random() < 0.1
        if rng.random() < 0.5:
            section_words = split_words(section.text_[:SECTION_CHARACTERS], section.language)
            count = rng.randint(4, 12) if unspaced(section.language) else rng.randint(2, 6)
            start = rng.randrange(max(1, len(section_words) - count))
            heading = ("" if unspaced(section.language) else " ").join(section_words[start : start + count])
        words: list[Word] = []
        text = section.text_[: 600 if is_whole else 160]
        image = draw_page(heading, text, section.language, self.fonts, str(rng.random()), None, words)
        if not is_whole:
            lowest = max((word.box[3] for word in words), default=56.0)
            rows = max(2, min(image.height // 28, int(lowest // 28) + rng.randint(0, 1)))
            image = image.crop((0, 0, image.width, 28 * rows))
        if rng.random() < 0.3:
            factor = rng.uniform(0.85, 1.3)
            image = resize(image, (round(image.width * factor), round(image.height * factor)))
            words = [Word(word.text, tuple(factor * side for side in word.box)) for word in words]  # type: ignore[arg-type]
        picture = self.writer.picture(image)
        letters = torch.zeros(picture.num_tokens, KNOWN_LETTERS)
        known_letters = [(number, box) for word in words for number, box in self._letters(word, section.language)]
        if known_letters:
            letter_coverage = coverage([box for _, box in known_letters], image, picture)
            letters.index_add_(1, torch.tensor([number for number, _ in known_letters]), letter_coverage)
        page_words = [word.text.casefold() for word in words]
        return picture, Page(
            self.languages.index(section.language), page_words, coverage([word.box for word in words], image, picture), letters
        )

    def _letters(self, word: Word, language: str) -> list[tuple[int, Box]]:
        """Known letters of a word and about where they stand, as if all were as wide."""
        text = word.text.casefold()
        left, top, right, bottom = word.box
        if SCRIPTS.get(language) in ("arabic", "hebrew"):
            left, right = right, left
        width = (right - left) / max(1, len(text))
        edges = [sorted((left + i * width, left + (i + 1) * width)) for i in range(len(text))]
        return [
            (self.letter_number[letter], (start, top, end, bottom))
            for letter, (start, end) in zip(text, edges, strict=True)
            if letter in self.letter_number
        ]

    # --- losses -------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        # The mathematical kernel's backward pass is much faster than the flash kernel's at these lengths.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16), sdpa_kernel(SDPBackend.MATH):
            visual_tokens = []
            for start in range(0, len(batch.pictures), PICTURES_AT_A_TIME):  # what fits the processor's cache
                visual_tokens += [
                    part.float()
                    for part in compute_visual_tokens(self.model, batch.pictures[start : start + PICTURES_AT_A_TIME])
                ]
        count, sheets = len(batch.emoji) + len(batch.names), len(batch.sheets)
        owners = [torch.full((len(part),), number) for number, part in enumerate(visual_tokens[:count])]
        on_sheets = 0
        for sheet in batch.sheets:
            owners.append(sheet.places.where(sheet.places < 0, sheet.places + count + on_sheets))
            on_sheets += len(sheet.emoji)
        concept_of_token, picture_tokens = torch.cat(owners), torch.cat(visual_tokens[: count + sheets])
        owned_tokens, background_tokens = picture_tokens[concept_of_token >= 0], picture_tokens[concept_of_token < 0]
        means = bag_means(owned_tokens, concept_of_token[concept_of_token >= 0], count + on_sheets)
        emoji, drawings, sheet_emoji = F.normalize(means, dim=1).split([len(batch.emoji), len(batch.names), on_sheets])
        emoji_loss, notes = contrastive_loss(emoji, self.targets, batch.emoji)
        sheet_loss, sheet_notes = contrastive_loss(
            sheet_emoji, self.targets, torch.cat([sheet.emoji for sheet in batch.sheets])
        )
        names = self.words.name_vectors(self.model.decoder.embed_tokens.weight, torch.arange(len(self.words.name_number)))
        drawing_loss, drawing_notes = contrastive_loss(drawings, names, batch.names)
        # Visual tokens should be as long as words are, means so that products are cosines, nearly.
        length = (means.norm(dim=1) - 1).square().mean()
        strain = (owned_tokens[:, MEANING].square().sum(1) - 1).square().mean().clamp_max(100)
        strain = strain + owned_tokens[:, IMPORTANCE].square().mean() + 10 * owned_tokens[:, LANGUAGE].square().sum(1).mean()
        if len(background_tokens):
            strain = strain + 0.3 * (background_tokens[:, IMPORTANCE] - BLANK_IMPORTANCE).square().mean()
        pages = visual_tokens[count + sheets :]
        page_loss, page_notes = self._page_loss(torch.cat(pages), batch.pages) if pages else (torch.zeros(()), {})
        notes = {f"emoji {k}": v for k, v in notes.items()} | {f"drawings {k}": v for k, v in drawing_notes.items()}
        notes |= {f"sheets {k}": v for k, v in sheet_notes.items()} | page_notes | {"strain": strain.item()}
        return 2 * emoji_loss + drawing_loss + 2 * sheet_loss + page_loss + 0.1 * length + 0.1 * strain, notes

    def _page_loss(self, visual_tokens: Tensor, pages: list[Page]) -> tuple[Tensor, dict[str, float]]:
        page_words = dict.fromkeys(word for page in pages for word in page.words)
        negatives = self.rng.sample(self.vocabulary, NEGATIVE_WORDS)
        word_columns = {word: number for number, word in enumerate({**page_words, **dict.fromkeys(negatives)})}
        vectors = self._word_vectors(list(word_columns))
        word_cover = torch.zeros(len(visual_tokens), len(word_columns))
        language = torch.zeros(len(visual_tokens), LANGUAGES)
        start = 0
        for page in pages:
            rows = slice(start, start + len(page.cover))
            if page.words:
                columns = torch.tensor([word_columns[word] for word in page.words])
                word_cover[rows].index_add_(1, columns, page.cover)
                language[rows, page.language] = LANGUAGE_STRENGTH * page.cover.sum(1).clamp_max(1)
            start += len(page.cover)
        text_cover = word_cover.sum(1)
        shows_text = text_cover > 0.15
        logits = LOGIT_SCALE * F.normalize(visual_tokens[shows_text][:, MEANING], dim=1) @ vectors.T
        target = word_cover[shows_text] / text_cover[shows_text, None]
        weight = text_cover[shows_text].clamp_max(1)
        word_loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        hit_rate = (target.gather(1, logits.argmax(1, keepdim=True)) > 0).float().mean().item()
        letter_cover = torch.cat([page.letters for page in pages])
        shows_letters = letter_cover.sum(1) > 0.15
        letter_loss = F.cross_entropy(
            self.letters(visual_tokens[shows_letters]), F.normalize(letter_cover[shows_letters], p=1, dim=1)
        )
        importance = torch.where(shows_text, TEXT_IMPORTANCE, BLANK_IMPORTANCE)
        importance_loss = (visual_tokens[:, IMPORTANCE] - importance).square().mean()
        language_loss = (visual_tokens[:, LANGUAGE] - language).square().sum(1).mean()
        length_loss = (visual_tokens[shows_text][:, MEANING].square().sum(1) - 1).square().mean()
        language_accuracy = (
            (visual_tokens[shows_text][:, LANGUAGE].argmax(1) == language[shows_text].argmax(1)).float().mean().item()
        )
        notes = {
            "letters": letter_loss.item(),
            "words": word_loss.item(),
            "words right": hit_rate,
            "languages right": language_accuracy,
        }
        return letter_loss + word_loss + 0.1 * importance_loss + 4 * language_loss + 0.1 * length_loss, notes

    @torch.no_grad()
    def _word_vectors(self, words: list[str]) -> Tensor:
        """Where words lie, each of length 1, (words, meanings)."""
        ids, owners = RaggedLists([self.writer.words(word) for word in words]).gather_rows(torch.arange(len(words)))
        return F.normalize(bag_means(self.model.decoder.embed_tokens.weight[ids], owners, len(words)), dim=1)


def bfloat16_is_faster() -> bool:
    """Whether matrix products of the tower's sizes are, on this processor; some have the instructions and no more speed by them."""

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(2304, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
        return Timer(lambda: F.linear(x, weight)).timeit(20)

    return min(seconds(torch.bfloat16) for _ in range(5)) < min(seconds(torch.float32) for _ in range(5))


def contrastive_loss(directions: Tensor, vectors: Tensor, answer: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Softmax over all vectors, and the cosine with the right one."""
    logits = LOGIT_SCALE * directions @ vectors.T
    cosine = (directions * vectors[answer]).sum(1).mean()
    loss = F.cross_entropy(logits, answer)
    right = (logits.argmax(1) == answer).float().mean().item()
    return loss + 2 * (1 - cosine), {"loss": loss.item(), "right": right, "cosine": cosine.item()}


def coverage(boxes: list[Box], image: Image.Image, picture: Picture) -> Tensor:
    """How much of each visual token each box covers, (tokens, boxes), at most about 1. `boxes`: in pixels of the image."""
    rows, columns = picture.token_grid
    edges = torch.tensor(boxes).view(-1, 4)
    across = overlap(edges[:, 0::2] * (columns / image.width), columns)
    below = overlap(edges[:, 1::2] * (rows / image.height), rows)
    return (below[:, :, None] * across[:, None, :]).flatten(1).T


def overlap(spans: Tensor, count: int) -> Tensor:
    """How much of each of `count` cells of length 1 each span covers, (spans, cells). `spans`: (spans, 2), start and end."""
    cells = torch.arange(count)
    covered = torch.minimum(spans[:, 1:], cells + 1.0) - torch.maximum(spans[:, :1], cells + 0.0)
    return covered.clamp_min(0)


def split_words(text: str, language: str) -> list[str]:
    """What `draw_page` takes as words: what stands between blanks, or single characters."""
    return list(text) if unspaced(language) else text.split()
