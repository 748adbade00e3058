"""Values of a record made parts of a document: pictures in their several wrappings, PDFs, and lists of parts."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.inputs.records.fields import is_absent, kind_of
from m0.paths import path_of

BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{60,}={0,2}\s*")
"""What is base64 and no path, as `m0.inputs.opening` tells them apart."""
TEXT_TYPES = ("text", "input_text", "output_text")
"""Types of OpenAI's content parts, in its two interfaces."""
IMAGE_TYPES = ("image_url", "input_image")


def text_part(value: Any, name: str) -> dict[str, Any]:
    """{"text": ...} of a field. Raises InputError where it is no text."""
    if not isinstance(value, str):
        raise InputError(f'"{name}" is {kind_of(value)}, but must be text.')
    return {"text": value}


def is_picture_struct(value: Any) -> bool:
    """Whether it is a picture as Hugging Face's datasets stores it: {"bytes": ..., "path": ...}, not both null."""
    # Text first, which most fields are: asking for a Mapping takes longer.
    return (
        not isinstance(value, str) and isinstance(value, Mapping) and set(value) == {"bytes", "path"} and not is_absent(value)
    )


def picture_part(value: Any, name: str, folder: Path) -> dict[str, Any]:
    """{"image": ...} of a field: a path, address, data URI or base64, bytes, or {"bytes", "path"}. Raises InputError."""
    if isinstance(value, str):
        if value.startswith("{'bytes': "):
            raise InputError(
                f'"{name}" is a picture as datasets writes it into CSV, which cannot be read back; have it write Parquet.'
            )
        return {"image": resolve(value, folder)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"image": bytes(value)}
    if isinstance(value, Mapping) and value and set(value) <= {"bytes", "path"}:
        data, path = value.get("bytes"), value.get("path")
        if not is_absent(data):
            return {"image": _encoded(data, name)}
        if isinstance(path, str) and path:
            return {"image": resolve(path, folder)}
    raise InputError(f'"{name}" is {kind_of(value)}, but must be a picture: a path, an address, base64 or {{"bytes", "path"}}.')


def picture_parts(value: Any, name: str, folder: Path) -> list[dict[str, Any]]:
    """The same of a field that holds one picture or a list of them."""
    many = value if isinstance(value, list | tuple) and not _is_bytes(value) else [value]
    return [picture_part(bytes(one) if _is_bytes(one) else one, name, folder) for one in many if not is_absent(one)]


def pdf_part(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """{"pdf": ...}, with "pages" where the record names some. Raises InputError."""
    pdf, pages = record["pdf"], record.get("pages")
    if isinstance(pdf, str):
        pdf = str(_beside(pdf, folder))
    elif isinstance(pdf, Mapping) and set(pdf) <= {"bytes", "path"}:  # as datasets stores PDFs, too
        pdf = bytes_of(pdf["bytes"], "pdf") if not is_absent(pdf.get("bytes")) else str(_beside(str(pdf["path"]), folder))
    elif not isinstance(pdf, bytes | bytearray):
        raise InputError(f'"pdf" is {kind_of(pdf)}, but must be a path.')
    return {"pdf": pdf} if pages is None else {"pdf": pdf, "pages": pages}


def blob_part(blob: Any, folder: Path) -> dict[str, Any]:
    """What a Haystack document holds as a ByteStream: {"data": ..., "mime_type": ...}. Raises InputError for other kinds than text,
    pictures and PDF."""
    if not isinstance(blob, Mapping) or "data" not in blob:
        raise InputError(f'"blob" is {kind_of(blob)}, but must be {{"data", "mime_type"}}.')
    kind = str(blob.get("mime_type") or "image/").lower()
    if kind.startswith("image/"):
        return {"image": _encoded(blob["data"], "blob.data", kind)}
    data = bytes_of(blob["data"], "blob.data")
    if kind.startswith("application/pdf"):
        return {"pdf": data}
    if kind.startswith("text/"):
        try:
            return {"text": data.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            raise InputError(f'the text in "blob" is not UTF-8 at byte {error.start}.') from None
    raise InputError(f'"blob" is of the type {kind[:60]}, but must be text, a picture or a PDF.')


def part_of(value: Any, folder: Path) -> dict[str, Any]:
    """One part of a list: text, m0's own {"text"} and {"image"}, or one of OpenAI's content parts. Raises InputError."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, Mapping):
        raise InputError(f"a part of the record is {kind_of(value)}, but must be text or an object.")
    if "type" in value and not isinstance(value["type"], Mapping):
        return _content_part(value, folder)
    if not value or not set(value) <= {"text", "image"}:
        raise InputError(
            f'a part of the record has the keys {sorted(map(str, value))}, but must have "text", "image" or both, or a "type".'
        )
    return {
        key: text_part(inner, key)[key] if key == "text" else picture_part(inner, key, folder)[key]
        for key, inner in value.items()
    }


def _content_part(part: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    kind = part["type"]
    if kind in TEXT_TYPES:
        return text_part(part.get("text"), "text")
    if kind in IMAGE_TYPES:
        address = part.get("image_url")
        if isinstance(address, Mapping):
            address = address.get("url")
        if isinstance(address, str) and address:
            return {"image": resolve(address, folder)}
        raise InputError(f'a part of the type {kind} has no address of a picture in "image_url".')
    if kind == "image" and not is_absent(part.get("image")):  # as in the chats of Hugging Face
        return picture_part(part["image"], "image", folder)
    raise InputError(f"a part of the record is of the type {str(kind)[:40]!r}, but must be text, image_url or image.")


def resolve(image: str, folder: Path) -> str:
    """A picture that a record names, as `Reranker.rank` takes it: addresses, data URIs and base64 as they are, and all else as the path
    of a file beside the one that names it. Whether there is such a file shows when it is opened."""
    if image[:8].lower().startswith(("http://", "https://")) or image[:5].lower() == "data:":
        return image
    if BASE64.fullmatch(image) and not _exists(image, folder):
        return image
    return str(_beside(image, folder))


def _beside(path: str, folder: Path) -> Path:
    return path_of(path, folder=folder)


def _exists(path: str, folder: Path) -> bool:
    try:
        return os.path.exists(_beside(path, folder))
    except (OSError, ValueError):  # InputError among them
        return False


def _is_bytes(value: Any) -> bool:
    """Whether it is bytes as a list of numbers, which JSON makes of them."""
    return isinstance(value, list | tuple) and bool(value) and all(type(one) is int and 0 <= one < 256 for one in value)


def _encoded(data: Any, name: str, kind: str = "application/octet-stream") -> bytes | str:
    """A picture's bytes as they are, and base64 as a data URI, which is decoded only when the picture is opened."""
    return f"data:{kind};base64,{data}" if isinstance(data, str) else bytes_of(data, name)


def bytes_of(data: Any, name: str) -> bytes:
    """Bytes, base64 or a list of numbers as bytes. Raises InputError."""
    if isinstance(data, bytes | bytearray | memoryview) or _is_bytes(data):
        return bytes(data)
    if not isinstance(data, str):
        raise InputError(f'"{name}" is {kind_of(data)}, but must be bytes or base64.')
    try:
        return base64.b64decode(re.sub(r"\s", "", data), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f'"{name}" is not valid base64: {error}.') from None
