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
LOGIT_SCALE = 16.0
TOKEN_DROPOUT = 0.1
"""Share of tokens left out of a bag, so that none is relied upon alone."""
WINDOW_TOKENS = 40


class RaggedLists:
    """Lists of numbers of different lengths, end to end."""

    def __init__(self, lists: list[list[int]]) -> None:
        self.lengths = torch.tensor([len(some) for some in lists])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.values = torch.tensor([value for some in lists for value in some])

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The values of these rows end to end, and for each the place of its row in `rows`."""
        lengths = self.lengths[rows]
        owners = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        within = torch.arange(len(owners)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return self.values[self.starts[rows][owners] + within], owners


class WordBags:
    def __init__(self, material: Material, writer: Writer, numbers: dict[object, int], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        texts, groups, group_concepts = [], [], []
        for emoji in material.emoji:
            for language in emoji.languages:
                first = len(texts)
                name = emoji.names.get(language)
                # A name counts as much as three keywords.
                texts += [writer.words(text) for text in [*([name] * 3 if name else []), *emoji.keywords.get(language, [])]]
                groups.append((first, len(texts) - first))
                group_concepts.append(numbers[concept_key(emoji)])
        self.texts, self.groups, self.group_concepts = RaggedLists(texts), torch.tensor(groups), torch.tensor(group_concepts)
        windows, window_concepts = [], []
        for section in material.studied:
            ids = writer.words(section.heading)
            windows += [ids] * 3
            body = writer.words(section.text_[:TEXT_CHARACTERS])
            windows += [ids + body[:WINDOW_TOKENS]] + [
                body[i : i + WINDOW_TOKENS] for i in range(0, max(len(body) - WINDOW_TOKENS // 2, 1), WINDOW_TOKENS // 2)
            ]
            window_concepts += [numbers[concept_key(section)]] * (len(windows) - len(window_concepts))
        for drawing in material.drawings:
            windows.append(writer.words(drawing.name))
            window_concepts.append(numbers[concept_key(drawing)])
        self.windows, self.window_concepts = RaggedLists(windows), torch.tensor(window_concepts)
        names = dict.fromkeys(drawing.name for drawing in material.drawings)
        self.name_number = {name: number for number, name in enumerate(names)}
        self.names = RaggedLists([writer.words(name) for name in names])

    def mean_vectors(self, table: Tensor, concepts: int) -> Tensor:
        """Mean of each concept's bags, (concepts, meanings)."""
        text_concepts = torch.repeat_interleave(self.group_concepts, self.groups[:, 1])
        total = torch.zeros(concepts, MEANING.stop)
        for bags, concept_of_bag in ((self.texts, text_concepts), (self.windows, self.window_concepts)):
            for rows in torch.arange(len(concept_of_bag)).split(50_000):
                ids, owners = bags.gather_rows(rows)
                total.index_add_(0, concept_of_bag[rows], bag_means(table[ids], owners, len(rows)))
        return total

    def loss(self, table: Tensor, vectors: Tensor, drawings: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """Of naming the concepts of random bags and, where it is known where the drawings of each name lie, of telling these
        by their names; `vectors` and `drawings` have length 1."""
        pick = torch.randint(len(self.groups), (EMOJI_BAGS,), generator=self.generator)
        first, count = self.groups[pick].T

        def draw_texts() -> Tensor:
            return first + (torch.rand(EMOJI_BAGS, generator=self.generator) * count).long()

        ids, owners = self.texts.gather_rows(draw_texts())
        second = torch.rand(EMOJI_BAGS, generator=self.generator) < 0.3  # two texts of the same emoji and language together
        second_ids, second_owners = self.texts.gather_rows(draw_texts()[second])
        drawn_windows = torch.randint(len(self.window_concepts), (SECTION_BAGS,), generator=self.generator)
        window_ids, window_owners = self.windows.gather_rows(drawn_windows)
        ids = torch.cat([ids, second_ids, window_ids])
        owners = torch.cat([owners, second.nonzero()[:, 0][second_owners], EMOJI_BAGS + window_owners])
        not_dropped = torch.rand(len(ids), generator=self.generator) >= TOKEN_DROPOUT
        means = bag_means(table[ids[not_dropped]], owners[not_dropped], EMOJI_BAGS + SECTION_BAGS)
        answer = torch.cat([self.group_concepts[pick], self.window_concepts[drawn_windows]])
        logits = LOGIT_SCALE * F.normalize(means, dim=1) @ vectors.T
        losses = F.cross_entropy(logits, answer, reduction="none")
        emoji, sections = losses[:EMOJI_BAGS].mean(), losses[EMOJI_BAGS:].mean()
        total = emoji + 0.5 * sections + 0.1 * (means.norm(dim=1) - 1).square().mean()
        notes = {"emoji": emoji.item(), "sections": sections.item()}
        if drawings is not None:
            pick = torch.randperm(len(drawings), generator=self.generator)[:DRAWING_BAGS]
            name_loss = F.cross_entropy(LOGIT_SCALE * self.name_vectors(table, pick) @ drawings.T, pick)
            total, notes["drawings"] = total + 0.5 * name_loss, name_loss.item()
        return total, notes

    def name_vectors(self, table: Tensor, names: Tensor) -> Tensor:
        """Where these names of drawings lie, each of length 1, (names, meanings)."""
        ids, owners = self.names.gather_rows(names)
        return F.normalize(bag_means(table[ids], owners, len(names)), dim=1)
