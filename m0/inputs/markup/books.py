"""EPUB -> Markdown: its pages in reading order, each as a page of the web."""

from __future__ import annotations

import posixpath
import zipfile
from typing import Any
from urllib.parse import unquote

from m0.errors import InputError
from m0.inputs.markup.archives import open_archive
from m0.inputs.markup.encodings import declared_encoding, decode_any
from m0.inputs.markup.html import page_or_nothing
from m0.inputs.markup.tree import lxml_etree

PAGES = {"application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/x-dtbook+xml"}
_FONTS_ONLY = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}
"""What disguises fonts and leaves the text readable."""


def read_epub(data: bytes, name: str) -> str:
    """Markdown. The order is the spine's, not the files'; the book's own table of contents is left out.

    Raises InputError where it is damaged, protected, or holds no text.
    """
    with open_archive(data, name) as archive:
        _check_protection(archive, name)
        package = _package_path(archive, name)
        opf = _xml(archive, package, name)
        items = {item.get("id"): item for item in opf.iter("{*}item")}
        texts = []
        for reference in opf.iter("{*}itemref"):
            item = items.get(reference.get("idref"))
            if item is None or "nav" in (item.get("properties") or "").split() or item.get("media-type") not in PAGES:
                continue
            path = _resolve(package, item.get("href") or "", archive)
            if path is None:
                raise InputError(f"{name} is damaged: it lacks {item.get('href')}, which is part of the book.")
            page = archive.read(path)
            text = decode_any(page, f"{name}: {path}", None, declared_encoding(page))
            texts.append(page_or_nothing(text, f"{name}: {path}", as_xml=True))
        title = next(
            (" ".join("".join(found.itertext()).split()) for found in opf.iter("{http://purl.org/dc/elements/1.1/}title")), ""
        )
    texts = [text for text in texts if text]
    # A title page says what the next page's heading says.
    kept = [text for text, after in zip(texts, [*texts[1:], ""], strict=True) if "\n" in text or not after.startswith(text)]
    body = "\n\n".join(kept)
    if not body:
        raise InputError(f"{name} holds no text.")
    first = body.split("\n", 1)[0].lstrip("# ")
    return body if not title or first.casefold() == title.casefold() else f"# {title}\n\n{body}"


def _check_protection(archive: zipfile.ZipFile, name: str) -> None:
    if "META-INF/encryption.xml" in archive.namelist():
        methods = {
            method.get("Algorithm") for method in _xml(archive, "META-INF/encryption.xml", name).iter("{*}EncryptionMethod")
        }
        if methods - _FONTS_ONLY:
            raise InputError(f"{name} is protected against copying, so its text cannot be read.")


def _package_path(archive: zipfile.ZipFile, name: str) -> str:
    if "META-INF/container.xml" not in archive.namelist():
        raise InputError(f"{name} is damaged: it lacks META-INF/container.xml.")
    container = _xml(archive, "META-INF/container.xml", name)
    path = next((file.get("full-path") for file in container.iter("{*}rootfile")), None)
    if not path or path not in archive.namelist():
        raise InputError(f"{name} is damaged: it lacks its list of pages.")
    return str(path)


def _xml(archive: zipfile.ZipFile, path: str, name: str) -> Any:
    etree = lxml_etree()
    try:
        return etree.fromstring(archive.read(path), etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as error:
        raise InputError(f"{name} is damaged: {path}: {error.msg}.") from None


def _resolve(package: str, href: str, archive: zipfile.ZipFile) -> str | None:
    names = set(archive.namelist())
    for candidate in (unquote(href), href):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(package), candidate.partition("#")[0]))
        if path in names:
            return path
    return None
