"""Which prompts go through the model together: those that share a prefix, and like lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from m0.inputs.prompt import Encoding
from m0.model.attention import group_equal

CHUNK_BATCHES = 4
"""A long list is scored this many batches at a time, while the next documents are opened."""
MAX_GROUP_QUERY_TOKENS = 1024
"""Query tokens that read one copy of a document in one batch; the mask between them grows with the square."""


def batches(
    encodings: list[Encoding], batch_tokens: int, cached_keys: Collection[tuple[bytes, ...]], share: bool = True
) -> Iterator[list[int]]:
    """Numbers of the encodings in batches of at most `batch_tokens` (or one prompt, or prompts of one document, that are longer).

    Prompts of one document stay together, as far as their own tokens keep within MAX_GROUP_QUERY_TOKENS; like lengths go together.
    Documents in `cached_keys` (`Encoding.document_key`) cost no tokens. Without `share` every prompt is computed by itself.
    """
    batch: list[int] = []
    size = cached_tokens = 0
    groups = group_equal(encoding.document_key if share else number for number, encoding in enumerate(encodings))
    for members in sorted(groups.values(), key=lambda members: len(encodings[members[0]])):
        first = encodings[members[0]]
        is_cached = first.document_key in cached_keys
        shared_tokens = first.counts["document"] if len(members) > 1 or is_cached else 0
        own_tokens = {number: len(encodings[number]) - shared_tokens for number in members}
        for part, part_members in enumerate(_split_group(own_tokens)):
            tokens = sum(own_tokens[number] for number in part_members) + (0 if is_cached else shared_tokens)
            # Cached documents cost no tokens, but memory.
            cached_here = first.document_tokens if is_cached else 0
            # A second part of a group in the same batch would join the first.
            full = size + tokens > batch_tokens or (is_cached and cached_tokens + cached_here > CHUNK_BATCHES * batch_tokens)
            if batch and (full or part):
                yield batch
                batch, size, cached_tokens = [], 0, 0
            batch += part_members
            size += tokens
            cached_tokens += cached_here
    if batch:
        yield batch


def _split_group(own_tokens: Mapping[int, int]) -> Iterator[list[int]]:
    """Numbers of the prompts of one document, split where their query tokens exceed MAX_GROUP_QUERY_TOKENS. Each part reads one copy
    of the document.

    `own_tokens`: tokens of each prompt beyond the document, by number.
    """
    part: list[int] = []
    size = 0
    for number, tokens in own_tokens.items():
        if part and size + tokens > MAX_GROUP_QUERY_TOKENS:
            yield part
            part, size = [], 0
        part.append(number)
        size += tokens
    yield part
