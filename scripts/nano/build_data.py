"""Fetch the material of m0-nano from package registries by name and lay it out for training and evaluation.

    PYTHONPATH=scripts python -m nano.build_data [--out build/nano-data] [--only fonts sections …]

`README.md` lists the packages, what is taken of each and its licence; `sources/` holds a module for each kind of material. Needs
`npm`, `node`, `apt-get` and `dpkg-deb` on the PATH. Writes, under --out:

    emoji/**/*.png             the pictures of three makers
    emoji.jsonl                {"emoji", "image", "images": {maker: file}, "category", "names": {language: name},
                               "keywords": {language: [...]}, "held_out": [language...]}
    sections.jsonl             {"id", "source", "language", "heading", "text", "licence", "held_out", "figure"?}
    sections-libreoffice.jsonl the same, for evaluation alone
    fonts.jsonl                {"file", "index", "family", "style", "scripts", "vietnamese"?, "held_out", "licence"}
    figures/*.png              figures of the handbook
    clipart/*.png              drawings, at most 112 px
    clipart.jsonl              {"image", "name", "folder", "held_out"}
    code.jsonl                 {"id", "query", "code", "held_out"}

Held out, by a hash of the id with a fixed seed, so that the split does not move when material is added: in every language
the names of a tenth of the emoji (their keywords stay in training), a tenth of the sections, whole, in all languages at
once; two families of type; all pictures of the maker "fluent"; a tenth of the drawings' names with every drawing of that name;
a tenth of the functions.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from nano.sources import clipart, code, emoji, manuals, typefaces
from nano.sources.packages import fetch

DEBIAN_PACKAGES = [*typefaces.PACKAGES, *manuals.PACKAGES, clipart.PACKAGE]
KINDS = {
    "fonts": lambda folders, out: typefaces.list_faces(folders, out.resolve()),
    "sections": manuals.build_sections,
    "sections-libreoffice": lambda folders, _: manuals.build_libreoffice(folders),
    "emoji": emoji.build_emoji,
    "clipart": clipart.build_clipart,
    "code": lambda *_: code.build_code(),
}


def write(path: Path, rows: list[dict]) -> None:
    """The file is there as a whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def describe(name: str, rows: list[dict]) -> str:
    """Counts by what rows have: source, licence, language."""
    lines = [f"{name}: {len(rows)} rows, {sum(bool(row['held_out']) for row in rows)} held out wholly or in part"]
    for key in ("source", "licence", "language"):
        if counts := Counter(row[key] for row in rows if key in row):
            lines.append(f"  by {key}: " + ", ".join(f"{value} {count}" for value, count in counts.most_common()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--packages", type=Path, help="where to keep the unpacked packages (default: OUT/packages)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="write these files only")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folders = fetch((options.packages or options.out / "packages").resolve(), DEBIAN_PACKAGES)
    for name in options.only:
        rows = KINDS[name](folders, options.out)
        write(options.out / f"{name}.jsonl", rows)
        print(describe(name, rows), flush=True)


if __name__ == "__main__":
    main()
