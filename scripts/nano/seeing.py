"""What the vision tower learns before a decoder layer takes part: to say in the words' own meanings what a picture shows.

Emoji and drawings: the mean of a picture's visual tokens should lie where its names lie (softmax over all concepts, or over
all names of drawings, and the cosine). Sheets of several emoji: the same for the tokens that show each. Beside them it goes on reading
(`nano/reading.py`): what pictures mean and how words are spelled lie in different numbers of the stream.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from nano.circuit import IMPORTANCE, LANGUAGE, MEANING, SPELLING, bag_means
from nano.material import Box, Content, Material, draw_random_sheet
from nano.reading import BLANK_IMPORTANCE, Read, Reading
from nano.tokens import Writer, compute_visual_tokens
from nano.words import WordBags
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from m0.inputs.images import Picture
from m0.model.reranker_model import RerankerModel

LOGIT_SCALE = 16.0
EMOJI_PER_STEP, DRAWINGS_PER_STEP, SHEETS_PER_STEP, CROPS_PER_STEP = 48, 24, 8, 10
"""Pictures of a step."""
MIN_COVERAGE = 0.25
"""A visual token of a sheet belongs to the emoji that covers most of it, if that is at least so much."""
PICTURES_AT_A_TIME = 64
READING_WEIGHTS = (0.5, 2.0, 0.3, 1.0)
"""What letters, trigrams, the other trigrams of a word, and words count."""


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
    read: Read
    """What the texts show that come last."""


@dataclass
class Sheet:
    emoji: Tensor
    """Number of each emoji's concept."""
    places: Tensor
    """Which of them each visual token shows, (tokens,); -1: none."""


class VisionTraining:
    """Batches and losses. `vectors`: where the concepts of the words stage lie, each of length 1."""

    def __init__(
        self,
        model: RerankerModel,
        writer: Writer,
        material: Material,
        words: WordBags,
        vectors: Tensor,
        reading: Reading,
        seed: int,
    ) -> None:
        self.model, self.writer, self.material, self.words, self.reading = model, writer, material, words, reading
        self.rng = random.Random(seed)
        self.targets = vectors[: len(material.emoji)]

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, unchanged_chance: float) -> Batch:
        rng, material = self.rng, self.material
        emoji = rng.sample(range(len(material.emoji)), EMOJI_PER_STEP)
        drawings = rng.sample(material.drawings, DRAWINGS_PER_STEP)
        sheets = [self._sheet() for _ in range(SHEETS_PER_STEP)]
        text_pictures, read = self.reading.batch(CROPS_PER_STEP, int(rng.random() < 0.35))
        images = [material.emoji[i].picture(rng, unchanged_chance) for i in emoji] + [
            d.picture(rng, unchanged_chance) for d in drawings
        ]
        return Batch(
            [*map(self.writer.picture, images), *(picture for picture, _ in sheets), *text_pictures],
            torch.tensor(emoji),
            torch.tensor([self.words.name_number[drawing.name] for drawing in drawings]),
            [sheet for _, sheet in sheets],
            read,
        )

    def _sheet(self) -> tuple[Picture, Sheet]:
        numbers, image, boxes = draw_random_sheet(self.material.emoji, self.rng)
        picture = self.writer.picture(image)
        largest, places = coverage(boxes, image, picture).max(1)
        return picture, Sheet(torch.tensor(numbers), places.where(largest >= MIN_COVERAGE, -1))

    # --- losses -------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        visual_tokens = tower_tokens(self.model, batch.pictures)
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
        strain = strain + picture_tokens[:, SPELLING].square().sum(1).mean()
        if len(background_tokens):
            strain = strain + 0.3 * (background_tokens[:, IMPORTANCE] - BLANK_IMPORTANCE).square().mean()
        read_loss, read_notes = self.reading.loss(torch.cat(visual_tokens[count + sheets :]), batch.read, *READING_WEIGHTS)
        notes = {f"emoji {k}": v for k, v in notes.items()} | {f"drawings {k}": v for k, v in drawing_notes.items()}
        notes |= {f"sheets {k}": v for k, v in sheet_notes.items()} | read_notes | {"strain": strain.item()}
        return 2 * emoji_loss + drawing_loss + 2 * sheet_loss + read_loss + 0.1 * length + 0.1 * strain, notes


def tower_tokens(model: RerankerModel, pictures: list[Picture]) -> list[Tensor]:
    """Visual tokens of each picture. The mathematical kernel's backward pass is much faster than the flash kernel's at these lengths."""
    found: list[Tensor] = []
    with sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(pictures), PICTURES_AT_A_TIME):  # what fits the processor's cache
            found += compute_visual_tokens(model, pictures[start : start + PICTURES_AT_A_TIME])
    return found


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
