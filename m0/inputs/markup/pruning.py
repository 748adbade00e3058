"""What of a page is not its text: scripts, hidden parts, menus, bars that lead to other pages, and what stands around every page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from m0.inputs.markup.tree import HEADINGS, Measured, drop, words_of

NEVER_TEXT = {
    *("head", "script", "style", "template", "noscript", "noframes", "svg", "canvas", "iframe", "object", "embed", "applet"),
    *("audio", "video", "map", "input", "select", "textarea", "datalist", "progress", "meter", "link", "meta", "annotation"),
    *("annotation-xml", "frameset", "base", "param"),
}
WITHIN_LINES = {"script", "style", "template", "link", "meta", "annotation", "annotation-xml", "noscript"}
"""Of these, what takes no room in a line: `foo<script></script>bar` is one word."""
MAIN_SHARE, LINKED_SHARE, MOST_SHARE = 0.5, 0.6, 0.5
"""Least share of the text that a main element must hold to be all of it; least share of links in a menu that is known by a vague name
only; largest share of the text in what a name says is a menu."""
MOST_OF_A_BAR = 400
"""Letters and digits in a bar with links to the previous and the next page."""

_HIDDEN_STYLE = re.compile(r"(^|;)\s*(display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_ROLES = {"navigation", "search", "menu", "menubar", "toolbar", "doc-pagebreak", "doc-pagelist", "tooltip"}
_SURE = re.compile(
    r"(.+[-_])?(nav|navbar|navigation|navheader|navfooter|navlinks?|navmenu|nav-?(content|item|bar|links?)|docnav|breadcrumbs?|menubar"
    r"|sphinxsidebar|pagination|skip-?(link|nav|to-content)|searchbox|headerlink|anchorjs-link)"
    r"|(site|page|main|global|document)?[-_]?footer|cookie[-_]?(banner|consent|notice|bar)"
)
_VAGUE = re.compile(
    r"(.+[-_])?(menu|sidebar|pager|toolbar|related|banner|topbar|masthead|header|footer|prevnext|prev-?next|social|share)"
)
_MENU_TITLE = re.compile(
    r"(main |site |api )?(menu|navigation|site ?map)|(related|quick|useful) links|api indexes|on this page"
)
_AROUND = re.compile(r"(prev|previous|next|up|home|contents|table of contents|index|top|back|start|first|last|forward|toc)")
_RELATIONS = {"prev", "previous", "next", "up", "contents", "toc", "start", "first", "last", "begin", "end", "home", "index"}
_BOXES = {"table", "div", "td", "section", "aside"}
_CONTENT = {"h1", "main", "article"}


def drop_what_is_no_text(body: Any) -> None:
    """Scripts, styles, templates, media, forms' fields, and what the page hides."""
    for element in list(body.iter()):
        if element is body or element.getparent() is None:
            continue
        if element.tag == "a" and _leads_nowhere(element):
            drop(element, apart=False)
        elif element.tag in NEVER_TEXT or _is_hidden(element):
            drop(element, apart=element.tag not in WITHIN_LINES)
        elif (element.tag == "button" and not any(a.tag in HEADINGS | {"dt", "summary"} for a in element.iterancestors())) or (
            element.tag == "form" and _is_search(element)
        ):
            drop(element)


def _is_hidden(element: Any) -> bool:
    """By its own attributes: style sheets are not read. What a search within the page would open is not hidden, and aria-hidden is
    believed of signs and parts of lines only, for some pages set it on their text."""
    if element.get("hidden") is not None and element.get("hidden").lower() != "until-found":
        return True
    if element.tag == "dialog" and element.get("open") is None:
        return True
    if _HIDDEN_STYLE.search(element.get("style") or ""):
        return True
    return element.get("aria-hidden") == "true" and element.tag in {"span", "i", "a", "b", "em", "sup", "img", "small"}


def _is_search(form: Any) -> bool:
    return any(
        child.get("type") == "search" or child.get("name") in {"q", "query", "search"} for child in form.iter("input")
    ) and not any(True for _ in form.iter("p", "pre", "table", *HEADINGS))


def drop_navigation(body: Any) -> Any:
    """Take menus, bars and what stands around every page out. -> The element that holds the text: a main element, else `body`."""
    measured = Measured(body)
    whole = max(measured.letters[body], 1)
    first = next(body.iter(*HEADINGS), None)
    for element in measured.elements:
        first = None if element is first else first
        if element is body or not _is_inside(element, body):
            continue
        if (
            _is_named_navigation(element, measured, whole)
            or _is_bar(element, measured)
            or (first is not None and _is_logo(element, body, measured))
        ):
            drop(element)
        elif element.tag in {"header", "footer"} or element.get("role") in {"banner", "contentinfo"}:
            _keep_headings(element, measured, whole)
    return _main_part(body)


def _is_inside(element: Any, body: Any) -> bool:
    """Not if it went with a larger part."""
    return any(ancestor is body for ancestor in element.iterancestors())


def _leads_nowhere(link: Any) -> bool:
    """A sign beside a heading that links to it or leads back from a note, or "skip to content"."""
    href = link.get("href") or ""
    if not href.startswith("#"):
        return False
    words = words_of(link)
    if not words:
        return bool(link.get("class")) and len(link) == 0
    return not any(map(str.isalnum, words)) or words.casefold().startswith("skip to ")


def _names(element: Any) -> Iterator[str]:
    """Its classes, and its id where that is no heading's words: id="editing-and-navigation" is no menu."""
    yield from (element.get("class") or "").lower().split()
    name = (element.get("id") or "").lower()
    if not re.search(r"[-_]", name):
        yield name


def _is_named_navigation(element: Any, measured: Measured, whole: int) -> bool:
    if element.tag in {"nav", "menu"} and (element.tag == "nav" or measured.share_linked(element) >= LINKED_SHARE):
        return True
    if element.get("role") in _ROLES:
        return True
    names = list(_names(element))
    sure = any(_SURE.fullmatch(name) for name in names)
    vague = sure or any(_VAGUE.fullmatch(name) for name in names)
    if not vague and element.tag not in _BOXES:
        return False
    linked = measured.share_linked(element) >= LINKED_SHARE
    if not (sure or linked) or measured.letters[element] > MOST_SHARE * whole or any(True for _ in element.iter(*_CONTENT)):
        return False
    if any(True for _ in element.iter(*HEADINGS, "pre")):
        return sure and linked
    return vague or _is_titled_menu(element)


def _is_titled_menu(element: Any) -> bool:
    """A box of links that says what it is, as in pages that are laid out by tables."""
    return len(list(element.iter("a"))) > 2 and bool(_MENU_TITLE.fullmatch(next(iter(_pieces(element)), "")))


def _is_bar(element: Any, measured: Measured) -> bool:
    """Links to the previous and the next page, by their relation, their access key or their words, and nothing else."""
    if element.tag not in {"div", "p", "ul", "ol", "table", "center", "section"} or measured.letters[element] > MOST_OF_A_BAR:
        return False
    if any(True for _ in element.iter("pre", *HEADINGS)):
        return False
    links = list(element.iter("a"))
    if any(_leads_around(link) for link in links):
        return measured.share_linked(element) >= LINKED_SHARE or _reads_around(element, links)
    words = _pieces(element)
    return len(words) > 1 and all(_AROUND.fullmatch(word) for word in words)


def _leads_around(link: Any) -> bool:
    relations = set((link.get("rel") or "").lower().split())
    return bool(relations & _RELATIONS) or (link.get("accesskey") or "").lower() in {"p", "n", "u", "h"}


def _reads_around(element: Any, links: list[Any]) -> bool:
    """`Next: <a>Installing</a>, Previous: <a>Overview</a>`: outside the links are only such words."""
    inside = {text for link in links for text in link.itertext()}
    outside = [text for text in element.itertext() if text not in inside]
    words = [word for text in outside for word in re.split(r"[\W_]+", text.lower()) if word]
    return all(_AROUND.fullmatch(word) for word in words)


def _pieces(element: Any) -> list[str]:
    """Its texts, each without signs around it."""
    pieces = (re.sub(r"^[\W_]+|[\W_]+$", "", text).lower() for text in element.itertext())
    return [piece for piece in pieces if piece]


def _is_logo(element: Any, body: Any, measured: Measured) -> bool:
    """Links, and nothing but links, in a part of the page that comes before the first heading: the way home, the publisher's sign."""
    if element.getparent() is not body or not measured.letters[element] or measured.share_linked(element) < 1:
        return False
    return not any(True for _ in element.iter(*HEADINGS, "pre", "li", "td"))


def _keep_headings(element: Any, measured: Measured, whole: int) -> None:
    """Of a page's header or footer, not of an article's, and not where it holds most of the page."""
    if any(ancestor.tag in {"article", "main", "section", "blockquote", "figure"} for ancestor in element.iterancestors()):
        return
    if measured.letters[element] > MOST_SHARE * whole:
        return
    headings = list(element.iter(*HEADINGS))
    for child in list(element):
        if not any(heading is child or child in heading.iterancestors() for heading in headings):
            drop(child)
    element.text = " "
    for child in element:
        child.tail = " "


def _main_part(body: Any) -> Any:
    """The one main element, with the page's first heading where that stands before it."""
    found = {element for element in body.iter() if element.tag == "main" or element.get("role") == "main"}
    mains = [main for main in found if not any(ancestor in found for ancestor in main.iterancestors())]
    if len(mains) != 1 or mains[0] is body:
        return body
    measured = Measured(body)
    if measured.letters[mains[0]] < MAIN_SHARE * measured.letters[body]:
        return body
    main = mains[0]
    inside = {*main.iter("h1"), *main.iterancestors("h1")}
    for heading in reversed([heading for heading in body.iter("h1") if heading not in inside]):
        heading.tail = None
        main.insert(0, heading)
        if main.text:
            heading.tail, main.text = main.text, None
    return main
