"""Meanings of tokens, refined: bags of tokens drawn by the ten thousand must name their concept.

All texts lie tokenized in one long tensor, so that a step draws and reads its bags without a loop.
"""

from __future__ import annotations

import torch
from nano.circuit import MEANING, bag_means
from nano.latent import TEXT_CHARACTERS, concept_key
from nano.material import Material
from nano.tokens import Writer
from torch import Tensor
from torch.nn import functional as F

EMOJI_BAGS, SECTION_BAGS, DRAWING_BAGS = 6000, 1500, 500
SHARPNESS = 16.0
DROPPED = 0.1
"""Share of tokens left out of a bag, so that none is relied upon alone."""
WINDOW = 40


class Ragged:
    """Lists of numbers of different lengths, end to end."""

    def __init__(self, lists: list[list[int]]) -> None:
        self.lengths = torch.tensor([len(some) for some in lists])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.values = torch.tensor([value for some in lists for value in some])

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The values of these rows end to end, and for each the place of its row in `rows`."""
        lengths = self.lengths[rows]
        owners = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        within = torch.arange(len(owners)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return self.values[self.starts[rows][owners] + within], owners


class Words:
    def __init__(self, material: Material, writer: Writer, numbers: dict[object, int], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        texts, groups, owners = [], [], []
        for emoji in material.emoji:
            for language in emoji.languages:
                first = len(texts)
                name = emoji.names.get(language)
                # A name counts as much as three keywords.
                texts += [writer.words(text) for text in [*([name] * 3 if name else []), *emoji.keywords.get(language, [])]]
                groups.append((first, len(texts) - first))
                owners.append(numbers[concept_key(emoji)])
        self.texts, self.groups, self.owners = Ragged(texts), torch.tensor(groups), torch.tensor(owners)
        windows, of = [], []
        for section in material.studied:
            ids = writer.words(section.heading)
            windows += [ids] * 3
            body = writer.words(section.text_[:TEXT_CHARACTERS])
            windows += [ids + body[:WINDOW]] + [
                body[i : i + WINDOW] for i in range(0, max(len(body) - WINDOW // 2, 1), WINDOW // 2)
            ]
            of += [numbers[concept_key(section)]] * (len(windows) - len(of))
        for drawing in material.drawings:
            windows.append(writer.words(drawing.name))
            of.append(numbers[concept_key(drawing)])
        self.windows, self.of = Ragged(windows), torch.tensor(of)
        names = dict.fromkeys(drawing.name for drawing in material.drawings)
        self.name_number = {name: number for number, name in enumerate(names)}
        self.names = Ragged([writer.words(name) for name in names])

    def centres(self, table: Tensor, concepts: int) -> Tensor:
        """Mean of each concept's bags, (concepts, meanings)."""
        owners = torch.repeat_interleave(self.owners, self.groups[:, 1])
        total = torch.zeros(concepts, MEANING.stop)
        for bags, of in ((self.texts, owners), (self.windows, self.of)):
            for rows in torch.arange(len(of)).split(50_000):
                ids, places = bags.take(rows)
                total.index_add_(0, of[rows], bag_means(table[ids], places, len(rows)))
        return total

    def loss(self, table: Tensor, vectors: Tensor, drawings: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """Of naming the concepts of random bags and, where it is known where the drawings of each name lie, of telling these
        by their names; `vectors` and `drawings` have length 1."""
        pick = torch.randint(len(self.groups), (EMOJI_BAGS,), generator=self.generator)
        first, count = self.groups[pick].T

        def one() -> Tensor:
            return first + (torch.rand(EMOJI_BAGS, generator=self.generator) * count).long()

        ids, owners = self.texts.take(one())
        second = torch.rand(EMOJI_BAGS, generator=self.generator) < 0.3  # two texts of the same emoji and language together
        more, place = self.texts.take(one()[second])
        shown = torch.randint(len(self.of), (SECTION_BAGS,), generator=self.generator)
        last, at = self.windows.take(shown)
        ids = torch.cat([ids, more, last])
        owners = torch.cat([owners, second.nonzero()[:, 0][place], EMOJI_BAGS + at])
        kept = torch.rand(len(ids), generator=self.generator) >= DROPPED
        means = bag_means(table[ids[kept]], owners[kept], EMOJI_BAGS + SECTION_BAGS)
        answer = torch.cat([self.owners[pick], self.of[shown]])
        logits = SHARPNESS * F.normalize(means, dim=1) @ vectors.T
        losses = F.cross_entropy(logits, answer, reduction="none")
        emoji, sections = losses[:EMOJI_BAGS].mean(), losses[EMOJI_BAGS:].mean()
        total = emoji + 0.5 * sections + 0.1 * (means.norm(dim=1) - 1).square().mean()
        notes = {"emoji": emoji.item(), "sections": sections.item()}
        if drawings is not None:
            pick = torch.randperm(len(drawings), generator=self.generator)[:DRAWING_BAGS]
            named = F.cross_entropy(SHARPNESS * self.name_vectors(table, pick) @ drawings.T, pick)
            total, notes["drawings"] = total + 0.5 * named, named.item()
        return total, notes

    def name_vectors(self, table: Tensor, names: Tensor) -> Tensor:
        """Where these names of drawings lie, each of length 1, (names, meanings)."""
        ids, owners = self.names.take(names)
        return F.normalize(bag_means(table[ids], owners, len(names)), dim=1)
