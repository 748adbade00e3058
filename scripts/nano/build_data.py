"""Fetch the material of m0-nano from package registries by name and lay it out for training and evaluation.

    PYTHONPATH=scripts python -m nano.build_data [--out build/nano-data]

| package | registry | what is taken | licence |
| --- | --- | --- | --- |
| emoji-datasource-google 16.0.0 | npm | Noto emoji pictures, 64 px | Apache-2.0 (pictures), MIT (data) |
| cldr-annotations-full 48.2.0 | npm | names and keywords of emoji, 72 languages | Unicode-3.0 |
| debian-handbook | Debian | headings, sections and figures, 26 languages | CC BY-SA 3.0 (or GPL-2+) |
| gnome-user-docs | Debian | headings and sections, 39 languages | CC BY-SA 3.0 |
| python3.11-doc | Debian | headings and sections | PSF-2.0 |
| openclipart-png | Debian | drawings with their names | public domain (CC0) |
| fonts-noto-core, -noto-cjk, -dejavu-core, -liberation2, -lato, -roboto-unhinted, -ebgaramond, -cantarell, -open-sans, -linuxlibertine | Debian | type for page pictures (not distributed) | OFL-1.1; Roboto Apache-2.0; DejaVu the Bitstream Vera licence |
| Python's standard library | the running Python | docstrings and functions | PSF-2.0 |

Needs `npm`, `apt-get` and `dpkg-deb` on the PATH. Writes, under --out:

    emoji/*.png        the pictures
    emoji.jsonl        {"emoji", "image", "category", "names": {language: name}, "keywords": {language: [...]}, "held_out": [language...]}
    sections.jsonl     {"id", "source", "language", "heading", "text", "figure"?, "held_out"}
    fonts.jsonl        {"file", "index", "family", "style", "scripts", "vietnamese"?, "held_out"}
    figures/*.png      figures of the handbook
    clipart/*.png      drawings, at most 112 px
    clipart.jsonl      {"image", "name", "folder", "held_out"}
    code.jsonl         {"id", "query", "code", "held_out"}

Held out, by a hash of the id with a fixed seed, so that the split does not move when material is added: in every language
the names of a tenth of the emoji (their keywords stay in training), a tenth of the sections, whole, in all languages at
once; two families of type; a tenth of the drawings' names with every drawing of that name; a tenth of the functions.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

from nano import manuals, typefaces
from nano.manuals import clean
from PIL import Image

NPM_PACKAGES = {"emoji": "emoji-datasource-google@16.0.0", "cldr": "cldr-annotations-full@48.2.0"}
DEBIAN_PACKAGES = [*manuals.PACKAGES, "openclipart-png", *typefaces.PACKAGES]
HELD_OUT_SHARE = 0.10
SPLIT_SEED = "m0-nano split 1"
# The manuals' languages and others that many people write; CLDR locale codes.
LANGUAGES = """
    af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fil fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko
    lt lv mk ml mn mr ms my ne nl no pa pl pt ro ru si sk sl sq sr sv sw ta te th tr uk ur uz vi zh zh-Hant
""".split()
MAX_DRAWINGS_OF_A_NAME = 4
DRAWING_SIDE = 112
NO_DRAWINGS = re.compile(r"/(special|unsorted/patterns)/|shapes/stars/star_\d|shapes/flowchart")


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
    for name in DEBIAN_PACKAGES:
        folders[name] = folder = work / name
        if not (folder / "usr").exists():
            folder.mkdir(parents=True, exist_ok=True)
            run(["apt-get", "download", name], folder)
            run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "."], folder)
    return folders


# --- emoji ------------------------------------------------------------------------------------------------------------


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


# --- drawings ---------------------------------------------------------------------------------------------------------


def build_clipart(folders: dict[str, Path], out: Path) -> list[dict]:
    source = folders["openclipart-png"] / "usr" / "share" / "openclipart" / "png"
    files = sorted(path for path in source.rglob("*.png") if not NO_DRAWINGS.search(path.as_posix()))
    words = {path: re.sub(r"([a-z])([A-Z])", r"\1 \2", path.stem).replace("-", " - ") for path in files}
    parts = {path: [w for w in re.split(r"[\s_.]+", text.lower()) if w] for path, text in words.items()}
    # Many file names end in the author and a number: endings that many differently named files share are authors.
    endings: Counter[tuple[str, ...]] = Counter()
    starts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for some in parts.values():
        if some and re.fullmatch(r"\d+|", some[-1]):
            for length in (1, 2, 3):
                ending = tuple(some[-1 - length : -1])
                if len(some) > length + 1 and len(ending) == length:
                    endings[ending] += 1
                    starts[ending].add(some[0])
    authors = {ending for ending, count in endings.items() if count >= 4 and len(starts[ending]) >= 4}
    (out / "clipart").mkdir(exist_ok=True)
    rows, count = [], Counter()
    for path in files:
        some = parts[path]
        if some and re.fullmatch(r"\d+", some[-1]):
            some = some[:-1]
            for length in (3, 2, 1):
                if len(some) > length and tuple(some[-length:]) in authors:
                    some = some[:-length]
                    break
        some = [word for word in some if word != "-" and not re.fullmatch(r"\d+|r|l|01|architetto|franc|by|netalloy", word)]
        name = " ".join(some)
        if not re.search(r"[a-z]{3}", name) or count[name] >= MAX_DRAWINGS_OF_A_NAME:
            continue
        try:
            picture = Image.open(path)
            if picture.width * picture.height > 20_000_000:
                continue
            picture = picture.convert("RGBA")
        except (OSError, Image.DecompressionBombError):
            continue
        box = picture.getbbox()
        if box is None or picture.getextrema()[3][1] == 0:
            continue
        count[name] += 1
        picture = picture.crop(box)
        picture.thumbnail((DRAWING_SIDE, DRAWING_SIDE), Image.Resampling.LANCZOS)
        if max(picture.size) > 4 * min(picture.size):
            continue
        image = f"clipart/{len(rows):05d}.png"
        picture.save(out / image)
        folder = path.parent.relative_to(source).as_posix()
        rows.append({"image": image, "name": name, "folder": folder, "held_out": held_out("clipart", name)})
    return rows


# --- code -------------------------------------------------------------------------------------------------------------


def build_code() -> list[dict]:
    rows, seen = [], set()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library).with_suffix("").as_posix().replace("/", ".")
        if re.search(r"site-packages|(^|\.)(test|tests|idlelib|lib2to3)\b", module):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or len(node.body) < 2 or not (docstring := ast.get_docstring(node)):
                continue
            query = clean(docstring.split("\n\n")[0])[:150]
            if len(query) < 15 or query in seen:
                continue
            seen.add(query)
            node.body = node.body[1:]
            name = f"{module}.{node.name}"
            rows.append({"id": name, "query": query, "code": ast.unparse(node)[:600], "held_out": held_out("code", query)})
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
    emoji, sections = build_emoji(folders, options.out), manuals.build_sections(folders, options.out, held_out)
    faces = typefaces.list_faces(folders, options.out.resolve())
    clipart, code = build_clipart(folders, options.out), build_code()
    for name, rows in (("emoji", emoji), ("sections", sections), ("clipart", clipart), ("code", code), ("fonts", faces)):
        write(options.out / f"{name}.jsonl", rows)
    languages = {row["language"] for row in sections}
    print(f"{len(emoji)} emoji in {len(LANGUAGES)} languages, {sum(len(row['held_out']) for row in emoji)} names held out")
    for what, rows in (("sections", sections), ("drawings", clipart), ("functions", code)):
        print(f"{len(rows)} {what}, {sum(row['held_out'] for row in rows)} held out")
    print(f"sections in {len(languages)} languages: {', '.join(sorted(languages))}")


if __name__ == "__main__":
    main()
