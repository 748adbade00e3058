"""Zip archives that hold a document: which kind it is by its content, and limits on what is unpacked."""

from __future__ import annotations

import io
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from m0.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_TEXT, MOST_BYTES, MOST_FILES = 128 << 20, 1 << 30, 20_000
"""Of an archive: bytes of text and of everything, unpacked, and files."""
TEXT_FILES = (".xml", ".rels", ".html", ".xhtml", ".htm", ".opf", ".ncx", ".txt", ".vml")
OLE, ZIP = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\x03\x04"
_MAIN_PARTS = {
    b"wordprocessingml.document.main+xml": ".docx",
    b"wordprocessingml.template.main+xml": ".docx",
    b"ms-word.document.macroEnabled.main+xml": ".docx",
    b"presentationml.presentation.main+xml": ".pptx",
    b"presentationml.slideshow.main+xml": ".pptx",
    b"ms-powerpoint.presentation.macroEnabled.main+xml": ".pptx",
    b"spreadsheetml.sheet.main+xml": ".xlsx",
}
_MIME_TYPES = {
    b"application/epub+zip": ".epub",
    b"application/vnd.oasis.opendocument.text": ".odt",
    b"application/vnd.oasis.opendocument.text-template": ".odt",
    b"application/vnd.oasis.opendocument.spreadsheet": ".ods",
    b"application/vnd.oasis.opendocument.presentation": ".odp",
}
CALLED = {
    ".docx": "a Word file (DOCX)",
    ".pptx": "a PowerPoint file (PPTX)",
    ".xlsx": "an Excel file (XLSX)",
    ".epub": "an EPUB",
    ".odt": "an OpenDocument text (ODT)",
    ".ods": "an OpenDocument spreadsheet (ODS)",
    ".odp": "an OpenDocument presentation (ODP)",
}


@contextmanager
def open_archive(data: bytes, name: str) -> Iterator[zipfile.ZipFile]:
    """An archive within the limits, whose files may be read whole. What is damaged becomes an InputError, also within."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_limits(archive, name)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is damaged: {' '.join(str(error).split()).rstrip('.') or type(error).__name__}.") from None


def _check_limits(archive: zipfile.ZipFile, name: str) -> None:
    """By what the archive says of its files: zipfile unpacks no more of a file than it is said to hold."""
    files = archive.infolist()
    if len(files) > MOST_FILES:
        raise InputError(f"{name} holds {len(files)} files, above the limit of {MOST_FILES}.")
    if any(file.flag_bits & 1 for file in files):
        raise InputError(f"{name} is protected by a password; save it without one.")
    text = sum(file.file_size for file in files if file.filename.lower().endswith(TEXT_FILES))
    everything = sum(file.file_size for file in files)
    if text > MOST_TEXT or everything > MOST_BYTES:
        found, limit, of = (text, MOST_TEXT, " of text") if text > MOST_TEXT else (everything, MOST_BYTES, "")
        raise InputError(f"{name} unpacks to {found} bytes{of}, above the limit of {limit}, as decompression bombs do.")


def kind_of_archive(data: bytes, name: str) -> str | None:
    """The suffix that a zip archive would have by its content; None: it is none of office's."""
    with open_archive(data, name) as archive:
        names = set(archive.namelist())
        if "mimetype" in names and (kind := _MIME_TYPES.get(archive.read("mimetype").strip())):
            return kind
        if "[Content_Types].xml" in names:
            types = archive.read("[Content_Types].xml")
            return next((kind for mark, kind in _MAIN_PARTS.items() if mark in types), None)
        return ".epub" if "META-INF/container.xml" in names else None


def refuse_ole(data: bytes, name: str) -> None:
    """Raises InputError of what old and of what protected office files are kept in."""
    if data.startswith(OLE):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise InputError(f"{name} is protected by a password; save it without one.")
        raise InputError(
            f"{name} is an office file of the time before 2007, which m0 does not read; save it in the newer format."
        )
