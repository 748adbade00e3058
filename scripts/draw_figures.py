"""The figures of docs/explaining.md and docs/study.md, drawn from m0-nano.

    python scripts/draw_figures.py [--out docs/pictures]

Needs matplotlib (the extra [plot]).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from m0 import Reranker
from m0.explain.show import heat_map
from m0.interp import activation_patching, attention_knockout, direct_logit_attribution

PICTURES = Path("docs/demo/pictures")
SIX = ("guitar", "compass", "snowman", "tram", "red-apple", "trumpet")
SPACE = 84


def six_pictures() -> Image.Image:
    """Six of the demo's pictures on one sheet."""
    paper = Image.new("RGB", (3 * SPACE, 2 * SPACE), (255, 255, 255))
    for number, name in enumerate(SIX):
        picture = Image.open(PICTURES / f"{name}.png").convert("RGBA")
        paper.paste(picture, (number % 3 * SPACE + 10, number // 3 * SPACE + 10), picture)
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    reranker = Reranker.from_pretrained("m0-nano", dtype="float32")

    paper = six_pictures()
    shown = [paper]
    for query in ("snowman", "guitar"):
        explanation = reranker.explain(query, {"image": paper})
        shown.append(heat_map(explanation.pictures[0]))
        print(query, explanation.pictures[0].cells)
    sheet = Image.new("RGB", (sum(image.width for image in shown) + 2 * 10, paper.height), (255, 255, 255))
    for number, image in enumerate(shown):
        sheet.paste(image, (number * (paper.width + 10), 0))
    sheet.save(options.out / "heat-map.png")

    compass, guitar = ({"image": PICTURES / f"{name}.png"} for name in ("compass", "guitar"))
    clean, other_query, other_picture = ("compass", compass), ("guitar", compass), ("compass", guitar)
    z = "decoder.layers.*.attention.z"
    activation_patching(reranker, clean, other_query, z).plot(options.out / "patching-query.png")
    activation_patching(reranker, clean, other_picture, z).plot(options.out / "patching-picture.png")
    attention_knockout(reranker, clean, window=1).plot(options.out / "knockout.png")
    direct_logit_attribution(reranker, clean).plot(options.out / "direct.png")


if __name__ == "__main__":
    main()
