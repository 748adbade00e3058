"""Drawings of the Open Clip Art Library with their names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

from nano.sources.splitting import held_out
from PIL import Image

PACKAGE = "openclipart-png"
MAX_DRAWINGS_OF_A_NAME = 4
DRAWING_SIDE = 112
NO_DRAWINGS = re.compile(r"/(special|unsorted/patterns)/|shapes/stars/star_\d|shapes/flowchart")


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
