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
from m0.evaluate.cuts import CutSummary, cuts_of
from m0.evaluate.files import read_text, resolve_picture
from m0.evaluate.metrics import Estimate, estimate, winoground
from m0.locks import level_of_caller
from m0.paths import path_of
from m0.reranker import Reranker

EXAMPLES_FILE = "examples.jsonl"
CAPTION_KEYS, IMAGE_KEYS = ("caption_0", "caption_1"), ("image_0", "image_1")


def load_contrasts(directory: str | Path) -> list[tuple[list[str], list[Any]]]:
    """Captions and pictures of each example. Raises InputError naming the line."""
    path = path_of(directory) / EXAMPLES_FILE
    examples = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions, images = [row[name] for name in CAPTION_KEYS], [row[name] for name in IMAGE_KEYS]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: must hold {', '.join((*CAPTION_KEYS, *IMAGE_KEYS))}.") from None
        if not all(isinstance(value, str) and value.strip() for value in (*captions, *images)):
            raise InputError(f"{path}, line {number}: captions and images must be text, not empty.")
        examples.append((captions, [{"image": resolve_picture(image, path.parent, ".png")} for image in images]))
    if not examples:
        raise InputError(f"{path} is empty.")
    return examples


def evaluate_contrasts(reranker: Reranker, examples: list[tuple[list[str], list[Any]]], **options: Any) -> dict[str, Estimate]:
    """Text, image and group score, each with its 95 % bootstrap interval over examples.

    The caption is the query and the picture the document. `options` as for `Reranker.logits`. Warns where something was cut.
    """
    limits, how = settle(None, None, options)
    encodings, cuts = [], {}
    for number, (captions, pictures) in enumerate(examples, 1):
        opened_pictures = [reranker.read(opened) for opened in pictures]  # opened once
        for caption in captions:
            for number_of_picture, opened in enumerate(opened_pictures):
                try:
                    encodings.append(reranker.encode({"text": caption}, opened, limits))
                except InputError as error:
                    raise type(error)(f"example {number}: {error}") from None
                cuts[caption, f"{number}/{IMAGE_KEYS[number_of_picture]}"] = cuts_of(encodings[-1])
    for remark in CutSummary(cuts).remarks():
        warnings.warn(remark, stacklevel=level_of_caller())
    logits = iter(reranker.logits_of(encodings, run=how))
    tables = [[[next(logits) for _ in IMAGE_KEYS] for _ in CAPTION_KEYS] for _ in examples]
    scores = [winoground([table]) for table in tables]
    return {name: estimate([score[name] for score in scores]) for name in ("text", "image", "group")}
