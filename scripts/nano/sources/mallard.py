"""Sections of GNOME's help: pages of Mallard, joined across languages by the names of page and section."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from nano.sources.splitting import clean, language_code

MALLARD = "{http://projectmallard.org/1.0/}"
VARIANTS = ("pt_br", "zh_hk")
"""Read after the others: they fill in where Portuguese of Portugal and Chinese of Taiwan have no translation."""
NO_LANGUAGES = ("en_gb", "en_ca")
"""English again. Variants with an @, such as Serbian in Latin letters, are left out as well."""
Translations = dict[str, dict[str, tuple[str, list[str]]]]
"""Id of the section: language: heading, paragraphs."""


def read_help(folder: Path, documents: tuple[str, ...] = (), languages: tuple[str, ...] = ()) -> Translations:
    """Every section under FOLDER/usr/share/help, of these documents and languages only if any are named."""
    parsed: Translations = {}
    places = sorted(
        (folder / "usr" / "share" / "help").iterdir(), key=lambda place: (place.name.lower() in VARIANTS, place.name)
    )
    for place in places:
        if place.name.lower() in NO_LANGUAGES or "@" in place.name or (languages and place.name not in languages):
            continue
        for file in sorted(place.glob("*/*.page")):
            if not documents or file.parent.name in documents:
                _walk(ET.parse(file).getroot(), f"gnome/{file.parent.name}/{file.stem}", language_code(place.name), parsed)
    return parsed


def _walk(element: ET.Element, key: str, language: str, into: Translations) -> None:
    """A page or a section of Mallard, and the sections in it."""
    title = element.find(f"{MALLARD}title")
    if title is not None:
        own = [child for child in element if child.tag not in (f"{MALLARD}section", f"{MALLARD}info")]
        paragraphs = [_text(p) for child in own for p in child.iter() if p.tag == f"{MALLARD}p"]
        into.setdefault(key, {}).setdefault(language, (_text(title), list(filter(None, paragraphs))))
    for number, section in enumerate(element.findall(f"{MALLARD}section")):
        _walk(section, f"{key}#{section.get('id') or number}", language, into)


def _text(element: ET.Element) -> str:
    return clean("".join(element.itertext()))
