"""Which prompts go through the model together: those that share a prefix, and like lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from m0.inputs.prompt import Encoding
from m0.model.attention import group_equal

CHUNK_BATCHES = 4
"""A long list is scored this many batches at a time, while the next documents are opened."""
MAX_GROUP_QUERY_TOKENS = 1024
"""Query tokens that read one copy of a document side by side; their mutual mask grows with the square."""


def batches(
    encodings: list[Encoding], batch_tokens: int, known: Collection[tuple[bytes, ...]], share: bool = True
) -> Iterator[list[int]]:
    """Numbers of the encodings in batches of at most `batch_tokens` (or one prompt, or prompts of one document, that are longer).

    Prompts of one document stay together, as far as their own tokens keep within MAX_GROUP_QUERY_TOKENS; like lengths go together.
    The tokens of `known` documents, given by key, do not count. Without `share` every prompt is computed by itself.
    """
    batch: list[int] = []
    size = held = 0
    groups = group_equal(encoding.document_key if share else number for number, encoding in enumerate(encodings))
    for members in sorted(groups.values(), key=lambda members: len(encodings[members[0]])):
        first = encodings[members[0]]
        kept = first.document_key in known
        shared = first.counts["document"] if len(members) > 1 or kept else 0
        own = {number: len(encodings[number]) - shared for number in members}
        for portion, some in enumerate(_portions(own)):
            tokens = sum(own[number] for number in some) + (0 if kept else shared)
            # Kept documents cost no tokens, but memory.
            holds = first.num_prefix_tokens if kept else 0
            # A second portion in the same batch would join the first.
            full = size + tokens > batch_tokens or (kept and held + holds > CHUNK_BATCHES * batch_tokens)
            if batch and (full or portion):
                yield batch
                batch, size, held = [], 0, 0
            batch += some
            size += tokens
            held += holds
    if batch:
        yield batch


def _portions(own: Mapping[int, int]) -> Iterator[list[int]]:
    """Numbers of the prompts of one document, given with their own tokens, in portions that meet one copy of it."""
    portion: list[int] = []
    size = 0
    for number, tokens in own.items():
        if portion and size + tokens > MAX_GROUP_QUERY_TOKENS:
            yield portion
            portion, size = [], 0
        portion.append(number)
        size += tokens
    yield portion
