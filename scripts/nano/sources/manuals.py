"""Sections of manuals: headings and texts in many languages. README.md lists the packages and their licences."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from pathlib import Path

from nano.sources.html import PageParser, SectionParser, Sections, parse_page
from nano.sources.mallard import Translations, read_help
from nano.sources.splitting import LANGUAGES, held_out, language_code
from PIL import Image

MIN_SECTION_CHARACTERS = 150
MIN_CHARACTERS_WITHOUT_BLANKS = 60
WITHOUT_BLANKS = ("ja", "ko", "zh", "zh-Hant")
"""Languages whose characters say as much as several letters; the lower limit is theirs."""
MIN_SECTIONS_OF_A_LANGUAGE = 9
MAX_CHARACTERS = 6000
MAX_SAME_HEADINGS = 5
"""Sections of a language under one heading; "Description" and "When to use" say nothing of what follows."""
MAX_ENGLISH_SHARE = 0.3
"""Of a translation's characters, that are in paragraphs left in English."""
ENGLISH_WORDS = frozenset("the and that this with which you from these can your not have will it has they when".split())
MAX_ENGLISH_WORDS = 0.05
"""Of a translation's words, that are these; English texts have three times as many."""
WORD = re.compile(r"[^\W\d_]+")
CC_BY_SA_3, CC_BY_SA_4 = "CC-BY-SA-3.0", "CC-BY-SA-4.0"
GNOME = {
    "gnome-user-docs": CC_BY_SA_3,
    "evolution-common": CC_BY_SA_3,
    "gnome-calculator": CC_BY_SA_3,
    "cheese-common": CC_BY_SA_3,
    "epiphany-browser-data": CC_BY_SA_3,
    "gnome-logs": CC_BY_SA_3,
    "quadrapassel": CC_BY_SA_3,
    "gnome-sudoku": CC_BY_SA_3,
    "five-or-more": CC_BY_SA_3,
    "four-in-a-row": CC_BY_SA_3,
    "gnome-mahjongg": CC_BY_SA_3,
    "gnome-mines": CC_BY_SA_3,
    "gnome-nibbles": CC_BY_SA_3,
    "gnome-tetravex": CC_BY_SA_3,
    "hitori": CC_BY_SA_3,
    "iagno": CC_BY_SA_3,
    "lightsoff": CC_BY_SA_3,
    "gnome-boxes": CC_BY_SA_3,
    "gnome-dictionary": CC_BY_SA_3,
    "gthumb-data": CC_BY_SA_3,
    "accerciser": CC_BY_SA_3,
    "gnome-taquin": CC_BY_SA_4,
    "swell-foop": CC_BY_SA_4,
    "deja-dup": CC_BY_SA_4,
}
"""Packages with help in Mallard whose licence is Creative Commons' by debian/copyright or the help's own legal.xml."""
GTHUMB_LANGUAGES = ("C", "de", "es", "sv")
"""Those of gthumb's help that debian/copyright names with this licence."""
GNOME_DEVEL = {"hig": CC_BY_SA_4, "gnome-devel-demos": CC_BY_SA_3, "platform-overview": CC_BY_SA_3}
GNOME_DEVEL["programming-guidelines"] = CC_BY_SA_3
KICAD = [f"kicad-doc-{language}" for language in "ca de en es fr id it ja pl ru zh".split()]
APACHE_SKIP = frozenset("toplang bottomlang up top path quickview page-header footer comments_section permalink toc".split())
ENGLISH = {
    "python3.11-doc": ("python", "PSF-2.0"),
    "postgresql-doc-15": ("postgresql", "PostgreSQL"),
    "sqlite3-doc": ("sqlite", "Public-Domain"),
    "nodejs-doc": ("nodejs", "MIT"),
}
"""Packages in English alone: name of the source, licence."""
SHARES = {"python": 60, "postgresql": 60, "sqlite": 60, "nodejs": 35, "apache": 70}
"""Per cent of these sources' sections that are taken, so that English does not outweigh all else."""
LIBREOFFICE = "en-us de fr es ru el pl tr ja zh-cn cs ko".split()
LIBREOFFICE_PAGES = 8
"""Per cent of its pages: it serves for evaluation alone."""
PACKAGES = [
    *("debian-handbook", *GNOME, "gnome-devel-docs", "apache2-doc", *KICAD, *ENGLISH),
    *(f"libreoffice-help-{language}" for language in LIBREOFFICE),
]


def build_sections(folders: dict[str, Path], out: Path) -> list[dict]:
    """A row for each section in each language: id, source, language, heading, text, licence, held_out, and perhaps a figure."""
    (out / "figures").mkdir(exist_ok=True)
    rows = handbook(folders["debian-handbook"], out)
    for package, licence in GNOME.items():
        found = read_help(folders[package], languages=GTHUMB_LANGUAGES if package == "gthumb-data" else ())
        rows += translated_rows(found, "gnome", licence)
    for document, licence in GNOME_DEVEL.items():
        rows += translated_rows(read_help(folders["gnome-devel-docs"], (document,)), "gnome", licence)
    rows += translated_rows(apache(folders["apache2-doc"]), "apache", "Apache-2.0")
    rows += translated_rows(kicad(folders), "kicad", CC_BY_SA_3)
    for package, (source, licence) in ENGLISH.items():
        rows += english_rows(folders[package], source, licence)
    return without_repetitions(rows)


def without_repetitions(rows: list[dict]) -> list[dict]:
    """Rows of known languages that have several; of two that begin alike the first, and none of those under one heading of many."""
    seen: set[tuple[str, str]] = set()
    headings = Counter((row["language"], row["heading"].casefold()) for row in rows)
    kept = []
    for row in rows:
        beginning = (row["language"], row["text"][:200].casefold())
        common = headings[row["language"], row["heading"].casefold()] > MAX_SAME_HEADINGS
        if row["language"] in (*LANGUAGES, "as") and beginning not in seen and not common:
            seen.add(beginning)
            kept.append(row)
    counts = Counter(row["language"] for row in kept)
    return [row for row in kept if counts[row["language"]] >= MIN_SECTIONS_OF_A_LANGUAGE]


def make_row(key: str, source: str, language: str, heading: str, text: str, licence: str) -> dict | None:
    """None: too short to be asked for."""
    if len(text) < (MIN_CHARACTERS_WITHOUT_BLANKS if language in WITHOUT_BLANKS else MIN_SECTION_CHARACTERS):
        return None
    row = {"id": key, "source": source, "language": language, "heading": heading, "text": text[:MAX_CHARACTERS]}
    return row | {"licence": licence, "held_out": held_out("section", key)}


def is_taken(key: str, per_cent: int) -> bool:
    """A fixed choice of so many per cent."""
    return zlib.crc32(key.encode()) % 100 < per_cent


def is_english_still(paragraphs: list[str], english: list[str]) -> bool:
    """Many translations are partial: whether a section is in large part English, by its English original and by its words."""
    original = set(english)
    left = sum(len(paragraph) for paragraph in paragraphs if paragraph in original)
    if left > MAX_ENGLISH_SHARE * sum(map(len, paragraphs)):
        return True
    words = [word for paragraph in paragraphs for word in WORD.findall(paragraph.lower())]
    return sum(word in ENGLISH_WORDS for word in words) > MAX_ENGLISH_WORDS * len(words)


def translated_rows(found: Translations, source: str, licence: str) -> list[dict]:
    rows = []
    for key, by_language in found.items():
        for language, (heading, paragraphs) in by_language.items():
            english = by_language.get("en", ("", []))
            if language != "en" and is_english_still(paragraphs, english[1]):
                continue
            if language != "en" and source == "gnome" and heading == english[0]:
                continue
            rows.append(make_row(key, source, language, heading, " ".join(paragraphs), licence))
    return [row for row in rows if row]


# --- single manuals -----------------------------------------------------------------------------------------------


def handbook(folder: Path, out: Path) -> list[dict]:
    html = folder / "usr" / "share" / "doc" / "debian-handbook" / "html"
    parsed: dict[str, Sections] = {}
    for place in sorted(html.iterdir()):
        sections = parsed.setdefault(language_code(place.name), {})
        for page in sorted(place.glob("*.html")):
            for anchor, (heading, paragraphs, figures) in parse_page(page, SectionParser()).items():
                kept = [figure_copy(page.parent / figure, language_code(place.name), out) for figure in figures]
                sections.setdefault(anchor, (heading, paragraphs, [figure for figure in kept if figure]))
    rows = []
    for language, sections in parsed.items():
        for anchor, (heading, paragraphs, figures) in sections.items():
            english = parsed["en"].get(anchor, ("", [], []))
            if language != "en" and (heading == english[0] or is_english_still(paragraphs, english[1])):
                continue
            row = make_row(f"handbook/{anchor}", "handbook", language, heading, " ".join(paragraphs), CC_BY_SA_3)
            if row:
                rows.append(row | ({"figure": figures[0]} if figures else {}))
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


def apache(folder: Path) -> Translations:
    """Pages that say that they are in the language of their folder: the others are English."""
    manual = folder / "usr" / "share" / "doc" / "apache2-doc" / "manual"
    found: Translations = {}
    for place in sorted(place for place in manual.iterdir() if place.is_dir() and place.name not in ("images", "style")):
        for page in sorted(place.rglob("*.html")):
            parser = PageParser("page-content", APACHE_SKIP)
            sections = parse_page(page, parser)
            if language_code(parser.language) != language_code(place.name):
                continue
            for anchor, (heading, paragraphs, _) in sections.items():
                key = f"apache/{page.relative_to(place).with_suffix('').as_posix()}#{anchor}"
                if is_taken(key, SHARES["apache"]):
                    found.setdefault(key, {})[language_code(place.name)] = (heading, paragraphs)
    return found


def kicad(folders: dict[str, Path]) -> Translations:
    """Anchors are translated with the headings: sections are joined by their order where a translation has as many of them."""
    found: Translations = {}
    pages = {
        package.rpartition("-")[2]: {page.stem: page for page in sorted(folders[package].rglob("*.html"))} for package in KICAD
    }
    for name, english_page in pages["en"].items():
        english = list(_kicad_page(english_page).items())
        for language, own in pages.items():
            sections = list(_kicad_page(own[name]).values()) if name in own else []
            if len(sections) == len(english):
                for (anchor, _), (heading, paragraphs, _) in zip(english, sections, strict=True):
                    found.setdefault(f"kicad/{name}#{anchor}", {})[language] = (heading, paragraphs)
    return found


def _kicad_page(page: Path) -> Sections:
    return parse_page(page, PageParser("content", frozenset(("toc", "footer"))))


def english_rows(folder: Path, source: str, licence: str) -> list[dict]:
    """A fixed part of a manual's sections."""
    rows = []
    for page in english_pages(folder, source):
        parser = {
            "python": SectionParser,
            "postgresql": lambda: PageParser("", frozenset(("navheader", "navfooter", "toc", "indexterm"))),
            "sqlite": lambda: PageParser("", frozenset(("nosearch", "toc", "fancy_toc", "startsearch"))),
            "nodejs": lambda: PageParser("apicontent", frozenset(("api_metadata", "changelog", "srclink", "toc"))),
        }[source]()
        for anchor, (heading, paragraphs, _) in parse_page(page, parser).items():
            key = f"{source}/{page.stem}#{anchor}"
            if is_taken(key, SHARES[source]) and not re.match(r"id-\d", anchor):
                rows.append(make_row(key, source, "en", heading, " ".join(paragraphs), licence))
    return [row for row in rows if row]


def english_pages(folder: Path, source: str) -> list[Path]:
    left_out = re.compile(r"whatsnew|genindex|search\.html|contents\.html|release-|bookindex|changelog|/releaselog/|/all\.html")
    pages = [page for page in sorted(folder.rglob("*.html")) if not page.is_symlink()]
    return [page for page in pages if not left_out.search(page.as_posix())]


def build_libreoffice(folders: dict[str, Path]) -> list[dict]:
    """Rows of LibreOffice's help: for evaluation, as another kind of text. Under the MPL 2.0: nothing is trained on it."""
    found: Translations = {}
    for name in LIBREOFFICE:
        [texts] = (folders[f"libreoffice-help-{name}"] / "usr" / "share" / "libreoffice" / "help").glob("*/text")
        for page in sorted(texts.rglob("*.html")):
            key = f"libreoffice/{page.relative_to(texts).with_suffix('').as_posix()}"
            if not is_taken(key, LIBREOFFICE_PAGES):
                continue
            sections = parse_page(page, PageParser("DisplayArea", frozenset(("howtoget", "MAC", "relatedtopics"))))
            for anchor, (heading, paragraphs, _) in sections.items():
                found.setdefault(f"{key}#{anchor}", {})[language_code(name)] = (heading, paragraphs)
    rows = translated_rows(found, "libreoffice", "MPL-2.0")
    return without_repetitions([row | {"held_out": True} for row in rows])
