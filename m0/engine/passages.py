"""The one passage of a document that its score stands on: found by scoring all, or named by a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m0.engine.host import Host
from m0.engine.scoring import ScoringCall, score_prompts
from m0.errors import InputError
from m0.inputs.ahead import read_ahead, units_of
from m0.inputs.passages import PAGES, Passage, Passages
from m0.inputs.prompt import Encoding, Limits
from m0.inputs.stream import Part


def encode_best_passage(
    host: Host, query: Sequence[Part], document: Any, limits: Limits, batch_tokens: int, passages: Passages = PAGES
) -> tuple[Encoding, Passage | None]:
    """The prompt of the passage that stands for a document, and which it is. With several, all are scored. Raises InputError."""
    found: list[tuple[Encoding, Passage | None]] = []
    for _, _, passage, parts, _ in read_ahead([document], host.image_settings, passages, host.prompt.tokenizer):
        if isinstance(parts, InputError):
            raise parts
        found.append((host.prompt.encode(query, parts, limits), passage))
    if len(found) == 1:
        return found[0]
    logits = score_prompts(host, [encoding for encoding, _ in found], ScoringCall(batch_tokens)).tolist()
    return found[passages.combine(logits)[1]]


def encode_passage(
    host: Host, query: Sequence[Part], document: Any, limits: Limits, passage: Passage | None, passages: Passages = PAGES
) -> Encoding:
    """The prompt of that passage of a document which a result names. Raises InputError."""
    units = units_of(document, host.image_settings, passages, host.prompt.tokenizer)
    number = 1 if passage is None else passage.number
    if number > len(units):
        raise InputError(
            f"the document has {len(units)} passages now, and had {passage.count if passage else 1} when it was ranked."
        )
    return host.prompt.encode(query, units[number - 1].read(), limits)
