"""Encoded pictures out of whatever a user names: a path, URL, data URI, base64 text, bytes or an open file; and decoded."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import threading
import urllib.parse
import warnings
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from m0.errors import ImageError, InputError
from m0.inputs.bit_depth import load_pixels
from m0.inputs.hosts import shown
from m0.inputs.policy import EVERYTHING, SourcePolicy
from m0.inputs.texts import is_open_file, is_opened_as_text, name_of_file, read_open_file
from m0.paths import path_of


class _SuppressWarnings:
    """`warnings.catch_warnings` for several threads at once: the filters are put back when the last of them is out."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.caught: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.caught is not None:
                self.caught.__exit__(None, None, None)


suppress_warnings = _SuppressWarnings()


def read_encoded(source: Any, policy: SourcePolicy = EVERYTHING) -> tuple[bytes, str]:
    """The encoded bytes of a picture that is not decoded yet, and a name for it. Raises ImageError."""
    if isinstance(source, bytes | bytearray | memoryview):
        policy.check_data(f"the picture of {len(source)} bytes", ImageError)
        return bytes(source), f"the picture of {len(source)} bytes"
    if isinstance(source, os.PathLike):
        return _read_file(source, policy)
    if is_open_file(source):
        return _read_open_file(source)
    if not isinstance(source, str):
        raise ImageError(
            f"a picture is given as {type(source).__name__}, but must be a path, URL, data URI, base64 text, bytes, "
            "PIL image, array or open file."
        )
    if not source:
        raise ImageError("a picture is given as empty text, but must be a path, URL, data URI or base64 text.")
    if source[:8].lower().startswith(("http://", "https://")):
        return _read_url(source, policy), shown(source)
    if source[:5].lower() == "data:":
        policy.check_data(f"the data URI {source[:30]}...", ImageError)
        return read_data_uri(source), f"the data URI {source[:30]}..."
    if source.startswith("~") or _is_file(source, policy):
        return _read_file(source, policy)
    # Neither a file nor an address: base64, if it is long enough to be a picture and nothing but base64.
    if len(source) >= 60 and re.fullmatch(r"[A-Za-z0-9+/_\s-]+={0,2}\s*", source):
        policy.check_data(f"the base64 text {source[:20]}...", ImageError)
        return _decode_base64(source, "the base64 text"), f"the base64 text {source[:20]}..."
    return _read_file(source, policy)


def _read_open_file(file: Any) -> tuple[bytes, str]:
    name = name_of_file(file)
    try:
        if not is_opened_as_text(file) and isinstance(content := read_open_file(file), bytes):
            return content, name
    except InputError as error:
        raise ImageError(str(error)) from None
    raise ImageError(f"{name} is opened as text; a picture is opened with 'rb'.")


def _is_file(path: str, policy: SourcePolicy) -> bool:
    """Of what the policy refuses nothing is looked for."""
    try:
        return len(path) < 4096 and policy.check_path(path).exists()
    except (OSError, ValueError):  # InputError is one
        return False


def _read_file(given: str | os.PathLike[Any], policy: SourcePolicy) -> tuple[bytes, str]:
    policy.check_path(given, ImageError)
    path = path_of(given, ImageError)
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:60]}..."
    try:
        with policy.open_path(path, ImageError) as file:
            return file.read(), name
    except ImageError:  # which is a ValueError
        raise
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a directory, not a picture.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or one_line(error)}.") from None


def _read_url(url: str, policy: SourcePolicy) -> bytes:
    data, content_type = policy.fetch(url, "image/*", ImageError)
    kind = content_type.partition(";")[0]
    # Servers misname pictures, so their word counts only where the bytes are none.
    if (kind.startswith("text/") or kind in ("application/json", "application/xhtml+xml")) and not looks_like_picture(data):
        raise ImageError(f"{shown(url)} answered {kind}, not a picture.")
    return data


def looks_like_picture(data: bytes) -> bool:
    try:
        with suppress_warnings:
            Image.open(io.BytesIO(data)).close()
        return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False


def read_data_uri(uri: str) -> bytes:
    """The bytes that a data URI holds. Raises ImageError."""
    header, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"the data URI {uri[:30]}... has no comma, so no data.")
    if header.lower().endswith(";base64"):
        return _decode_base64(urllib.parse.unquote(body), f"the data URI {uri[:30]}...")
    try:
        return urllib.parse.unquote_to_bytes(body)
    except UnicodeEncodeError:
        raise ImageError(f"the data URI {uri[:30]}... holds lone surrogates.") from None


def _decode_base64(text: str, name: str) -> bytes:
    text = re.sub(r"\s", "", text).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} is not valid base64: {one_line(error)}.") from None


_pillow_limit_lock = threading.Lock()


def decode_picture(data: bytes, name: str, max_image_pixels: int, as_reference: bool) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty.")
    try:
        with _pillow_limit_lock:  # Pillow's own bomb limit is global and cannot be raised for one picture; ours replaces it.
            pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(data))
            finally:
                Image.MAX_IMAGE_PIXELS = pillow_limit
        check_pixels(image.size, name, max_image_pixels)
        with suppress_warnings:  # Pillow warns of odd metadata; the pixels are what counts
            if as_reference:
                image.load()
            else:
                load_pixels(image, name)
        return image
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture that Pillow can open{_format_hint(data)}.") from None
    except ImageError:
        raise
    except Exception as error:  # decoders raise what they like on damaged data
        raise ImageError(f"{name} is damaged: {one_line(error)}.") from None


def _format_hint(data: bytes) -> str:
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return " (it looks like HTML)"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return " (it is a TIFF, but not one of those that Pillow reads)"
    return ""


def is_closed(image: Image.Image, error: Exception) -> bool:
    """Whether a picture could not be loaded because its owner has closed it or its file. Pillow says so in several ways."""
    if isinstance(error, ValueError) and "closed" in str(error):
        return True
    return isinstance(image, ImageFile.ImageFile) and bool(image.tile) and getattr(image, "fp", None) is None


def check_pixels(size: tuple[int, int], name: str, limit: int) -> None:
    if size[0] * size[1] > limit:
        raise ImageError(
            f"{name} has {size[0]} x {size[1]} pixels, above the limit of {limit}; "
            "raise max_image_pixels if it is no decompression bomb."
        )


def one_line(error: object) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
