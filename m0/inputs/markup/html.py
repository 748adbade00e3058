"""HTML -> Markdown: decoded, parsed, pruned, tidied, written, with its title."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from m0.errors import InputError
from m0.inputs.markup.encodings import declared_encoding, decode_any
from m0.inputs.markup.markdown import DEEPEST, write_markdown
from m0.inputs.markup.pruning import drop_navigation, drop_what_is_no_text
from m0.inputs.markup.tidying import tidy
from m0.inputs.markup.tree import HEADINGS, check_depth, lxml_etree, parse_page, words_of

NAMED_FRAMES = 5
"""How many frames are named."""
_SEPARATOR = re.compile(r"(\s*[—–|·•»«()]+\s*|\s+[-/:]+\s+|:\s+)")
_NUMBER = re.compile(r"^(chapter\s+)?[\dA-Z]?[\d.]*\s+", re.IGNORECASE)


def read_html(data: bytes, name: str, encoding: str | None = None, as_xml: bool = False) -> str:
    """A page's text in Markdown, without navigation. See `decode_any` for its encoding.

    Raises InputError where it holds no text, is nested too deeply, or is no text; MissingExtraError without lxml or markdownify.
    """
    return html_to_markdown(decode_any(data, name, encoding, declared_encoding(data)), name, as_xml)


def html_to_markdown(text: str, name: str, as_xml: bool = False, navigation: bool | None = None) -> str:
    """As `read_html`, of characters. `navigation`: whether menus are kept; None: only where a page holds nothing else."""
    root = parse_page(text, name, as_xml)
    if root is None:
        raise InputError(f"{name} holds no text.")
    frames = [frame.get("src") or "" for frame in root.iter("frame")]
    title = _title(root)
    found = _written(root, title, name, bool(navigation))
    if found is None and navigation is None:
        found = _written(parse_page(text, name, as_xml), title, name, True)
    if found is None and frames:
        named = ", ".join(frames[:NAMED_FRAMES]) + (", ..." if len(frames) > NAMED_FRAMES else "")
        raise InputError(f"{name} holds no text but frames, which are pages of their own: {named}.")
    if found is None and not title:
        raise InputError(f"{name} holds no text.")
    return f"# {title}" if found is None else found


def page_or_nothing(text: str, name: str, as_xml: bool = False) -> str:
    """As `html_to_markdown`, of a page that is part of something: without its menus and its title, and empty where nothing is left."""
    root = parse_page(text, name, as_xml)
    return "" if root is None else _written(root, "", name, False) or ""


def _written(root: Any, title: str, name: str, navigation: bool) -> str | None:
    """None where there is nothing but a title."""
    body = root.find("body") if root.tag == "html" else root
    if body is None:
        return None
    for more in root.findall("body")[1:]:
        body.extend(more)
    drop_what_is_no_text(body)
    if not navigation:
        body = drop_navigation(body)
    if not any(map(str.isalnum, "".join(body.itertext()))) and not any(image.get("alt") for image in body.iter("img")):
        return None
    body.tail = None
    tidy(body)
    _add_title(body, title)
    check_depth(body, name, DEEPEST)
    return write_markdown(lxml_etree().tostring(body, encoding="utf-8", method="html"), name) or None


def _title(root: Any) -> str:
    """The head's: pictures have titles, too."""
    head = root.find("head")
    title = head.find("title") if head is not None else None
    return "" if title is None else words_of(title)


def _add_title(body: Any, title: str) -> None:
    """Before everything else; where a heading says the same, only what the heading does not say, such as the manual's name."""
    if not title:
        return
    headings = [words_of(heading) for heading in body.iter(*HEADINGS)]
    mine = _plain(title)
    if not mine or any(_plain(heading) == mine for heading in headings):
        return
    rest, tag = title, "h1"
    first = _plain(headings[0]) if headings else ""
    if first:
        if first.startswith(mine):
            return
        same = {first, _plain(_NUMBER.sub("", headings[0]))}
        pieces = _SEPARATOR.split(title)
        for cut in range(1, len(pieces), 2):
            left, right = "".join(pieces[:cut]), "".join(pieces[cut + 1 :])
            if _plain(left) in same or _plain(right) in same:
                rest, tag = (right if _plain(left) in same else left).rstrip(" )"), "div"
                break
    added = body.makeelement(tag)
    added.text = rest
    added.tail, body.text = body.text, None
    body.insert(0, added)


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))
