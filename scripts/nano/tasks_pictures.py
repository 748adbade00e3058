"""Held-out tasks of pictures without text: emoji, sheets of them, drawings, figures."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nano.material import SECTION_CHARACTERS, draw_sheet, open_on_white, read_json_lines
from nano.measuring import Question, Task, shuffled
from PIL import Image, ImageFilter

from m0.inputs.images import resize

NAMES, CHANGED, TO_NAME, MIXED = 8, 4, 4, 2
"""Queries of each of the 72 languages."""
FLUENT, SHEETS, ALIKE, DRAWINGS = 200, 150, 100, 250
OTHER_MAKER = "fluent"
"""Whose emoji are kept out of training."""


@lru_cache(maxsize=1)
def emoji_rows(data: Path) -> tuple[list[dict], dict[str, list[dict]]]:
    """All emoji, and by language those whose name is held out in it."""
    emoji = read_json_lines(data / "emoji.jsonl")
    for row in emoji:
        row["picture"] = Image.open(data / row["image"])
        row["file"] = {"image": str(data / row["image"])}
    held: dict[str, list[dict]] = defaultdict(list)
    for row in emoji:
        for language in row["held_out"]:
            held[language].append(row)
    return emoji, dict(sorted(held.items()))


def draw_others(emoji: list[dict], row: dict, language: str, rng: random.Random) -> list[dict]:
    """19 emoji that have another name in this language."""
    return rng.sample([o for o in emoji if o is not row and o["names"].get(language) not in (None, row["names"][language])], 19)


@dataclass(frozen=True)
class Asked:
    """An emoji whose name is held out in a language, among 19 others."""

    row: dict
    language: str
    candidates: list[dict]
    right: int

    @property
    def name(self) -> str:
        return str(self.row["names"][self.language])


def ask_each_language(data: Path, count: int, rng: random.Random) -> Iterator[Asked]:
    """So many held-out names of each language, one by one: whoever draws from `rng` for one does so before the next is drawn."""
    emoji, held = emoji_rows(data)
    for language, rows in held.items():
        for row in rng.sample(rows, min(count, len(rows))):
            yield Asked(row, language, *shuffled(row, draw_others(emoji, row, language, rng), rng))


def emoji_names(data: Path, rng: random.Random) -> list[Task]:
    task = Task("emoji name to picture, 20", "Success@1", "0.85", key="emoji")
    for asked in ask_each_language(data, NAMES, rng):
        files = [c["file"] for c in asked.candidates]
        task.questions.append(Question(asked.name, files, asked.right, asked.language, pool="emoji files"))
    return [task]


def changed_pictures(data: Path, rng: random.Random) -> list[Task]:
    task = Task("the same, pictures changed, 20", "Success@1", "0.78", key="changed")
    for asked in ask_each_language(data, CHANGED, rng):
        shown = [render_on_screen(c["picture"], rng) for c in asked.candidates]
        task.questions.append(Question(asked.name, shown, asked.right, asked.language, pool=f"changed {asked.language}"))
    return [task]


def another_maker(data: Path, rng: random.Random) -> list[Task]:
    """Emoji of a maker none of whose pictures were trained on. Nothing where there are none."""
    emoji, _ = emoji_rows(data)
    drawn = [row for row in emoji if OTHER_MAKER in row.get("images", {})]
    if len(drawn) < 20:
        return []
    for row in drawn:
        row["other"] = {"image": str(data / row["images"][OTHER_MAKER])}
    task = Task("emoji name to another maker's picture, 20", "Success@1", "0.60", key="fluent")
    asked = [(row, language) for row in drawn for language in row["held_out"]]
    for row, language in rng.sample(asked, min(FLUENT, len(asked))):
        candidates, right = shuffled(row, draw_others(drawn, row, language, rng), rng)
        files = [c["other"] for c in candidates]
        task.questions.append(Question(row["names"][language], files, right, language))
    return [task]


def picture_to_name(data: Path, rng: random.Random) -> list[Task]:
    task = Task("picture to emoji name, 20", "Success@1", "0.808 before", key="names")
    for asked in ask_each_language(data, TO_NAME, rng):
        language = asked.language
        names = [c["names"][language] for c in asked.candidates]
        task.questions.append(Question(asked.row["file"], names, asked.right, language, pool=f"emoji names {language}"))
    return [task]


def mixed_lists(data: Path, rng: random.Random) -> list[Task]:
    """The same questions with pictures, with texts, and with both as candidates."""
    pictures = Task("pictures alone, 20", "nDCG@10", "", key="mixed")
    texts = Task("texts alone, 20", "nDCG@10", "", key="mixed")
    mixed = Task("mixed, 10 and 10", "nDCG@10", "mean of these two - 0.05; 0.842 before", key="mixed")
    of_language: Counter[str] = Counter()
    for asked in ask_each_language(data, MIXED, rng):
        language, right = asked.language, asked.right
        words = [draw_keywords(c, language, rng) for c in asked.candidates]
        files: list[Any] = [c["file"] for c in asked.candidates]
        # The right one is a picture or a text, in turn.
        shown_right = of_language[language] % 2 == 0
        of_language[language] += 1
        as_picture = set(rng.sample([i for i in range(20) if i != right], 9 if shown_right else 10))
        as_picture |= {right} if shown_right else set()
        both = [files[i] if i in as_picture else words[i] for i in range(20)]
        for task, shown in ((pictures, files), (texts, words), (mixed, both)):
            task.questions.append(Question(asked.name, shown, right, language, pool=f"mixed {language}"))
    return [pictures, texts, mixed]


def draw_keywords(row: dict, language: str, rng: random.Random) -> str:
    other = rng.choice([key for key in row["keywords"] if key != language])
    return ", ".join(row["keywords"][other][:5])


def sheets(data: Path, rng: random.Random) -> list[Task]:
    emoji, held = emoji_rows(data)
    task = Task("emoji name to sheet of six, 10", "Success@1", "0.55", key="sheets")
    several = [(row, language) for language, rows in held.items() for row in rows]
    for number, (row, language) in enumerate(rng.sample(several, min(SHEETS, len(several)))):
        drawn = [row, *rng.sample([o for o in emoji if o is not row], 59)]
        papers = [
            draw_sheet([o["picture"].convert("RGBA") for o in drawn[start : start + 6]], rng, (2, 3), 84)[0]
            for start in range(0, 60, 6)
        ]
        papers, right = shuffled(papers[0], papers[1:], rng)
        task.questions.append(Question(row["names"][language], papers, right, language, pool=f"sheets {number // 50}"))
    return [task]


def alike(data: Path, rng: random.Random) -> list[Task]:
    emoji, _ = emoji_rows(data)
    task = Task("picture to picture, 20", "Success@1", "", key="alike")
    for row in rng.sample(emoji, min(ALIKE, len(emoji))):
        candidates, right = shuffled(row, rng.sample([o for o in emoji if o is not row], 19), rng)
        files = [c["file"] for c in candidates]
        task.questions.append(Question(render_on_screen(row["picture"], rng), files, right, "all", pool="emoji files"))
    return [task]


def render_on_screen(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Another background, turned by up to 10 degrees, another size, a few pixels cropped, a little blur."""
    picture = picture.convert("RGBA").rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC, expand=True)
    paper = Image.new("RGBA", picture.size, (*(rng.randrange(256) for _ in range(3)), 255))
    flat = Image.alpha_composite(paper, picture).convert("RGB")
    side = rng.randint(48, 120)
    flat = resize(flat, (side, side))
    cut = [rng.randint(0, side // 16) for _ in range(4)]
    flat = flat.crop((cut[0], cut[1], side - cut[2], side - cut[3]))
    return flat.filter(ImageFilter.GaussianBlur(rng.uniform(0, side / 100)))


def clipart(data: Path, rng: random.Random) -> list[Task]:
    drawings = list({row["name"]: row for row in read_json_lines(data / "clipart.jsonl") if row["held_out"]}.values())
    task = Task("clip-art name to picture, 20", "Success@1", "0.45", key="clipart")
    shown = {row["name"]: open_on_white(data / row["image"]) for row in drawings}
    for row in rng.sample(drawings, min(DRAWINGS, len(drawings))):
        names = set(row["name"].split())
        pool = [o for o in drawings if o is not row and not names & set(o["name"].split())]
        candidates, right = shuffled(row, rng.sample(pool, 19), rng)
        task.questions.append(Question(row["name"], [shown[c["name"]] for c in candidates], right, "all"))
    return [task]


def figures(data: Path, rng: random.Random) -> list[Task]:
    """A section's heading, and 8 sections each with its figure. Nothing where too few have one."""
    rows = [row for row in read_json_lines(data / "sections.jsonl") if row["held_out"] and "figure" in row]
    task = Task("text to figure and text, 8", "Success@1", "", key="figures")
    for row in rows:
        pool = [o for o in rows if o["id"] != row["id"]]
        if len(pool) < 7:
            continue
        candidates, right = shuffled(row, rng.sample(pool, 7), rng)
        shown = [[c["text"][:SECTION_CHARACTERS], {"image": str(data / c["figure"])}] for c in candidates]
        task.questions.append(Question(row["heading"], shown, right, row["language"]))
    return [task] if task.questions else []
