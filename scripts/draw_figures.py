"""The figure of docs/explaining.md, drawn from m0-nano.

python scripts/draw_figures.py [--out docs/pictures]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nano.material import on_white
from PIL import Image

from m0 import Reranker
from m0.explain.show import heat_map

PICTURES = Path("docs/demo/pictures")
SHOWN = (("snowman", "snowman"), ("Gitarre", "guitar"), ("tram", "tram"))
"""Queries and the pictures that they are asked about."""
SIDE = 168


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    reranker = Reranker.from_pretrained("m0-nano", dtype="float32")

    sheet = Image.new("RGB", (len(SHOWN) * (2 * SIDE + 30), SIDE), (255, 255, 255))
    for number, (query, name) in enumerate(SHOWN):
        paper = on_white(PICTURES / f"{name}.png")
        explanation = reranker.explain(query, {"image": paper})
        print(query, round(explanation.logit, 2), explanation.pictures[0].cells)
        left = number * (2 * SIDE + 30)
        sheet.paste(paper.resize((SIDE, SIDE)), (left, 0))
        sheet.paste(heat_map(explanation.pictures[0]).resize((SIDE, SIDE)), (left + SIDE, 0))
    sheet.save(options.out / "heat-map.png")


if __name__ == "__main__":
    main()
