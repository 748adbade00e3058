"""Format a ranking as a table for people."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m0.cli.sources import Source
from m0.inputs.pages import Page

if TYPE_CHECKING:
    from m0.engine.results import RankedDocument


def display_name(source: Source, result: RankedDocument) -> str:
    """What a document is called in the table: its name, and which of its passages its score is of."""
    passage = result.passage
    if passage is None or passage.count == 1:
        return source.name
    page = passage.page
    return f"{source.name} ({f'page {page.number}' if page is not None and not passage.spans else f'passage {passage.number}'} of {passage.count})"


def snippet(document: Any) -> str:
    """A document in few words, for the table."""
    if isinstance(document, Page):
        return "[page]"
    if isinstance(document, list):
        return " ".join(snippet(item) for item in document)
    if isinstance(document, str):
        return " ".join(document.split())
    words = []
    for key, value in document.items():
        if key in ("as", "pages", "password"):
            continue
        words.append("[picture]" if key == "image" else "[pages]" if key == "pdf" else " ".join(str(value)[:400].split()))
    return " ".join(words)


def format_table(rows: Sequence[tuple[float, str, str]], logits: Sequence[float] | None = None) -> str:
    """Rank, score, name and beginning of each document, one line each, as wide as the terminal; nothing where there are no rows.

    `logits`: of each row. They have a column where the scores alone do not show the order: where two that follow one another print
    the same score and different logits, as relevances near 1 and near 0 do.
    """
    if not rows:
        return ""
    from m0.explain.show import replace_control_characters  # here, so that the command line's help comes at once

    scores = [f"{score:6.4f}" for score, _, _ in rows]
    if logits is not None and _hides_order(scores, logit_texts := [f"{logit:8.4f}" for logit in logits]):
        scores = [f"{score}  {logit}" for score, logit in zip(scores, logit_texts, strict=True)]
        header = f"{'rank':>4}  {'score':>6}  {'logit':>8}"
    else:
        header = f"{'rank':>4}  {'score':>6}"
    columns = shutil.get_terminal_size((100, 24)).columns
    name_width = min(max(len("name"), *(_width(name) for _, name, _ in rows)), max(12, columns // 3))
    text_width = max(10, columns - name_width - len(header) - 7)
    lines = [f"{header}  {_fit('name', name_width)}  document"]
    for rank, (score, (_, name, words)) in enumerate(zip(scores, rows, strict=True), 1):
        name = replace_control_characters(name)
        if _width(name) > name_width:
            name = "…" + name[-(name_width - 1) :]
        lines.append(
            f"{rank:>4}  {score}  {_fit(name, name_width)}  {_fit(replace_control_characters(words), text_width).rstrip()}"
        )
    return "\n".join(lines)


def _hides_order(scores: Sequence[str], logits: Sequence[str]) -> bool:
    """Whether the printed logits tell two neighbours apart that the printed scores do not."""
    return any(scores[i] == scores[i + 1] and logits[i] != logits[i + 1] for i in range(len(scores) - 1))


def _width(text: str) -> int:
    """Columns that a terminal takes for a text: wide for East Asian characters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _fit(text: str, width: int) -> str:
    """Cut or padded to `width` columns."""
    fitted, width_so_far = "", 0
    for character in text:
        if width_so_far + _width(character) > width:
            while width_so_far + 1 > width:
                width_so_far -= _width(fitted[-1])
                fitted = fitted[:-1]
            return fitted + "…" + " " * (width - width_so_far - 1)
        fitted, width_so_far = fitted + character, width_so_far + _width(character)
    return fitted + " " * (width - width_so_far)
