"""An e-mail -> Markdown, by the standard library: who wrote what to whom and when, its text, and the names of what is attached."""

from __future__ import annotations

from collections.abc import Iterator
from email import policy
from email.message import EmailMessage, Message
from email.parser import BytesParser

from m0.errors import InputError
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
    message = BytesParser(policy=policy.default).parsebytes(data)
    if not any(message.get(header) for header in _TELLING):
        raise InputError(f"{name} is no e-mail: it begins with no header such as Subject or From.")
    assert isinstance(message, EmailMessage)
    lines = []
    for header in HEADERS:
        value = " ".join(str(message.get(header) or "").split())
        if value:
            lines.append(f"# {value}" if header == "Subject" else f"{header}: {value}")
    texts, attached = [], []
    for part, text in _parts(message, name, encoding):
        if text is None:
            attached.append(_called(part))
        elif text.strip():
            texts.append(text.strip())
    pieces = ["\n".join(lines), *texts, *(f"Attachment: {called}" for called in attached)]
    if not texts and not attached and not message.get("subject"):
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
    elif kind in {"text/plain", "text/html"} and not attached and not part.get_filename():
        yield part, _text(part, name, encoding)
    elif not kind.startswith("multipart/"):
        yield part, None
    elif not part.is_multipart() and isinstance(part.get_payload(), str):  # said to have parts, but has none
        yield part, str(part.get_payload())


def _best(part: Message, name: str, encoding: str | None) -> Iterator[tuple[Message, str | None]]:
    for form in sorted(_inside(part), key=lambda form: form.get_content_type() != "text/plain"):
        found = list(_parts(form, name, encoding))
        if any(text and text.strip() for _, text in found):
            yield from found
            return


def _inside(part: Message) -> list[Message]:
    inside = part.get_payload()
    return [inner for inner in inside if isinstance(inner, Message)] if isinstance(inside, list) else []


def _text(part: Message, name: str, encoding: str | None) -> str:
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    declared = part.get_content_charset()
    html = part.get_content_type() == "text/html"
    if html and declared is None:
        declared = declared_encoding(data)
    text = decode_any(data, name, None if declared else encoding, declared)
    return page_or_nothing(text, name) if html else text.replace("\r\n", "\n")


def _called(part: Message) -> str:
    name = part.get_filename()
    if not name and part.get_content_type() == "message/rfc822":
        name = "".join(str(inner.get("subject") or "") for inner in _inside(part)[:1])
    return " ".join((name or part.get_content_type()).split())
