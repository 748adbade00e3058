"""Lists of documents and queries for the cross-encoder."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass

import torch
from nano.material import SECTION_CHARACTERS, Concept, Content, Material, Section, draw_random_sheet
from nano.pages import Faces, choose_style, degrade, draw_page, script_of
from torch import Tensor

from m0.evaluate.bm25 import BM25


@dataclass
class Pair:
    query: Content
    document: Content
    concept: Concept


class Lists:
    def __init__(self, material: Material, faces: Faces, seed: int) -> None:
        self.faces = faces
        self.material, self.rng = material, random.Random(seed)
        self.unchanged_chance = 0.25
        """How many pictures are shown as their files are, the others as a screen might show them."""
        self.by_category, self.by_language = defaultdict(list), defaultdict(list)
        self.by_id: dict[str, dict[str, Section]] = defaultdict(dict)
        for concept in material.emoji:
            self.by_category[concept.category].append(concept)
        for section in material.fresh:
            self.by_language[section.language].append(section)
            self.by_id[section.id][section.language] = section
        self.categories = [key for key, members in self.by_category.items() if len(members) >= 60]
        self.languages = [key for key, members in self.by_language.items() if len(members) >= 20]
        self.translated = [key for key, members in self.by_id.items() if len(members) >= 2]
        self.figured = [section for section in material.fresh if section.figure_file]
        self.rivals: dict[tuple[str, int], list[int]] = {}
        self.indices: dict[str, BM25] = {}

    def language(self) -> str:
        return self.rng.choices(self.languages, [math.sqrt(len(self.by_language[key])) for key in self.languages])[0]

    # --- pairs of each kind -------------------------------------------------------------------------------------------

    def emoji(self, count: int, picture_document: float, picture_query: float, near: float = 0.0) -> list[Pair]:
        rng = self.rng
        pool = self.by_category[rng.choice(self.categories)] if rng.random() < near else self.material.emoji
        pairs = []
        for concept in rng.sample(pool, count):
            document = (
                concept.picture(rng, self.unchanged_chance)
                if rng.random() < picture_document
                else concept.text(rng, short=False)
            )
            query = (
                concept.picture(rng, self.unchanged_chance) if rng.random() < picture_query else concept.text(rng, short=True)
            )
            pairs.append(Pair(query, document, concept))
        return pairs

    def sheets(self, count: int) -> list[Pair]:
        """Sheets of several emoji, no two with the same, each asked for one of them."""
        pairs, chosen = [], self.rng.sample(self.material.emoji, 9 * count)
        for number in range(count):
            own = chosen[9 * number : 9 * number + 9]
            numbers, paper, _ = draw_random_sheet(own, self.rng)
            concept = own[numbers[0]]
            pairs.append(Pair(concept.text(self.rng, short=True), paper, concept))
        return pairs

    def sections(self, count: int) -> list[Pair]:
        pool = self.by_language[self.language()]
        start = self.rng.randrange(len(pool))
        # Neighbours in a manual are harder to tell apart than sections from anywhere.
        near = [pool[(start + i) % len(pool)] for i in range(min(2 * count, len(pool)))]
        chosen = self.rng.sample(near if self.rng.random() < 0.4 else pool, count)
        return [Pair(*section.pair(self.rng), section) for section in chosen]

    def rival_sections(self, count: int) -> list[Pair]:
        """A section among those that BM25 finds by its heading: they share its words. Hard negatives (Karpukhin et al. 2020)."""
        language = self.language()
        pool = self.by_language[language]
        number = self.rng.randrange(len(pool))
        if language not in self.indices:
            self.indices[language] = BM25({str(i): s.text_[:SECTION_CHARACTERS] for i, s in enumerate(pool)})
        if (language, number) not in self.rivals:
            scores = self.indices[language].scores(pool[number].heading)
            best = sorted(range(len(pool)), key=lambda i: -scores[i])[:50]
            self.rivals[language, number] = [i for i in best if pool[i].id != pool[number].id]
        rivals = self.rivals[language, number]
        # More often those that BM25 puts first.
        near = rivals[: max(count, 15)] if self.rng.random() < 0.5 else rivals
        chosen = [pool[number], *(pool[i] for i in self.rng.sample(near, min(count - 1, len(near))))]
        return [Pair(section.heading, section.opening(self.rng), section) for section in chosen]

    def translations(self, count: int) -> list[Pair]:
        """Heading in one language, document in another."""
        pairs = []
        for key in self.rng.sample(self.translated, count):
            asked, shown = self.rng.sample(list(self.by_id[key].values()), 2)
            query = asked.heading if self.rng.random() < 0.7 else asked.pair(self.rng)[0]
            pairs.append(Pair(query, shown.document(self.rng), asked))
        return pairs

    def drawings(self, count: int, picture_query: float = 0.1) -> list[Pair]:
        rng = self.rng
        pairs = []
        for drawing in rng.sample(self.material.drawings, count):
            if rng.random() < picture_query:
                pairs.append(Pair(drawing.picture(rng, self.unchanged_chance), drawing.text(rng, short=False), drawing))
            else:
                pairs.append(Pair(drawing.text(rng, short=True), drawing.picture(rng, self.unchanged_chance), drawing))
        return pairs

    def functions(self, count: int) -> list[Pair]:
        return [Pair(*function.pair(self.rng), function) for function in self.rng.sample(self.material.functions, count)]

    def pages(self, count: int) -> list[Pair]:
        """Upper parts of pages, asked for by their heading or by words that stand on them."""
        rng = self.rng
        pool = self.by_language[self.language()] if rng.random() < 0.5 else self.material.fresh
        pool = [section for section in pool if script_of(section.language) in ("latin", "cyrillic", "greek")]
        pairs = []
        for section in rng.sample(pool, min(count, len(pool))):
            style = choose_style(section.language, self.faces, rng)
            style.size = (28 * rng.randint(12, 16), 28 * rng.randint(8, 14))
            picture, drawn = draw_page(section.heading, section.text_, section.language, style, rng)
            long = [word for word in drawn.words if len(word) > 3]
            asked = section.heading if rng.random() < 0.5 or len(long) < 2 else " ".join(rng.sample(long, 2))
            pairs.append(Pair(asked, degrade(picture, drawn, rng)[0], section))
        return pairs

    def figures(self, count: int) -> list[Pair]:
        chosen = self.rng.sample(self.figured, min(count, len(self.figured)))
        return [Pair(section.pair(self.rng)[0], section.mixed(self.rng), section) for section in chosen]

    # --- lists --------------------------------------------------------------------------------------------------------

    def step(self) -> list[list[Pair]]:
        """The lists of one step: emoji, sections, and one of another kind in turn by chance."""
        rng = self.rng
        lists = [self.emoji(16, 0.75, 0.2, near=0.3)]
        kind = rng.random()
        lists.append(self.rival_sections(10) if kind < 0.5 else self.sections(9) if kind < 0.7 else self.translations(8))
        kind = rng.random()
        if kind < 0.35:
            lists.append(self.drawings(12))
        elif kind < 0.5:
            lists.append(self.functions(9))
        elif kind < 0.65:
            lists.append(self.sheets(5))
        elif kind < 0.72:
            lists.append(self.pages(6))
        elif kind < 0.75:
            lists.append([*self.figures(3), *self.sections(4)])
        else:  # pictures and texts of all kinds in one list
            lists.append([*self.emoji(6, 0.5, 0.1), *self.drawings(3), *self.translations(2), *self.sections(2)])
        return lists

    @staticmethod
    def also_right_mask(pairs: list[Pair]) -> Tensor:
        """(queries, documents), True where another's document bears the query's words too: neither right nor wrong."""
        clash = torch.zeros(len(pairs), len(pairs), dtype=torch.bool)
        for i, pair in enumerate(pairs):
            words = pair.query.casefold() if isinstance(pair.query, str) else None
            for j, other in enumerate(pairs):
                if i == j:
                    continue
                same = other.concept is pair.concept or (
                    isinstance(other.concept, Section)
                    and isinstance(pair.concept, Section)
                    and other.concept.id == pair.concept.id
                )
                if same or (words is not None and other.concept.is_also_true(words)):
                    clash[i, j] = True
        return clash
