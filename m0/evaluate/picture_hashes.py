"""Hashes of the pictures and PDFs that a document or query shows, which lie outside the dataset's own files and may change between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image

from m0.errors import InputError
from m0.inputs.images import Picture
from m0.inputs.opening import read_encoded
from m0.inputs.policy import EVERYTHING, SourcePolicy

UNKNOWN_HASH = ""
"""The hash of what cannot be read, or only once."""


def hash_pictures(content: Any, policy: SourcePolicy = EVERYTHING) -> str | None:
    """SHA-256 of all that a document or query shows besides its words; None: words alone; UNKNOWN_HASH where it cannot be known.

    `policy`: what may be read. Raises nothing: what cannot be read, or may not, is UNKNOWN_HASH.

    Of a URL that is the address, for the server may be asked once only: what lies there is taken to stay.
    """
    hashes = [_hash(source, policy) for source in _sources(content)]
    if not hashes:
        return None
    if UNKNOWN_HASH in hashes:
        return UNKNOWN_HASH
    return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode()).hexdigest()


def _sources(content: Any) -> Iterator[Any]:
    if isinstance(content, list | tuple):
        for part in content:
            yield from _sources(part)
    elif isinstance(content, Mapping):
        yield from (
            part for name, part in content.items() if name in ("image", "pdf") or not isinstance(part, str | int | None)
        )
    elif not isinstance(content, str):
        yield content


def _hash(source: Any, policy: SourcePolicy) -> str:
    try:
        return sha256(_bytes(source, policy)).hexdigest()
    except Exception:  # whatever an unreadable picture raises, scoring it says what is wrong
        return UNKNOWN_HASH


def _bytes(source: Any, policy: SourcePolicy) -> bytes:
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        return source.encode("utf-8", "surrogatepass")
    if isinstance(source, Picture):
        return source.digest
    if isinstance(source, Image.Image):
        return repr((source.mode, source.size)).encode() + source.tobytes()
    if isinstance(source, np.ndarray):
        return repr((source.shape, source.dtype)).encode() + source.tobytes()
    if hasattr(source, "read"):
        raise InputError("an open file is read once, when it is scored.")
    return read_encoded(source, policy)[0]
