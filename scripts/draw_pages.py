"""The pictures of README.md and of docs/tutorials, from m0-nano: a ranking as the terminal shows it, and a page with its heat maps.

python scripts/draw_pages.py [--out docs/pictures]

The letters are DejaVu Sans Mono, which matplotlib brings along (extra `plot`).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from m0 import Reranker
from m0.cli.formatting import format_table, snippet
from m0.cli.sources import read_sources
from m0.explain.show import heat_map

DEMO = Path("docs/demo")
QUERY, SHOWN = "Delfin", 6
ON_PAGE, ASKED = ("guitar", "house", "red-apple", "snowman"), ("guitar", "snowman")
SIDE = 84
"""Pixels of a place on the page; a picture is 64 pixels wide."""
COLUMNS, LETTERS, LINE, MARGIN = 88, 22, 46, 24
INK, PAPER, GREY = (30, 30, 30), (250, 250, 248), (120, 120, 120)


def letters(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"), size)


def ranking(reranker: Reranker) -> Image.Image:
    """The demo's first ranking, each picture shown behind its line."""
    os.environ["COLUMNS"] = str(COLUMNS)  # the width that the table takes for the terminal's
    documents = [source.document for source in read_sources(str(DEMO / "documents.jsonl"))]
    names = [json.loads(line)["name"] for line in (DEMO / "names.jsonl").read_text(encoding="utf-8").splitlines()]
    best = reranker.rank(QUERY, documents)[:SHOWN]
    table = format_table([(result.score, names[result.index], snippet(result.document)) for result in best])
    font = letters(LETTERS)
    head = f"query {QUERY!r}: the best {SHOWN} of {len(documents)} texts and pictures"
    lines = [head, *table.split("\n")]
    page = Image.new("RGB", (int(font.getlength("0") * COLUMNS) + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        top = MARGIN + number * LINE
        draw.text((MARGIN, top + LINE // 2), line, GREY if number < 2 else INK, font, anchor="lm")
        document = best[number - 2].document if number >= 2 else ""
        if isinstance(document, dict) and "image" in document:
            picture = Image.open(document["image"]).convert("RGBA").resize((LINE - 4, LINE - 4))
            page.paste(picture, (int(MARGIN + font.getlength(line) + 16), top + 2), picture)
    return page.quantize(64)


def sheet() -> Image.Image:
    """Four pictures on one page, as docs/tutorials/explain-a-page.md makes it."""
    page = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    for number, name in enumerate(ON_PAGE):
        picture = Image.open(DEMO / "pictures" / f"{name}.png").convert("RGBA")
        page.paste(picture, (number % 2 * SIDE + 10, number // 2 * SIDE + 10), picture)
    return page


def heat_maps(reranker: Reranker) -> Image.Image:
    """The page, and its heat map for each of two queries."""
    page, font = sheet(), letters(14)
    row = Image.new("RGB", (3 * (2 * SIDE) + 2 * 16, 2 * SIDE + 24), "white")
    shown = [("the page", page)]
    for query in ASKED:
        shown.append((f"asked for: {query}", heat_map(reranker.explain(query, {"image": page}).pictures[0])))
    for number, (title, picture) in enumerate(shown):
        row.paste(picture, (number * (2 * SIDE + 16), 24))
        ImageDraw.Draw(row).text((number * (2 * SIDE + 16), 12), title, INK, font, anchor="lm")
    return row.quantize(128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    out = parser.parse_args().out
    reranker = Reranker.from_pretrained("m0-nano", dtype="float32")
    ranking(reranker).save(out / "ranking.png", optimize=True)
    heat_maps(reranker).save(out / "page.png", optimize=True)


if __name__ == "__main__":
    main()
