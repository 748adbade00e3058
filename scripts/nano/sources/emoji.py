"""Emoji: pictures of three makers, names and keywords in 72 languages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nano.sources.packages import run
from nano.sources.splitting import LANGUAGES, held_out

SIDE = 72
"""Of pictures that are drawn from SVG, in pixels."""
DRAWINGS = {"openmoji": ("openmoji", "package/color/svg"), "fluent": ("fluent", "package/assets")}
"""Maker: package and folder of its drawings. Fluent is the maker that training never sees."""
DRAW = """
const { Resvg } = require("@resvg/resvg-js"), fs = require("fs");
for (const [from, to, side] of JSON.parse(fs.readFileSync(0))) {
  const drawing = new Resvg(fs.readFileSync(from), { fitTo: { mode: "width", value: side }, font: { loadSystemFonts: false } });
  fs.writeFileSync(to, drawing.render().asPng());
}
"""


def build_emoji(folders: dict[str, Path], out: Path) -> list[dict]:
    """A row for each emoji of Noto that CLDR names: emoji, image, images, category, names, keywords, held_out."""
    names, keywords = read_names(folders["cldr"])
    source = folders["emoji"] / "package"
    (out / "emoji").mkdir(parents=True, exist_ok=True)
    drawings = {maker: list_drawings(folders[package] / place) for maker, (package, place) in DRAWINGS.items()}
    rows, to_draw = [], []
    for entry in json.loads((source / "emoji.json").read_text(encoding="utf-8")):
        emoji = "".join(chr(int(code, 16)) for code in entry["unified"].split("-")).replace("\ufe0f", "")
        picture = source / "img" / "google" / "64" / entry["image"]
        if emoji not in names or not picture.exists():
            continue
        shutil.copyfile(picture, out / "emoji" / entry["image"])
        images = {"noto": f"emoji/{entry['image']}"}
        for maker, files in drawings.items():
            if file := files.get(code_of(entry["unified"])):
                images[maker] = f"emoji/{maker}/{code_of(entry['unified'])}.png"
                if not (out / images[maker]).exists():
                    to_draw.append([str(file), str((out / images[maker]).resolve()), SIDE])
        row = {"emoji": emoji, "image": images["noto"], "images": images, "category": entry["category"]}
        row |= {"names": names[emoji], "keywords": keywords.get(emoji, {})}
        row["held_out"] = [language for language in names[emoji] if held_out("emoji", emoji, language)]
        rows.append(row)
    for maker in drawings:
        (out / "emoji" / maker).mkdir(exist_ok=True)
    if to_draw:
        run(["node", "-e", DRAW], folders["rasterizer"], json.dumps(to_draw))
    return rows


def read_names(cldr: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, list[str]]]]:
    """Names and keywords of each emoji by language."""
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, list[str]]] = {}
    for language in LANGUAGES:
        path = cldr / "package" / "annotations" / language / "annotations.json"
        for emoji, entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"].items():
            if entry.get("tts"):
                names.setdefault(emoji, {})[language] = entry["tts"][0]
            if entry.get("default"):
                keywords.setdefault(emoji, {})[language] = entry["default"]
    return names, keywords


def code_of(name: str) -> str:
    """Code points of an emoji in one spelling, whatever its file is called: "0023-FE0F-20E3" and "23-20e3" are one."""
    codes = [code.lstrip("0").rjust(4, "0") for code in name.lower().split("-")]
    return "-".join(code for code in codes if code != "fe0f")


def list_drawings(folder: Path) -> dict[str, Path]:
    """SVG files by the emoji's code points."""
    return {code_of(file.stem): file for file in sorted(folder.glob("*.svg"))}
