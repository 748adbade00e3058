"""Winoground (Thrush et al. 2022): two captions of the same words, two pictures; which belongs to which?

    examples.jsonl      {"id": 1, "caption_0": "...", "caption_1": "...", "image_0": "1_0.png", "image_1": "1_1.png"}

Images are paths relative to the file, with or without their ending ".png", as the published set has them, or addresses, as in a
dataset.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from m0.engine.options import settle
from m0.errors import InputError
from m0.evaluate.cuts import AllCuts, cuts_of
from m0.evaluate.files import picture, read_text
from m0.evaluate.metrics import Estimate, estimate, winoground
from m0.locks import level_of_caller
from m0.paths import path_of
from m0.reranker import Reranker

EXAMPLES = "examples.jsonl"
CAPTIONS, IMAGES = ("caption_0", "caption_1"), ("image_0", "image_1")


def load_contrasts(directory: str | Path) -> list[tuple[list[str], list[Any]]]:
    """Captions and pictures of each example. Raises InputError naming the line."""
    path = path_of(directory) / EXAMPLES
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions, images = [row[name] for name in CAPTIONS], [row[name] for name in IMAGES]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: must hold {', '.join((*CAPTIONS, *IMAGES))}.") from None
        if not all(isinstance(value, str) and value.strip() for value in (*captions, *images)):
            raise InputError(f"{path}, line {number}: captions and images must be text, not empty.")
        found.append((captions, [{"image": picture(image, path.parent, ".png")} for image in images]))
    if not found:
        raise InputError(f"{path} is empty.")
    return found


def evaluate_contrasts(reranker: Reranker, examples: list[tuple[list[str], list[Any]]], **options: Any) -> dict[str, Estimate]:
    """Text, image and group score, each with its 95 % bootstrap interval over examples.

    The caption is the query and the picture the document. `options` as for `Reranker.logits`. Warns where something was cut.
    """
    limits, how = settle(None, None, options)
    encodings, cuts = [], {}
    for number, (captions, pictures) in enumerate(examples, 1):
        read = [reranker.read(one) for one in pictures]  # opened once
        for caption in captions:
            for place, one in enumerate(read):
                try:
                    encodings.append(reranker.encode({"text": caption}, one, limits))
                except InputError as error:
                    raise type(error)(f"example {number}: {error}") from None
                cuts[caption, f"{number}/{IMAGES[place]}"] = cuts_of(encodings[-1])
    for remark in AllCuts(cuts).remarks():
        warnings.warn(remark, stacklevel=level_of_caller())
    logits = iter(reranker.logits_of(encodings, run=how))
    tables = [[[next(logits) for _ in IMAGES] for _ in CAPTIONS] for _ in examples]
    each = [winoground([table]) for table in tables]
    return {name: estimate([score[name] for score in each]) for name in ("text", "image", "group")}
