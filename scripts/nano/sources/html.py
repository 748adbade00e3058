"""HTML manuals as sections: what stands under each heading that has an anchor."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from nano.sources.splitting import clean

Sections = dict[str, tuple[str, list[str], list[str]]]
"""Anchor: heading, paragraphs, files of figures."""
NUMBER = re.compile(r"^\D{0,12}?[A-Z]?\d+(\.\d+)*\.?\s+")
"""Of a chapter or section, before the heading's words: "6.2.1. " and "Chapter 4. "."""
HEADING = re.compile(r"h[1-6]")
CHARSET = re.compile(rb"""charset=["']?([\w-]+)""")
VOID = ("img", "br", "hr", "meta", "link", "input", "col", "wbr", "area", "base", "source")


class SectionParser(HTMLParser):
    """Splits a manual's page at its headings: anchor -> (heading, paragraphs, figures). The handbook's and Sphinx's pages."""

    SKIP = ("script", "style", "head", "nav", "footer")
    BLOCKS = ("div", "p", "li", "pre", "dt", "dd", "td", "section")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: Sections = {}
        self.anchor, self.section_anchor, self.heading = "", "", ""
        self.paragraphs: list[str] = []
        self.figures: list[str] = []
        self.in_heading = self.in_body = False
        self.skipping = 0
        self.buffer: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        classes = values.get("class") or ""
        if tag in self.SKIP:
            self.skipping += 1
        if tag == "section":
            self.section_anchor = values.get("id") or ""
        if re.fullmatch(r"h[1-6]", tag) and (classes == "title" or self.section_anchor):
            self.finish()
            self.in_heading, self.in_body = True, True
            self.anchor, self.section_anchor = self.section_anchor, ""
        elif self.in_heading and tag == "a" and values.get("id"):
            self.anchor = values["id"] or ""
        elif tag in self.BLOCKS:
            self.paragraph()
        if tag == "img" and self.in_body and (values.get("src") or "").startswith("images/inst"):
            self.figures.append(values["src"] or "")
        if "docnav" in classes or "navfooter" in classes or "sphinxsidebar" in classes or classes == "footer":
            self.finish()
            self.in_body = False

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIP:
            self.skipping -= 1
        if re.fullmatch(r"h[1-6]", tag) and self.in_heading:
            self.heading, self.buffer, self.in_heading = clean("".join(self.buffer)), [], False
        elif tag in self.BLOCKS:
            self.paragraph()

    def handle_data(self, data: str) -> None:
        if not self.skipping and (self.in_heading or self.in_body):
            self.buffer.append(data)

    def paragraph(self) -> None:
        if not self.in_heading:
            text = clean("".join(self.buffer))
            if text and self.in_body:
                self.paragraphs.append(text)
            self.buffer = []

    def finish(self) -> None:
        self.paragraph()
        # "6.2.1. Initialising" and "Chapter 4. Tools" -> the words; Sphinx ends headings with a pilcrow link.
        heading = NUMBER.sub("", self.heading).rstrip("¶ ")
        if heading and self.anchor and not re.match(r"id-|id\d|idm\d", self.anchor):
            self.sections.setdefault(self.anchor, (heading, self.paragraphs, self.figures))
        self.anchor, self.heading, self.paragraphs, self.figures = "", "", [], []


class PageParser(HTMLParser):
    """Splits other pages at their headings. The anchor is the heading's own, that of a link in it, or of the division around it;
    a heading without one is a paragraph like others.

    Args:
        begin: id of the element that the text begins with; the whole page without one.
        skip: classes and ids of elements that are left out.
    """

    SKIP = ("script", "style", "head", "nav", "footer", "header", "svg", "button", "aside")
    BLOCKS = ("div", "p", "li", "pre", "dt", "dd", "td", "th", "section", "table")

    def __init__(self, begin: str = "", skip: frozenset[str] = frozenset()) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: Sections = {}
        self.language = ""
        """Of the page, as it says."""
        self.begin, self.skip, self.begun = begin, skip, not begin
        self.skipped, self.depth = "", 0
        self.around = ""
        self.heading_tag, self.heading_anchor, self.heading_text = "", "", [""]
        self.anchor, self.heading = "", ""
        self.paragraphs: list[str] = []
        self.buffer: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        key = values.get("id") or (values.get("name", "") if tag == "a" else "")
        if tag == "html":
            self.language = values.get("lang", "")
        if self.skipped:
            self.depth += tag == self.skipped
            return
        if tag not in VOID and (tag in self.SKIP or self.skip & {*values.get("class", "").split(), key}):
            self.skipped, self.depth = tag, 1
            return
        self.begun = self.begun or key == self.begin
        if not self.begun:
            return
        if HEADING.fullmatch(tag):
            self.paragraph()
            self.heading_tag, self.heading_anchor, self.heading_text = tag, key or self.around, []
            self.around = ""
        elif self.heading_tag:
            self.heading_anchor = self.heading_anchor or key
        elif tag in self.BLOCKS:
            self.paragraph()
            self.around = key if key not in ("", self.begin) and tag in ("div", "section") else self.around

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            self.depth -= tag == self.skipped
            self.skipped = self.skipped if self.depth else ""
        elif tag == self.heading_tag:
            self.end_heading()
        elif tag in self.BLOCKS and not self.heading_tag:
            self.paragraph()

    def handle_data(self, data: str) -> None:
        if self.begun and not self.skipped:
            (self.heading_text if self.heading_tag else self.buffer).append(data)

    def end_heading(self) -> None:
        text = NUMBER.sub("", clean("".join(self.heading_text))).rstrip("¶# ")
        self.heading_tag = ""
        if not text:
            return
        if not self.heading_anchor:
            self.paragraphs.append(text)
            return
        self.finish()
        self.anchor, self.heading = self.heading_anchor, text

    def paragraph(self) -> None:
        if text := clean("".join(self.buffer)):
            self.paragraphs.append(text)
        self.buffer = []

    def finish(self) -> None:
        self.paragraph()
        if self.heading:
            self.sections.setdefault(self.anchor, (self.heading, self.paragraphs, []))
        self.anchor, self.heading, self.paragraphs = "", "", []


def parse_page(page: Path, parser: SectionParser | PageParser) -> Sections:
    """The page's sections."""
    content = page.read_bytes()
    charset = CHARSET.search(content[:2000])
    parser.feed(content.decode(charset[1].decode("ascii") if charset else "utf-8"))
    parser.close()
    parser.finish()
    return parser.sections
