"""Explanations for the terminal, as numbers, and as pictures under a heat map.

Orange speaks for the document, blue against it: the pair that people with any kind of colour blindness can tell apart, both light
enough for black text.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m0.errors import InputError
from m0.explain.explanation import FORMATTERS, Explanation, PictureRelevance, Word
from m0.explain.numbers import (
    decimals_of,
    format_relevance,
    legend,
    max_abs_relevance,
    normalize_relevance,
    picture_title,
    top_words,
)
from m0.explain.page_words import PageWord
from m0.inputs.prompt import Side
from m0.paths import path_of

POSITIVE_COLOUR, NEGATIVE_COLOUR = (240, 130, 30), (100, 165, 240)
ANSI_RESET = "\x1b[0m"


def _ansi_background(share: float) -> str:
    """The terminal's code for white tinted by a share."""
    red, green, blue = (round(255 + abs(share) * (part - 255)) for part in (POSITIVE_COLOUR if share > 0 else NEGATIVE_COLOUR))
    return f"\x1b[48;2;{red};{green};{blue}m"


def replace_control_characters(text: str) -> str:
    """Without control characters: what a document holds must not steer the terminal."""
    return "".join(" " if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character for character in text)


def text_and_pictures(explanation: Explanation, side: Side) -> Iterator[list[str | Word] | int]:
    """A side in order: for each text part its text cut into words and what stands between them; for a picture its number."""
    number = sum(picture.side == "document" for picture in explanation.pictures) if side == "query" else 0
    for place, part in enumerate(explanation.encoding.parts.get(side, ())):
        if not isinstance(part, str):
            yield number
            number += 1
            continue
        pieces: list[str | Word] = []
        end = 0
        for word in explanation.words:
            if word.side == side and word.span.part == place:
                pieces += [part[end : word.span.start], word]
                end = word.span.end
        yield [piece for piece in [*pieces, part[end:]] if piece]


def to_terminal(explanation: Explanation, color: bool = True) -> str:
    """As `Explanation.to_terminal`."""
    scale = max_abs_relevance(explanation)
    decimals = decimals_of(explanation)
    lines = [f"score {explanation.score:.4f} (logit {explanation.logit:.3f}), explained by {explanation.method}"]
    for side in ("query", "document"):
        text = ""
        for part in text_and_pictures(explanation, side):
            if isinstance(part, int):
                text += f"\n{_draw_cells(explanation, part, scale, color)}\n"
                continue
            for piece in part:
                if isinstance(piece, str):
                    text += _printable_lines(piece)
                else:
                    text += _shade_word(piece, scale, format_relevance(piece.relevance, decimals, explanation.signed), color)
            text += " "
        lines.append(f"{side}: {text.strip()}")
    if found := top_words(explanation):
        shown = (f"{name_word(word)} {format_relevance(word.relevance, decimals, explanation.signed)}" for word in found)
        lines.append(f"top words of the document: {', '.join(shown)}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in explanation.shares.items())
    lines.append(f"relevance: {shares}")
    if explanation.ledger:
        lines.append("ledger: " + ", ".join(f"{name} {value:.4g}" for name, value in explanation.ledger.items()))
    lines.append(legend(explanation))
    if explanation.pictures and not color:
        lines.append("Cells of a picture: ninths of full colour; a dot is less than a twentieth of it.")
    lines += [f"note: {note}" for note in explanation.notes]
    return "\n".join(lines)


def name_word(word: Word | PageWord) -> str:
    """A word as lists show it, without control characters."""
    return replace_control_characters(word.text)


def _printable_lines(text: str) -> str:
    return "\n".join(replace_control_characters(line) for line in text.split("\n"))


def _shade_word(word: Word, scale: float, number: str, color: bool) -> str:
    share, text = normalize_relevance(word.relevance, scale), name_word(word)
    if not color:
        return f"{text}({number})" if abs(share) >= 0.1 else text
    if abs(share) < 0.05:
        return text
    return f"{_ansi_background(share)}\x1b[38;2;0;0;0m{text}{ANSI_RESET}"


def _draw_cells(explanation: Explanation, number: int, scale: float, color: bool) -> str:
    """A picture's cells as a little map."""
    lines = [f"[{picture_title(explanation, number)}]"]
    for row in explanation.pictures[number].cells.tolist():
        cells = []
        for value in row:
            share = normalize_relevance(value, scale)
            if color:
                cells.append(f"{_ansi_background(share)}  {ANSI_RESET}")
            else:
                cells.append(f"{round(9 * share):+d}" if abs(share) >= 0.05 else " .")
        lines.append("".join(cells) if color else " ".join(cells))
    return "\n".join(lines)


def to_json(explanation: Explanation) -> dict[str, Any]:
    """As `Explanation.to_json`."""
    decimals, signed = decimals_of(explanation), explanation.signed

    def with_relevance(value: float) -> dict[str, Any]:
        return {"relevance": value, "shown": format_relevance(value, decimals, signed)}

    found: dict[str, Any] = {
        "method": explanation.method,
        "target": explanation.target,
        "logit": explanation.logit,
        "score": explanation.score,
        "signed": explanation.signed,
        "shares": explanation.shares,
        "ledger": explanation.ledger,
        "notes": list(explanation.notes),
        "legend": legend(explanation),
        "decimals": decimals,
        "cut": [vars(cut) for cut in explanation.encoding.cut],
        "tokens": [
            {**{key: value for key, value in origin._asdict().items() if value is not None}, "relevance": value}
            for origin, value in zip(explanation.encoding.origins, explanation.tokens.tolist(), strict=True)
        ],
        "words": [{**vars(word.span), **with_relevance(word.relevance)} for word in explanation.words],
        "page_words": [{**asdict(word), **with_relevance(word.relevance)} for word in explanation.page_words],
        "top_words": [
            {"text": word.text, "page": getattr(word, "page", None), **with_relevance(word.relevance)}
            for word in top_words(explanation)
        ],
        "pictures": [
            {
                "side": picture.side,
                "part": picture.part,
                "size": list(picture.picture.original_size),
                **with_relevance(picture.relevance),
                "cells": picture.cells.tolist(),
                **_page_of(explanation, picture),
            }
            for picture in explanation.pictures
        ],
    }
    if explanation.passage is not None:
        found["passage"] = explanation.passage.to_json()
    if explanation.errors is not None:
        found["errors"] = [None if math.isnan(error) else error for error in explanation.errors.tolist()]
    if explanation.interaction is not None:
        asked, shown, values = explanation.interaction.by_word(explanation.encoding)
        found["interaction"] = {
            "query": [vars(span) for span in asked],
            "document": [vars(span) for span in shown],
            "values": values.tolist(),
        }
    return found


def _page_of(explanation: Explanation, picture: PictureRelevance) -> dict[str, Any]:
    """Of a page's picture which page it is; of a PDF's also its width and height in points, and how many pixels a point has."""
    page = explanation.page_of(picture)
    if page is None:
        return {}
    return {"page": page.number, "page_size": None if page.size is None else list(page.size), "scale": page.scale}


def heat_map(picture: PictureRelevance, scale: float | None = None, strength: float = 0.8) -> Image.Image:
    """The original picture in muted grey under orange and blue, so that both show on white and on black pictures.

    `scale`: the relevance of a whole cell that gets full colour; None: the picture's own largest.
    """
    size = picture.picture.original_size
    # Drawn at the size that the model saw, and enlarged only as a picture: scans may have a hundred megapixels.
    grey = Image.fromarray(picture.picture.pixels).convert("L")
    muted = 60 + np.asarray(grey, dtype=np.float64)[:, :, None] * (115 / 255)
    height, width = muted.shape[:2]
    full = scale or float(picture.cells.abs().max()) or 1e-12
    if picture.pixel_relevance is None:
        rows, columns = picture.cells.shape
        values = np.kron(picture.cells.numpy(), np.ones((height // rows, width // columns)))
    else:  # as much as a whole cell with this relevance everywhere would have
        values = picture.pixel_relevance.numpy() * (height * width / picture.cells.numel())
    share = np.clip(values / full, -1, 1)[:, :, None]
    tint = np.where(share > 0, np.array(POSITIVE_COLOUR), np.array(NEGATIVE_COLOUR))
    mixed = muted + np.abs(share) * strength * (tint - muted)
    return Image.fromarray(mixed.round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def colours(values: NDArray[np.float64], scale: float) -> NDArray[np.uint8]:
    """RGBA of relevances: hue by sign, opacity by size."""
    share = np.clip(values / scale, -1, 1)
    rgba = np.zeros((*values.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.where(share[..., None] > 0, np.array(POSITIVE_COLOUR), np.array(NEGATIVE_COLOUR))
    rgba[..., 3] = (np.abs(share) * 230).round()
    return rgba


def to_png(explanation: Explanation, folder: Any) -> list[Path]:
    """Writes picture-0.png, picture-1.png, ... Raises InputError where the prompt shows no picture or the folder refuses."""
    if not explanation.pictures:
        raise InputError("the prompt shows no picture to lay a heat map over.")
    folder = path_of(folder)
    scale = max_abs_relevance(explanation)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(explanation.pictures):
            paths.append(folder / f"picture-{number}.png")
            heat_map(picture, scale).save(paths[-1])
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return paths


FORMATTERS.update(to_terminal=to_terminal, to_json=to_json, to_png=to_png)
