"""Documents of the web and of offices -> text in Markdown: HTML, DOCX, PPTX, EPUB, ODT and e-mail. What stays the same: see `read_markup`.

Packages that a format needs are imported when the first file of that format is read.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from m0.errors import InputError
from m0.inputs.markup.archives import CALLED, ZIP, kind_of_archive, refuse_ole
from m0.inputs.markup.encodings import decode_any
from m0.inputs.texts import check_text

__all__ = ["MARKUP_SUFFIXES", "decode_any", "read_markup"]

HTML_SUFFIXES = (".html", ".htm", ".xhtml")
MARKUP_SUFFIXES = (*HTML_SUFFIXES, ".docx", ".pptx", ".epub", ".odt", ".eml")
"""Of files that are read as what they hold, not as they are. XML, reStructuredText, Markdown and source code are read as they are."""
_HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_MAIL = re.compile(rb"(From |[A-Za-z][A-Za-z0-9-]*: )[^\n]*\n")


def read_markup(data: bytes, name: str, encoding: str | None = None) -> str:
    """The text of a document in Markdown: headings, lists, tables and code as such, links as their text, pictures as their description.

    Args:
        data: what the file holds.
        name: what to call it in messages. Its suffix says what it holds; where it has none of MARKUP_SUFFIXES, the content does.
        encoding: of HTML and of an e-mail's parts that do not say theirs; None: as it is declared, else UTF-8, else guessed.

    Nothing is fetched, and no script, macro or style sheet is followed.

    Raises InputError, one sentence, where the file is empty, damaged, protected, not what its name says, unpacks to more than the
    limits, or holds no text; MissingExtraError where a package is missing: m0-reranker[html] or m0-reranker[office].
    """
    suffix = PurePath(name).suffix.lower()
    kind = suffix if suffix in MARKUP_SUFFIXES else None
    if not data.strip():
        raise InputError(f"{name} is empty.")
    refuse_ole(data, name)
    found = _kind_of(data, name)
    if kind in HTML_SUFFIXES:
        kind = ".html"
    if kind is None:
        kind = found
    elif found != kind and (found in CALLED or kind in CALLED or found == "pdf"):
        raise InputError(f"{name} is named {suffix[1:].upper()}, but {_what(found)}.")
    if kind == ".html":
        from m0.inputs.markup.html import read_html

        return read_html(data, name, encoding, as_xml=suffix == ".xhtml")
    if kind == ".eml":
        from m0.inputs.markup.mail import read_email

        return read_email(data, name, encoding)
    if kind == ".epub":
        from m0.inputs.markup.books import read_epub

        return read_epub(data, name)
    if kind in {".docx", ".pptx", ".odt"}:
        from m0.inputs.markup import office

        read = {".docx": office.read_docx, ".pptx": office.read_pptx, ".odt": office.read_odt}[kind]
        return check_text(read(data, name), name)
    raise InputError(f"{name} is neither HTML, DOCX, PPTX, EPUB, ODT nor an e-mail: it {_what(found)}.")


def _kind_of(data: bytes, name: str) -> str | None:
    """By the content: a suffix, "zip", "pdf" or None."""
    if data.startswith(ZIP):
        return kind_of_archive(data, name) or "zip"
    if data.startswith(b"%PDF-"):
        return "pdf"
    if _HTML.match(data[:4096]):
        return ".html"
    return ".eml" if _MAIL.match(data) else None


def _what(found: str | None) -> str:
    if found == "zip":
        return "holds a zip archive that is no office file"
    if found == "pdf":
        return "holds a PDF"
    if found == ".html":
        return "holds HTML"
    if found == ".eml":
        return "holds an e-mail or a text"
    return f"holds {CALLED[found]}" if found in CALLED else "holds something else"
