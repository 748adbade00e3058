"""Winoground (Thrush et al. 2022): two captions of the same words, two pictures; which belongs to which?

    examples.jsonl      {"id": 1, "caption_0": "...", "caption_1": "...", "image_0": "1_0.png", "image_1": "1_1.png"}

Images are paths relative to the file, with or without their ending ".png", as the published set has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.evaluate.files import read_text
from m0.evaluate.metrics import Estimate, estimate, winoground
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
        files = [path_of(image, folder=path.parent) for image in images]
        files = [file if file.suffix else file.with_suffix(".png") for file in files]
        found.append((captions, [{"image": str(file)} for file in files]))
    if not found:
        raise InputError(f"{path} is empty.")
    return found


def evaluate_contrasts(reranker: Reranker, examples: list[tuple[list[str], list[Any]]], **options: Any) -> dict[str, Estimate]:
    """Text, image and group score, each with its 95 % bootstrap interval over examples.

    The caption is the query and the picture the document. `options` as for `Reranker.logits`.
    """
    pairs = []
    for captions, pictures in examples:
        read = [reranker.read(picture) for picture in pictures]  # opened once
        pairs += [({"text": caption}, picture) for caption in captions for picture in read]
    logits = iter(reranker.logits(pairs, **options))
    tables = [[[next(logits) for _ in IMAGES] for _ in CAPTIONS] for _ in examples]
    each = [winoground([table]) for table in tables]
    return {name: estimate([score[name] for score in each]) for name in ("text", "image", "group")}
