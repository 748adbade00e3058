"""Fetch the material of m0-nano from package registries by name and lay it out for training and evaluation.

    python scripts/build_nano_data.py [--out build/nano-data]

| package | registry | what is taken | licence |
| --- | --- | --- | --- |
| emoji-datasource-google 16.0.0 | npm | Noto emoji pictures, 64 px | Apache-2.0 (pictures), MIT (data) |
| cldr-annotations-full 48.2.0 | npm | names and keywords of emoji | Unicode-3.0 |
| debian-handbook | Debian | headings and sections, 26 languages | GPL-2+ or CC BY-SA 3.0 |

Needs `npm`, `apt-get` and `dpkg-deb` on the PATH. Writes, under --out:

    emoji/*.png        the pictures
    emoji.jsonl        {"emoji", "image", "category", "names": {language: name}, "keywords": {language: [...]}, "held_out": [language...]}
    sections.jsonl     {"id", "language", "heading", "text", "held_out"}

Held out, by a hash of the id with a fixed seed, so that the split does not move when material is added: in every language
the names of a tenth of the emoji (their keywords stay in training), and a tenth of the handbook's sections, whole, in all
languages at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path

NPM_PACKAGES = {"emoji": "emoji-datasource-google@16.0.0", "cldr": "cldr-annotations-full@48.2.0"}
DEBIAN_PACKAGE = "debian-handbook"
HELD_OUT_SHARE = 0.10
SPLIT_SEED = "m0-nano split 1"
# The handbook's languages and others that many people write; CLDR locale codes.
LANGUAGES = """
    ar bg bn ca cs da de el en es fa fi fr he hi hr hu id it ja ko no nl pl pt ro ru sv ta th tr uk ur vi zh zh-Hant
""".split()
MIN_SECTION_CHARACTERS = 150


def held_out(*parts: str) -> bool:
    digest = hashlib.sha256("\x1f".join((SPLIT_SEED, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is needed to fetch the packages and is not on the PATH.")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"'{' '.join(command)}' failed:\n{result.stderr[-2000:]}")


def fetch(work: Path) -> dict[str, Path]:
    """Download and unpack the packages once; returns the folder of each."""
    folders = {}
    for name, package in NPM_PACKAGES.items():
        folders[name] = folder = work / name
        if not (folder / "package").exists():
            folder.mkdir(parents=True, exist_ok=True)
            run(["npm", "pack", package], folder)
            with tarfile.open(next(folder.glob("*.tgz"))) as archive:
                members = [m for m in archive.getmembers() if not re.search(r"img/google/sheets", m.name)]
                archive.extractall(folder, members=members, filter="data")
    folders["handbook"] = folder = work / "handbook"
    if not (folder / "usr").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(["apt-get", "download", DEBIAN_PACKAGE], folder)
        run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "."], folder)
    return folders


def build_emoji(folders: dict[str, Path], out: Path) -> list[dict]:
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, list[str]]] = {}
    for language in LANGUAGES:
        path = folders["cldr"] / "package" / "annotations" / language / "annotations.json"
        for emoji, entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"].items():
            if entry.get("tts"):
                names.setdefault(emoji, {})[language] = entry["tts"][0]
            if entry.get("default"):
                keywords.setdefault(emoji, {})[language] = entry["default"]
    source = folders["emoji"] / "package"
    (out / "emoji").mkdir(parents=True, exist_ok=True)
    rows = []
    for entry in json.loads((source / "emoji.json").read_text(encoding="utf-8")):
        emoji = "".join(chr(int(code, 16)) for code in entry["unified"].split("-")).replace("\ufe0f", "")
        picture = source / "img" / "google" / "64" / entry["image"]
        if emoji not in names or not picture.exists():
            continue
        shutil.copyfile(picture, out / "emoji" / entry["image"])
        row = {
            "emoji": emoji,
            "image": f"emoji/{entry['image']}",
            "category": entry["category"],
            "names": names[emoji],
            "keywords": keywords.get(emoji, {}),
        }
        row["held_out"] = [language for language in names[emoji] if held_out("emoji", emoji, language)]
        rows.append(row)
    return rows


class SectionParser(HTMLParser):
    """Splits a handbook page at its headings: (anchor id, heading, paragraphs)."""

    SKIP = ("script", "style", "head")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[tuple[str, str, list[str]]] = []
        self.anchor, self.heading, self.paragraphs = "", "", []  # type: ignore[var-annotated]
        self.in_heading = self.in_body = False
        self.skipping = 0
        self.buffer: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in self.SKIP:
            self.skipping += 1
        if re.fullmatch(r"h[1-6]", tag) and values.get("class") == "title":
            self.finish()
            self.in_heading, self.in_body = True, True
        elif self.in_heading and tag == "a" and values.get("id"):
            self.anchor = values["id"] or ""
        elif tag in ("div", "p", "li", "pre", "dt", "dd", "td"):
            self.paragraph()
        if tag in ("ul", "ol") and "docnav" in (values.get("class") or ""):
            self.finish()
            self.in_body = False

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIP:
            self.skipping -= 1
        if re.fullmatch(r"h[1-6]", tag) and self.in_heading:
            self.heading, self.buffer, self.in_heading = clean("".join(self.buffer)), [], False
        elif tag in ("div", "p", "li", "pre", "dt", "dd", "td"):
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
        if self.heading and self.anchor:
            self.sections.append((self.anchor, self.heading, self.paragraphs))
        self.anchor, self.heading, self.paragraphs = "", "", []


def clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def build_sections(folders: dict[str, Path]) -> list[dict]:
    html = folders["handbook"] / "usr" / "share" / "doc" / "debian-handbook" / "html"
    parsed: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for folder in sorted(html.iterdir()):
        sections: dict[str, tuple[str, list[str]]] = {}
        for page in sorted(folder.glob("*.html")):
            parser = SectionParser()
            parser.feed(page.read_text(encoding="utf-8"))
            parser.close()
            parser.finish()
            for anchor, heading, paragraphs in parser.sections:
                heading = re.sub(r"^\D{0,12}?[A-Z]?\d+(\.\d+)*\.?\s+", "", heading)  # "6.2.1. Initialising" -> "Initialising"
                if not anchor.startswith("id-") and heading:
                    sections.setdefault(anchor, (heading, paragraphs))
        parsed[folder.name] = sections
    english = parsed["en-US"]
    rows = []
    for language, sections in parsed.items():
        for anchor, (heading, paragraphs) in sections.items():
            text = " ".join(paragraphs)
            if len(text) < MIN_SECTION_CHARACTERS:
                continue
            if language != "en-US":
                # Many translations are partial: a section that is mostly English still is left out.
                original = set(english.get(anchor, ("", []))[1])
                if heading == english.get(anchor, ("", []))[0]:
                    continue
                if sum(len(p) for p in paragraphs if p in original) > 0.3 * len(text):
                    continue
            rows.append(
                {"id": anchor, "language": language, "heading": heading, "text": text, "held_out": held_out("section", anchor)}
            )
    return rows


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--packages", type=Path, help="where to keep the unpacked packages (default: OUT/packages)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folders = fetch((options.packages or options.out / "packages").resolve())
    emoji, sections = build_emoji(folders, options.out), build_sections(folders)
    write(options.out / "emoji.jsonl", emoji)
    write(options.out / "sections.jsonl", sections)
    languages = {row["language"] for row in sections}
    print(f"{len(emoji)} emoji in {len(LANGUAGES)} languages, {sum(len(row['held_out']) for row in emoji)} names held out")
    print(f"{len(sections)} sections in {len(languages)} languages, {sum(row['held_out'] for row in sections)} held out")


if __name__ == "__main__":
    main()
