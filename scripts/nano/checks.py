"""Success@1 on a small part of the held-out material while training goes on; the full figures come from `nano/evaluate.py`."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import torch
from nano.material import SECTION_CHARACTERS, Material, open_on_white
from nano.pages import Faces, choose_style, draw_page, script_of
from nano.scoring import score_grids
from nano.seeing import mean_meanings
from nano.tokens import Writer
from PIL import Image
from torch import Tensor

from m0.model.reranker_model import RerankerModel


class HeldOutChecks:
    """Success@1 on a small part of the held-out material; the full figures come from `nano/evaluate.py`."""

    def __init__(self, material: Material, faces: Faces) -> None:
        rng = random.Random(5)
        folder = material.folder
        names = [(row, language) for row in material.emoji_rows for language in row["held_out"]]
        drawings = list({row["name"]: row for row in material.held_drawings}.values())
        by_language = defaultdict(list)
        for row in material.held_sections:
            by_language[row["language"]].append(row)
        self.groups: dict[str, list[tuple[list, list]]] = defaultdict(list)
        for _ in range(10):
            chosen = rng.sample(names, 20)
            pictures = [Image.open(folder / row["image"]) for row, _ in chosen]
            self.groups["emoji"].append(([row["names"][language] for row, language in chosen], pictures))
        for _ in range(5):
            some = rng.sample(drawings, 20)
            self.groups["drawing"].append(
                ([row["name"] for row in some], [open_on_white(folder / row["image"]) for row in some])
            )
        for rows in by_language.values():
            if len(rows) >= 10:
                some = rng.sample(rows, 10)
                texts = [row["text"][:SECTION_CHARACTERS] for row in some]
                self.groups["section"].append(([row["heading"] for row in some], texts))
        ids = defaultdict(list)
        for row in material.held_sections:
            ids[row["id"]].append(row)
        several = [rows for rows in ids.values() if len(rows) >= 2]
        for _ in range(6):
            two = [rng.sample(rows, 2) for rows in rng.sample(several, 20)]
            self.groups["translation"].append(
                ([a["heading"] for a, _ in two], [b["text"][:SECTION_CHARACTERS] for _, b in two])
            )
        readable = [r for r in material.held_sections if script_of(r["language"]) in ("latin", "cyrillic", "greek")]
        for _ in range(3):
            rows = rng.sample(readable, 20)
            pages = []
            for row in rows:
                style = choose_style(row["language"], faces, rng, body=(16, 22))
                style.size = (448, 448)
                pages.append(draw_page(row["heading"], row["text"], row["language"], style, rng)[0])
            self.groups["page"].append(([row["heading"] for row in rows], pages))

    @torch.no_grad()
    def score_by_bags(self, model: RerankerModel, writer: Writer) -> str:
        return self._report(
            lambda queries, documents: mean_meanings(model, writer, queries) @ mean_meanings(model, writer, documents).T
        )

    @torch.no_grad()
    def score_by_model(self, model: RerankerModel, writer: Writer) -> str:
        def grid(queries: list, documents: list) -> Tensor:
            return score_grids(model, [([writer.query(q) for q in queries], [writer.document(d) for d in documents])])[0]

        return self._report(grid)

    def _report(self, grid: Callable[[list, list], Tensor]) -> str:
        parts = []
        for kind, groups in self.groups.items():
            hits = [(grid(queries, documents).argmax(1) == torch.arange(len(queries))).float() for queries, documents in groups]
            parts.append(f"{kind} {torch.cat(hits).mean():.3f}")
        return "held out: " + ", ".join(parts)
