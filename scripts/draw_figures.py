"""The figures of docs/explanation/explaining.md and docs/explanation/study.md, and the study's numbers, from m0-nano.

python scripts/draw_figures.py [--out docs/pictures] [--write docs/explanation/study.md]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from nano.evaluate import write_between
from nano.material import on_white, sheet
from PIL import Image, ImageDraw

from m0 import Reranker
from m0.errors import InputError
from m0.explain.show import heat_map
from m0.interp import (
    Axis,
    Grid,
    activation_patching,
    attention_knockout,
    attribution_patching,
    direct_logit_attribution,
    score_lens,
)
from m0.interp.grid import layer_head_axes

PICTURES = Path("docs/demo/pictures")
SHOWN = (("snowman", "snowman"), ("Gitarre", "guitar"), ("tram", "tram"))
"""Queries and the pictures that they are asked about."""
SHEET = ("dolphin", "egg", "guitar", "tram", "compass", "snowman")
SIDE = 168
MARKS = ("<!-- figures: written by scripts/draw_figures.py -->", "<!-- end of figures -->")
HEADS = "decoder.layers.*.attention.z"


def heat_maps(reranker: Reranker) -> Image.Image:
    """Single pictures beside their heat maps."""
    page = Image.new("RGB", (len(SHOWN) * (2 * SIDE + 30), SIDE), (255, 255, 255))
    for number, (query, name) in enumerate(SHOWN):
        paper = on_white(PICTURES / f"{name}.png")
        explanation = reranker.explain(query, {"image": paper})
        left = number * (2 * SIDE + 30)
        page.paste(paper.resize((SIDE, SIDE)), (left, 0))
        page.paste(heat_map(explanation.pictures[0]).resize((SIDE, SIDE)), (left + SIDE, 0))
    return page


def one_of_six(reranker: Reranker) -> tuple[Image.Image, list[str]]:
    """A sheet of six pictures, and its heat map for three queries; what each map points at."""
    rng = random.Random(4)
    paper, boxes = sheet([Image.open(PICTURES / f"{name}.png").convert("RGBA") for name in SHEET], rng, (2, 3), 84)
    asked = ("guitar", "tram", "Delfin")
    page = Image.new("RGB", (4 * (paper.width + 12), paper.height + 16), (255, 255, 255))
    page.paste(paper, (0, 16))
    pointed = []
    for number, query in enumerate(asked, 1):
        shown = reranker.explain(query, {"image": paper}).pictures[0]
        left = number * (paper.width + 12)
        page.paste(heat_map(shown), (left, 16))
        ImageDraw.Draw(page).text((left, 2), query, fill=(0, 0, 0))
        row, column = divmod(int(shown.cells.argmax()), shown.cells.shape[1])
        x0, y0, x1, y1 = shown.picture.cell_box(row, column)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        on = [name for name, (a, b, c, d) in zip(SHEET, boxes, strict=True) if a <= x <= c and b <= y <= d]
        pointed.append(f"{query}: {on[0] if on else 'nothing'}")
    return page, pointed


def study(reranker: Reranker, out: Path) -> str:
    """The study's experiments over all pictures of the demo, as text; its plots as files."""
    names = sorted(path.stem for path in PICTURES.glob("*.png"))
    shown = {name: {"image": str(PICTURES / f"{name}.png")} for name in names}
    right = [(name.replace("-", " "), shown[name]) for name in names]
    wrong = [(name.replace("-", " "), shown[other]) for name, other in zip(names, names[1:] + names[:1], strict=True)]
    own, others = (sum(reranker.logits(pairs)) / len(pairs) for pairs in (right, wrong))
    lines = [f"Mean logit of {len(names)} names with their own picture {own:.2f}, with another's {others:.2f}."]

    lenses = torch.stack([score_lens(reranker, pair).values[:, 0] for pair in right]).mean(0)
    lines += [
        "",
        "Score lens (mean logit read before each layer, and at the end): " + ", ".join(f"{v:.2f}" for v in lenses) + ".",
    ]

    grids = [attention_knockout(reranker, pair, window=1) for pair in right]
    knocked = Grid(
        "logit with the attention cut minus logit", grids[0].axes, torch.stack([grid.values for grid in grids]).mean(0)
    )
    chosen = [i for i, label in enumerate(knocked.axes[0].labels) if "picture" in label or label == "score -> query"]
    rows = Axis(knocked.axes[0].name, [knocked.axes[0].labels[i] for i in chosen])
    knocked = Grid(knocked.title, (rows, knocked.axes[1]), knocked.values[chosen])
    knocked.plot(out / "study-knockout.png")
    lines += ["", "How the logit changes when one layer may no longer look (mean):", "", *table(knocked)]

    moved, agreements = [], []
    for pair, other in zip(right, right[1:] + right[:1], strict=True):
        for kind, corrupted in (("query", (other[0], pair[1])), ("picture", (pair[0], other[1]))):
            try:
                exact = activation_patching(reranker, pair, corrupted, HEADS)
            except InputError:
                continue  # names of unequally many tokens
            fast = attribution_patching(reranker, pair, corrupted, HEADS, exact=exact)
            moved.append((kind, exact.values))
            agreements.append(fast.notes["pearson"])
    layers, heads = reranker.model.config.decoder.num_layers, reranker.model.config.decoder.num_heads
    for kind in ("query", "picture"):
        values = torch.stack([v for k, v in moved if k == kind]).mean(0).view(layers, heads)
        grid = Grid(f"share of the logit that a head brings back, other {kind}", layer_head_axes(layers, heads), values)
        grid.plot(out / f"study-patching-{kind}.png")
        count = sum(k == kind for k, _ in moved)
        lines += [
            "",
            f"Share that a head's clean output brings back where the {kind} was another ({count} pairs):",
            "",
            *table(grid),
        ]
    lines += ["", f"Agreement of attribution patching with these grids: mean Pearson {sum(agreements) / len(agreements):.2f}."]

    direct = [direct_logit_attribution(reranker, pair) for pair in right]
    mlps, by_heads = torch.stack([d.mlps for d in direct]).mean(0), torch.stack([d.heads for d in direct]).sum(-1).mean(0)
    grid = Grid(
        "direct",
        (Axis("layer", [str(i) for i in range(layers)]), Axis("", ["heads together", "MLP"])),
        torch.stack([by_heads, mlps], 1),
    )
    lines += ["", "Direct attribution of the logit (mean):", "", *table(grid)]
    page, pointed = one_of_six(reranker)
    page.save(out / "study-sheet.png")
    lines += ["", f"Hottest cell on a sheet of {', '.join(SHEET)}: {'; '.join(pointed)}."]
    return "\n".join(lines)


def table(grid: Grid) -> list[str]:
    rows, columns = grid.axes
    lines = [f"| {rows.name} | " + " | ".join(columns.labels) + " |", "| --- |" + " --- |" * len(columns.labels)]
    for label, values in zip(rows.labels, grid.values.tolist(), strict=True):
        lines.append(f"| {label} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m0-nano")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--write", type=Path, help="put the study's numbers between the marks of this page")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    reranker = Reranker.from_pretrained(options.model, dtype="float32")
    heat_maps(reranker).save(options.out / "heat-map.png")
    text = study(reranker, options.out)
    print(text)
    if options.write:
        write_between(options.write, MARKS, text)


if __name__ == "__main__":
    main()
