"""An e-mail -> Markdown, by the standard library: who wrote what to whom and when, its text, and the names of what is attached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesParser

from m0.errors import InputError, M0Error
from m0.inputs.markup.encodings import declared_encoding, decode_any
from m0.inputs.markup.html import page_or_nothing

HEADERS = ("Subject", "From", "To", "Cc", "Date")
_TELLING = ("subject", "from", "date", "to", "message-id", "mime-version", "received", "return-path")


def read_email(data: bytes, name: str, encoding: str | None = None) -> str:
    """Markdown: subject, sender, receivers, date, text, attachments by name. Of a text in several forms the plain one is taken where
    it holds something. `encoding`: of parts that do not say theirs.

    Raises InputError where it is no e-mail or holds nothing; MissingExtraError where its text is HTML and lxml is missing.
    """
    data = data.lstrip(b"\r\n")
    try:
        message = BytesParser().parsebytes(data)  # its newer policy fails at headers that are not quite right
        parts = list(_parts(message, name, encoding))
    except RecursionError:
        raise InputError(f"{name} has parts in parts, too deep to read.") from None
    except M0Error:
        raise
    except Exception as error:  # the standard library has many for what is damaged
        raise InputError(f"{name} is damaged: {' '.join(str(error).split()).rstrip('.') or type(error).__name__}.") from None
    if not any(_header(message, header) for header in _TELLING):
        raise InputError(f"{name} is no e-mail: it begins with no header such as Subject or From.")
    lines = []
    for header in HEADERS:
        if value := _header(message, header):
            lines.append(f"# {value}" if header == "Subject" else f"{header}: {value}")
    texts, attached = [], []
    for part, text in parts:
        if text is None:
            attached.append(_called(part))
        elif text.strip():
            texts.append(text.strip())
    pieces = ["\n".join(lines), *texts, *(f"Attachment: {called}" for called in attached)]
    if not texts and not attached and not _header(message, "Subject"):
        raise InputError(f"{name} holds no text.")
    return "\n\n".join(piece for piece in pieces if piece)


def _parts(part: Message, name: str, encoding: str | None) -> Iterator[tuple[Message, str | None]]:
    """Each part with its text; None: it is attached, and only named."""
    kind = part.get_content_type()
    attached = part.get_content_disposition() == "attachment"
    if kind == "multipart/alternative" and not attached:
        yield from _best(part, name, encoding)
    elif kind == "multipart/related" and not attached:  # a page, then its pictures
        for inner in _inside(part)[:1]:
            yield from _parts(inner, name, encoding)
    elif part.is_multipart() and not attached and kind != "message/rfc822":
        for inner in _inside(part):
            yield from _parts(inner, name, encoding)
    elif (kind in {"text/plain", "text/html"} and not attached and not part.get_filename()) or (
        kind.startswith("multipart/") and not attached
    ):
        yield part, _text(part, name, encoding)
    else:
        yield part, None


def _best(part: Message, name: str, encoding: str | None) -> Iterator[tuple[Message, str | None]]:
    """The first form with text, the plain one before others; what is attached to any."""
    chosen = False
    for form in sorted(_inside(part), key=lambda form: form.get_content_type() != "text/plain"):
        found = list(_parts(form, name, encoding))
        yield from (piece for piece in found if piece[1] is None or not chosen)
        chosen = chosen or any(text and text.strip() for _, text in found)


def _inside(part: Message) -> list[Message]:
    inside = part.get_payload()
    return [inner for inner in inside if isinstance(inner, Message)] if isinstance(inside, list) else []


def _text(part: Message, name: str, encoding: str | None) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    declared = part.get_content_charset()
    html = part.get_content_type() == "text/html"
    if html and declared is None:
        declared = declared_encoding(data)
    text = decode_any(data, name, None if declared else encoding, declared)
    return page_or_nothing(text, name) if html else text.replace("\r\n", "\n")


def _called(part: Message) -> str:
    name = part.get_filename()
    if not name and part.get_content_type() == "message/rfc822":
        name = "".join(_header(inner, "Subject") for inner in _inside(part)[:1])
    return _decoded(name or "") or part.get_content_type()


def _header(message: Message, name: str) -> str:
    """The first of that name, on one line; empty where there is none."""
    return next((_decoded(value) for header, value in message.raw_items() if header.lower() == name.lower()), "")


def _decoded(value: str) -> str:
    """=?utf-8?q?Gr=C3=B6=C3=9Fe?= is Größe; what is in no known encoding stays as it is."""
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    with contextlib.suppress(Exception):  # of what it says to be
        value = str(make_header(decode_header(value)))
    return " ".join(value.encode("utf-8", "replace").decode("utf-8").split())
