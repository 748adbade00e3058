"""Sections of manuals: headings and texts in many languages, from DocBook's and Sphinx's pages and GNOME's Mallard.

| manual | package | languages | licence |
| --- | --- | --- | --- |
| the Debian handbook | debian-handbook | 26 | CC BY-SA 3.0 (or GPL-2+) |
| GNOME's user help and administrator's guide | gnome-user-docs | 39 | CC BY-SA 3.0 |
| Python's documentation | python3.11-doc | English | PSF-2.0 |
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

MIN_SECTION_CHARACTERS = 150
MIN_SECTIONS_OF_A_LANGUAGE = 9
MAX_CHARACTERS = 6000
MALLARD = "{http://projectmallard.org/1.0/}"
CODES = {"nb": "no", "zh-cn": "zh", "zh-tw": "zh-Hant", "zh_cn": "zh", "zh_tw": "zh-Hant", "c": "en"}
"""The manuals' codes that CLDR writes otherwise."""
NO_LANGUAGES = ("pt_br", "zh_hk", "en_gb", "en_ca", "sr@latin")
"""GNOME's variants of languages that are there already."""
PYTHON_SHARE = 60
"""Per cent of the sections of Python's documentation, so that English does not outweigh all else."""
PACKAGES = ["debian-handbook", "gnome-user-docs", "python3.11-doc"]
HeldOut = Callable[..., bool]


class SectionParser(HTMLParser):
    """Splits a manual's page at its headings: anchor -> (heading, paragraphs, figures). DocBook's and Sphinx's pages."""

    SKIP = ("script", "style", "head", "nav", "footer")
    BLOCKS = ("div", "p", "li", "pre", "dt", "dd", "td", "section")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: dict[str, tuple[str, list[str], list[str]]] = {}
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
        heading = re.sub(r"^\D{0,12}?[A-Z]?\d+(\.\d+)*\.?\s+", "", self.heading).rstrip("¶ ")
        if heading and self.anchor and not re.match(r"id-|id\d|idm\d", self.anchor):
            self.sections.setdefault(self.anchor, (heading, self.paragraphs, self.figures))
        self.anchor, self.heading, self.paragraphs, self.figures = "", "", [], []


def clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def language_code(folder: str) -> str:
    lower = folder.lower()
    return CODES.get(lower) or CODES.get(re.split("[-_]", lower)[0]) or re.split("[-_]", lower)[0]


def build_sections(folders: dict[str, Path], out: Path, held_out: HeldOut) -> list[dict]:
    """A row for each section in each language: id, source, language, heading, text, held_out, and perhaps a figure."""
    (out / "figures").mkdir(exist_ok=True)
    rows = [
        *_handbook(folders["debian-handbook"], out, held_out),
        *_gnome(folders["gnome-user-docs"], held_out),
        *_python(folders["python3.11-doc"], held_out),
    ]
    counts = Counter(row["language"] for row in rows)
    return [row for row in rows if counts[row["language"]] >= MIN_SECTIONS_OF_A_LANGUAGE]


def _row(key: str, source: str, language: str, heading: str, text: str, held_out: HeldOut) -> dict:
    row = {"id": key, "source": source, "language": language, "heading": heading, "text": text[:MAX_CHARACTERS]}
    return row | {"held_out": held_out("section", key)}


def _parsed(page: Path) -> dict[str, tuple[str, list[str], list[str]]]:
    parser = SectionParser()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    parser.finish()
    return parser.sections


def _handbook(folder: Path, out: Path, held_out: HeldOut) -> list[dict]:
    html = folder / "usr" / "share" / "doc" / "debian-handbook" / "html"
    parsed: dict[str, dict[str, tuple[str, list[str], list[str]]]] = {}
    for place in sorted(html.iterdir()):
        sections = parsed.setdefault(language_code(place.name), {})
        for page in sorted(place.glob("*.html")):
            for anchor, (heading, paragraphs, figures) in _parsed(page).items():
                kept = [figure_copy(page.parent / figure, language_code(place.name), out) for figure in figures]
                sections.setdefault(anchor, (heading, paragraphs, [figure for figure in kept if figure]))
    rows, english = [], parsed["en"]
    for language, sections in parsed.items():
        for anchor, (heading, paragraphs, figures) in sections.items():
            text = " ".join(paragraphs)
            if len(text) < MIN_SECTION_CHARACTERS:
                continue
            if language != "en":
                # Many translations are partial: a section that is mostly English still is left out.
                original = set(english.get(anchor, ("", [], []))[1])
                if heading == english.get(anchor, ("", [], []))[0]:
                    continue
                if sum(len(p) for p in paragraphs if p in original) > 0.3 * len(text):
                    continue
            row = _row(f"handbook/{anchor}", "handbook", language, heading, text, held_out)
            rows.append(row | ({"figure": figures[0]} if figures else {}))
    return rows


def _gnome(folder: Path, held_out: HeldOut) -> list[dict]:
    parsed: dict[str, dict[str, tuple[str, str]]] = {}
    for place in sorted((folder / "usr" / "share" / "help").iterdir()):
        if place.name.lower() in NO_LANGUAGES:
            continue
        for file in sorted(place.glob("*/*.page")):
            _walk(ET.parse(file).getroot(), f"gnome/{file.parent.name}/{file.stem}", language_code(place.name), parsed)
    rows = []
    for key, by_language in parsed.items():
        english = by_language.get("en")
        for language, (heading, text) in by_language.items():
            is_english = english is not None and (heading == english[0] or text[:200] == english[1][:200])
            if len(text) >= MIN_SECTION_CHARACTERS and (language == "en" or not is_english):
                rows.append(_row(key, "gnome", language, heading, text, held_out))
    return rows


def _walk(element: ET.Element, key: str, language: str, into: dict[str, dict[str, tuple[str, str]]]) -> None:
    """A page or a section of Mallard, and the sections in it."""
    title = element.find(f"{MALLARD}title")
    if title is not None:
        own = [child for child in element if child.tag != f"{MALLARD}section"]
        paragraphs = [_text(p) for child in own for p in child.iter() if p.tag == f"{MALLARD}p"]
        into.setdefault(key, {})[language] = (_text(title), " ".join(filter(None, paragraphs)))
    for number, section in enumerate(element.findall(f"{MALLARD}section")):
        _walk(section, f"{key}#{section.get('id') or number}", language, into)


def _text(element: ET.Element) -> str:
    return clean("".join(element.itertext()))


def _python(folder: Path, held_out: HeldOut) -> list[dict]:
    rows = []
    for page in sorted(folder.rglob("*.html")):
        if (
            page.is_symlink()
            or "whatsnew" in str(page)
            or page.name in ("search.html", "contents.html")
            or "genindex" in page.name
        ):
            continue
        for anchor, (heading, paragraphs, _) in _parsed(page).items():
            key, text = f"python/{page.stem}#{anchor}", " ".join(paragraphs)
            if len(text) >= MIN_SECTION_CHARACTERS and zlib.crc32(key.encode()) % 100 < PYTHON_SHARE:
                rows.append(_row(key, "python", "en", heading, text, held_out))
    return rows


def figure_copy(path: Path, language: str, out: Path) -> str | None:
    if not path.exists():
        return None
    name = f"figures/{language}-{path.name}"
    if not (out / name).exists():
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((280, 280), Image.Resampling.LANCZOS)
        picture.save(out / name)
    return name
