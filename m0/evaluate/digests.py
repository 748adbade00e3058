"""What a query or document holds as one short value that changes with it: its words, and the bytes of the files that it names."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image

from m0.errors import M0Error
from m0.inputs.document import Document
from m0.inputs.images import Picture
from m0.inputs.pages import Page
from m0.inputs.policy import EVERYTHING, SourcePolicy

DIGEST_BYTES = 16
KNOWN_FILES = 256
"""Hashes of files that are kept, so that a file of many pages is read once."""
CHUNK_BYTES = 2**20


class Digester:
    """Digests of queries and documents. Hashes of files are kept while size, time and place of a file stay as they are."""

    def __init__(self, policy: SourcePolicy = EVERYTHING) -> None:
        self.policy = policy
        self.files: OrderedDict[tuple[int, ...], bytes] = OrderedDict()

    def digest(self, content: Any) -> str | None:
        """Equal for equal contents, wherever their files lie; None where it cannot be known, as of a missing file or one that is open.

        Of an address it is the address: what lies there is taken to stay. Raises nothing: what cannot be read is refused by its reader.
        """
        whole = sha256()
        try:
            for piece in self._pieces(content):
                whole.update(len(piece).to_bytes(8, "big"))
                whole.update(piece)
        except (_Unknown, M0Error, OSError, ValueError, RecursionError):
            return None
        return whole.hexdigest()[: 2 * DIGEST_BYTES]

    def _pieces(self, content: Any) -> Iterator[bytes]:
        if isinstance(content, Document):
            yield from self._pieces(content.content)
        elif isinstance(content, str):
            yield b"text"
            yield _encode(content)
        elif isinstance(content, list | tuple):
            yield b"list of %d" % len(content)
            for part in content:
                yield from self._pieces(part)
        elif isinstance(content, Mapping):
            yield b"mapping of %d" % len(content)
            for key, value in content.items():
                yield _encode(str(key))
                if key in ("image", "pdf") and isinstance(value, str):
                    yield from self._named(value)
                elif isinstance(value, int | float | bool | None):
                    yield repr(value).encode()
                else:
                    yield from self._pieces(value)
        elif isinstance(content, Page):
            yield _encode(f"page {content.info.number} {content.as_}")
            yield from self._file(content.info.file)
        elif isinstance(content, os.PathLike):
            yield from self._file(content)
        else:
            yield from _loaded(content)

    def _named(self, source: str) -> Iterator[bytes]:
        """What stands under "image" or "pdf": an address, the picture itself, or a file's name."""
        if source[:8].lower().startswith(("http://", "https://", "data:")) or len(source) >= 4096:
            yield _encode(source)
            return
        try:
            yield from self._file(source)
        except (M0Error, OSError):
            if len(source) < 60:  # no picture in base64, but a file that is not there
                raise
            yield _encode(source)

    def _file(self, path: str | os.PathLike[str]) -> Iterator[bytes]:
        yield _encode(os.path.splitext(os.fsdecode(path))[1].lower())  # which decides how it is read
        with self.policy.open_path(path) as file:
            state = os.fstat(file.fileno())
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            if key not in self.files:
                whole = sha256()
                while chunk := file.read(CHUNK_BYTES):
                    whole.update(chunk)
                self.files[key] = whole.digest()
                if len(self.files) > KNOWN_FILES:
                    self.files.popitem(last=False)
            self.files.move_to_end(key)
        yield self.files[key]


class _Unknown(Exception):
    """What something holds cannot be known without using it up."""


def _loaded(content: Any) -> Iterator[bytes]:
    """Of what is in memory already."""
    if isinstance(content, bytes | bytearray | memoryview):
        yield sha256(content).digest()
    elif isinstance(content, Picture):
        yield content.digest
    elif isinstance(content, Image.Image):
        yield repr((content.mode, content.size)).encode()
        yield sha256(content.tobytes()).digest()
    elif isinstance(content, np.ndarray):
        yield repr((content.shape, content.dtype)).encode()
        yield sha256(content.tobytes()).digest()
    else:
        raise _Unknown


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
