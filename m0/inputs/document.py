"""A document with what a user knows it by: an id, and anything else that is to come back with its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m0.errors import InputError


@dataclass(frozen=True)
class Document:
    """A document with an id and metadata, accepted wherever a document is. They change no score and come back in the result.

    Raises InputError for an id that is not text, metadata that is no mapping, and a Document within a Document.
    """

    content: Any
    """Whatever a document may be: text, a picture, {"text": ...}, {"image": ...}, {"pdf": ...}, a list of parts, a page."""
    id: str | None = None
    """What the user calls it. Two documents may have the same."""
    metadata: Mapping[str, Any] | None = None
    """Whatever belongs to it. It is passed through as it is, and never read."""

    def __post_init__(self) -> None:
        if isinstance(self.content, Document):
            raise InputError("the content of a Document is a Document, but must be text, a picture or a list of parts.")
        if self.id is not None and not isinstance(self.id, str):
            raise InputError(f"the id of a Document is {type(self.id).__name__}, but must be text.")
        if self.metadata is not None and not isinstance(self.metadata, Mapping):
            raise InputError(f"the metadata of a Document is {type(self.metadata).__name__}, but must be a mapping.")
