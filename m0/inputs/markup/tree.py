"""Characters of a page -> a tree of its elements, by lxml; and how much text each element holds."""

from __future__ import annotations

import re
from html.entities import html5
from typing import Any

from m0.errors import MissingExtraError
from m0.inputs.markup.markdown import too_deep

_DECLARATION = re.compile(r"^\s*<\?xml\b[^>]*\?>")
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]*);")
_CODE = re.compile(r"&#(?:[xX]([0-9a-fA-F]{1,8})|([0-9]{1,9}));?")
_NO_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
"""What a tree of elements cannot hold."""
_OF_XML = {"amp", "lt", "gt", "quot", "apos"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}


def lxml_etree() -> Any:
    """Raises MissingExtraError where it is not installed."""
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtraError("HTML needs lxml and markdownify: pip install 'm0-reranker[html]'.") from None
    return etree


def parse_page(text: str, name: str, as_xml: bool = False) -> Any:
    """The html element, or None of a page without elements. Nothing is fetched, and no entity of a page's own is followed.

    Args:
        text: the page.
        name: what to call it in messages.
        as_xml: it is XHTML: read as XML where it is well-formed, for `<script/>` and `<a/>` mean other things there.

    Raises InputError where elements are nested so deeply that the parser leaves some out; MissingExtraError.
    """
    etree = lxml_etree()
    text = _CODE.sub(_character, _NO_CHARACTER.sub(" ", text))
    declared = _DECLARATION.match(text)
    text = text[declared.end() :] if declared else text
    if as_xml or declared:
        root = _as_xml(etree, text)
        if root is not None:
            return root
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, default_doctype=False)
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except etree.XMLSyntaxError as error:  # nothing in it, or what the parser gives up on
        if any("depth" in entry.message for entry in error.error_log):
            raise too_deep(name) from None
        return None
    if any("depth" in entry.message for entry in parser.error_log):
        raise too_deep(name)
    return root


def _character(found: re.Match[str]) -> str:
    """Numbers that stand for no character, and those that stand for one of cp1252, as browsers take them. Others stay as they are."""
    code = int(found[1], 16) if found[1] else int(found[2])
    if 0x80 <= code < 0xA0:
        return bytes([code]).decode("cp1252", "replace")
    if code > 0x10FFFF or (code != 0x0C and _NO_CHARACTER.match(chr(code))):
        return "\ufffd"
    return " " if code == 0x0C else found[0]


def _as_xml(etree: Any, text: str) -> Any:
    """None where it is not well-formed, not HTML, or uses entities of its own."""
    text = _ENTITY.sub(lambda found: found[0] if found[1] in _OF_XML else html5.get(f"{found[1]};", found[0]), text)
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except etree.XMLSyntaxError:
        return None
    for element in root.iter():
        if not isinstance(element.tag, str):
            return None
        element.tag = element.tag.rpartition("}")[2].lower()
    return root if root.tag == "html" else None


def check_depth(root: Any, name: str, deepest: int) -> None:
    """Raises InputError where elements are nested more deeply."""
    depth = {root: 0}
    for element in root.iter():
        if element is not root:
            depth[element] = depth[element.getparent()] + 1
            if depth[element] > deepest:
                raise too_deep(name)


class Measured:
    """How many letters of visible text each element of a tree holds, and how many of them are in links."""

    def __init__(self, root: Any) -> None:
        self.elements = list(root.iter())  # kept, or lxml makes new objects for them
        self.letters: dict[Any, int] = {}
        self.linked: dict[Any, int] = {}
        for element in reversed(self.elements):
            own = _count(element.text) + (_count(element.get("alt")) if element.tag == "img" else 0)
            linked = 0
            for child in element:
                own += self.letters.get(child, 0) + _count(child.tail)
                linked += self.linked.get(child, 0)
            self.letters[element] = own
            self.linked[element] = own if element.tag == "a" and element.get("href") is not None else linked

    def share_linked(self, element: Any) -> float:
        """0 to 1; 1 of what holds no text."""
        letters = self.letters[element]
        return self.linked[element] / letters if letters else 1.0


def _count(text: str | None) -> int:
    return sum(character.isalnum() for character in text) if text else 0


def words_of(element: Any) -> str:
    """Its text, blanks evened out."""
    return " ".join("".join(element.itertext()).split())


def drop(element: Any, apart: bool = True) -> None:
    """Take it out, but not what follows it. `apart`: its neighbours do not become one word."""
    parent = element.getparent()
    if parent is None:
        return
    tail, before = element.tail or "", element.getprevious()
    text = (parent.text if before is None else before.tail) or ""
    if apart:  # one blank for all that go side by side, or the blanks of many would be copied for each
        tail = tail if text.endswith(" ") else f" {tail}"
        tail = "" if tail.isspace() and text.endswith(" ") else tail
    if before is None:
        parent.text = text + tail
    else:
        before.tail = text + tail
    parent.remove(element)
