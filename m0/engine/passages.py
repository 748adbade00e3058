"""The one passage of a document that its score stands on: found by scoring all, or named by a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m0.engine.batching import CHUNK_BATCHES
from m0.engine.host import Host
from m0.engine.scoring import ScoringCall, score_prompts
from m0.errors import InputError
from m0.inputs.ahead import encode_document, read_ahead, units_of
from m0.inputs.images import ImageSettings
from m0.inputs.passages import PAGES, Passage, Passages, best_of
from m0.inputs.prompt import Encoding, Limits
from m0.inputs.stream import Part


def encode_best_passage(
    host: Host,
    query: Sequence[Part],
    document: Any,
    limits: Limits,
    batch_tokens: int,
    passages: Passages = PAGES,
    settings: ImageSettings | None = None,
) -> tuple[Encoding, Passage | None]:
    """The prompt of the passage that stands for a document, and which it is. With several, all are scored, and only the best so far and
    those that wait are held. `settings`: of its pictures; None: the host's. Raises InputError."""
    waiting: list[tuple[Encoding, Passage | None]] = []
    best: tuple[float, Encoding, Passage | None] | None = None
    for unit in read_ahead([document], settings or host.image_settings, passages, host.prompt.tokenizer):
        waiting.append((encode_document(host.prompt, query, unit.parts, limits), unit.passage))
        if unit.is_last and best is None and len(waiting) == 1:
            break
        if unit.is_last or sum(len(encoding) for encoding, _ in waiting) >= CHUNK_BATCHES * batch_tokens:
            logits = score_prompts(host, [encoding for encoding, _ in waiting], ScoringCall(batch_tokens)).tolist()
            number = best_of(logits)
            best = best if best is not None and best[0] >= logits[number] else (logits[number], *waiting[number])
            waiting.clear()
    return waiting[0] if best is None else best[1:]


def encode_passage(
    host: Host,
    query: Sequence[Part],
    document: Any,
    limits: Limits,
    passage: Passage | None,
    passages: Passages = PAGES,
    settings: ImageSettings | None = None,
) -> Encoding:
    """The prompt of that passage of a document which a result names. `settings`: of its pictures; None: the host's. Raises InputError."""
    units = units_of(document, settings or host.image_settings, passages, host.prompt.tokenizer)
    number = 1 if passage is None else passage.number
    if number > len(units):
        raise InputError(
            f"the document has {len(units)} passages now, and had {passage.count if passage else 1} when it was ranked."
        )
    return host.prompt.encode(query, units[number - 1].read(), limits)
