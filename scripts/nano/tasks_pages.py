"""Held-out tasks whose candidates are pages: sections that training has not seen, drawn when they are read."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from zlib import crc32

from nano.material import read_json_lines
from nano.measuring import Question, Task, shuffled
from nano.pages import PAGE_SIZES, Drawn, Faces, Style, choose_style, draw_page, script_of, unspaced
from nano.spelling import WORD_PIECE, fold
from nano.tasks_texts import LIBREOFFICE_FILE
from PIL import Image

LANGUAGES = {"latin": ("en", "de", "es", "fr", "cs", "pl"), "cyrillic": ("ru", "uk", "sr"), "greek": ("el",)}
"""Whose pages are asked for by their headings."""
PAGES, CANDIDATES = 30, 20
"""Of a pool, and of a question."""
WHOLE_LAYOUTS = ("article", "article", "article", "columns", "list", "table")
BODY = (16, 22)
SMALLEST = PAGE_SIZES[-1:]
"""The smallest whole page, 560 x 784 pixels, where nothing speaks for several."""
TRANSLATED, OTHER_LAYOUTS = 300, 150
HEIGHTS, HEIGHT_LANGUAGE, HEIGHT_QUERIES = (12, 14, 16, 20, 24, 28), "en", 60
TYPEFACE_LANGUAGES, TYPEFACE_QUERIES = ("en", "fr", "ru", "el"), 300
SCRIPT_LANGUAGES = {
    "Arabic": ("fa", "ar"),
    "Hebrew": ("he",),
    "Devanagari": ("mr", "hi"),
    "Bengali": ("bn",),
    "Thai": ("th",),
    "Chinese": ("zh",),
    "Japanese": ("ja",),
    "Korean": ("ko",),
}
SCRIPT_QUERIES, SCRIPT_SIZE = 40, (504, 448)
SMALL_SIZE = (448, 448)
"""Of a page that is a query: it is computed anew for each of its candidates."""
LIBREOFFICE_LANGUAGES, LIBREOFFICE_PAGES = ("en", "de", "ru"), 20
POINTED_PAGES, POINTED_WORDS = 60, 5
"""Every explanation sees the page anew: about a second on one core."""
LEAST_TEXT = 200
THAI, UNSPACED_LETTER = re.compile(r"[\u0e01-\u0e4e]{3,}"), re.compile(r"[\u3041-\u3096\u30a1-\u30fa\u3400-\u9fff]")


@lru_cache(maxsize=2)
def faces_of(data: Path) -> Faces:
    return Faces(data)


class Page:
    """A page of a section, drawn from its seed each time it is asked for, always the same."""

    def __init__(self, row: dict, style: Style, seed: int) -> None:
        self.row, self.style, self.seed = row, style, seed

    def draw(self) -> tuple[Image.Image, Drawn]:
        row = self.row
        return draw_page(row["heading"], row["text"], row["language"], self.style, random.Random(self.seed))

    def picture(self) -> Image.Image:
        return self.draw()[0]

    @cached_property
    def _words(self) -> tuple[list[str], list[str], str]:
        _, drawn = self.draw()
        body, lines = [], []
        baseline = None
        for word, box, size in zip(drawn.words, drawn.boxes, drawn.sizes, strict=True):
            if size == self.style.body:
                body.append(word)
                lines.append(word if box[3] == baseline else f"\n{word}")
                baseline = box[3]
        return list(drawn.words), body, "".join(lines)

    @property
    def words(self) -> list[str]:
        """All that stand on it, folded."""
        return self._words[0]

    @property
    def body(self) -> list[str]:
        """Those that are no part of the heading."""
        return self._words[1]

    @property
    def body_lines(self) -> str:
        """The body without blanks, line by line."""
        return self._words[2]

    @property
    def text(self) -> str:
        return ("" if unspaced(self.row["language"]) else " ").join(self.words)

    def as_written(self, word: str) -> str:
        """A word that stands on the page as its text has it, with accents."""
        return _written(self.row["text"]).get(word, word)


@lru_cache(maxsize=1000)
def _written(text: str) -> dict[str, str]:
    return {fold(match[0]): match[0] for match in reversed(list(WORD_PIECE.finditer(text)))}


@lru_cache(maxsize=2)
def held_rows(data: Path, file: str = "sections.jsonl") -> dict[str, list[dict]]:
    """Sections by language that training has not seen and that fill some lines."""
    found: dict[str, list[dict]] = defaultdict(list)
    for row in read_json_lines(data / file):
        if (row["held_out"] or file != "sections.jsonl") and len(row["text"]) >= LEAST_TEXT / (
            1 + 2 * unspaced(row["language"])
        ):
            found[row["language"]].append(row)
    return dict(found)


def choose_rows(rows: dict[str, list[dict]], language: str, count: int, rng: random.Random) -> list[dict]:
    """Sections of a language; where it has too few for a question, others of its script join them. No two have one heading, and no
    two are the same section."""
    own = rng.sample(rows.get(language, []), len(rows.get(language, [])))
    if len(own) < CANDIDATES:
        script = script_of(language)
        near = [row for other in sorted(rows) if script_of(other) == script and other != language for row in rows[other]]
        own += rng.sample(near, len(near))
    chosen: dict[str, dict] = {}
    ids = set()
    for row in own:
        if row["id"] not in ids and fold(row["heading"]) not in chosen:
            ids.add(row["id"])
            chosen[fold(row["heading"])] = row
    return list(chosen.values())[:count]


def draw_style(
    data: Path,
    language: str,
    rng: random.Random,
    body: tuple[int, int] = BODY,
    held_out: bool = False,
    layouts: Sequence[str] = WHOLE_LAYOUTS,
    sizes: Sequence[tuple[int, int]] = PAGE_SIZES,
) -> Style:
    """A whole page's: no slide."""
    style = choose_style(language, faces_of(data), rng, held_out, body, rng.choice(layouts))
    style.size = rng.choice(sizes)
    return style


def draw_pool(data: Path, rows: Sequence[dict], rng: random.Random, **style: object) -> list[Page]:
    return [Page(row, draw_style(data, row["language"], rng, **style), rng.getrandbits(32)) for row in rows]  # type: ignore[arg-type]


def among(page: Page, pool: Sequence[Page], rng: random.Random) -> tuple[list[Page], int]:
    """A page among others of its pool, and its number there. None of them is of the same section."""
    others = [other for other in pool if other.row["id"] != page.row["id"]]
    return shuffled(page, rng.sample(others, min(CANDIDATES - 1, len(others))), rng)


# --- by heading -------------------------------------------------------------------------------------------------------


def heading_pools(data: Path) -> Iterator[tuple[str, str, list[Page]]]:
    """Script, language and pages; the same at every call, so that tasks share them."""
    rows = held_rows(data)
    for script, languages in LANGUAGES.items():
        for language in languages:
            rng = random.Random(crc32(f"pages {language}".encode()))
            if chosen := choose_rows(rows, language, PAGES, rng):
                yield script, language, _pool(data, language, tuple(map(_Row, chosen)))


class _Row(dict):
    """A row that a cache can hold."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash((self["id"], self["language"], self["text"]))


@lru_cache(maxsize=64)
def _pool(data: Path, language: str, rows: tuple[dict, ...]) -> list[Page]:
    return draw_pool(data, rows, random.Random(crc32(f"styles {language}".encode())))


def headings(data: Path, rng: random.Random) -> list[Task]:
    task = Task("heading to page, 20", "Success@1", "0.70, aim 0.85", key="headings", groups="script", words=True)
    for script, language, pool in heading_pools(data):
        for page in pool:
            candidates, right = among(page, pool, rng)
            task.questions.append(Question(page.row["heading"], candidates, right, script, pool=f"pages {language}"))
    return [task] if task.questions else []


def libreoffice_headings(data: Path, rng: random.Random) -> list[Task]:
    """The same with another kind of text, none of which was trained on. Nothing where the file is not there."""
    if not (data / LIBREOFFICE_FILE).exists():
        return []
    task = Task("LibreOffice's help, heading to page, 20", "Success@1", "", key="libreoffice-pages", words=True)
    rows = held_rows(data, LIBREOFFICE_FILE)
    for language in LIBREOFFICE_LANGUAGES:
        pool = draw_pool(data, choose_rows(rows, language, LIBREOFFICE_PAGES, rng), rng)
        for page in pool:
            candidates, right = among(page, pool, rng)
            task.questions.append(
                Question(page.row["heading"], candidates, right, language, pool=f"LibreOffice pages {language}")
            )
    return [task] if task.questions else []


def translated_headings(data: Path, rng: random.Random) -> list[Task]:
    """Of the same pages, by the same section's heading in another language."""
    task = Task("heading in another language to page, 20", "Success@1", "0.25", key="translated", groups="script", words=True)
    headings_by_id: dict[str, dict[str, str]] = defaultdict(dict)
    for language, rows in held_rows(data).items():
        for row in rows:
            headings_by_id[row["id"]][language] = row["heading"]
    asked = []
    for script, language, pool in heading_pools(data):
        for page in pool:
            own = page.row["language"]
            known = {fold(page.row["heading"])}
            others = {h for key, h in headings_by_id[page.row["id"]].items() if key != own and fold(h) not in known}
            asked += [(script, language, pool, page, h) for h in rng.sample(sorted(others), min(2, len(others)))]
    for script, language, pool, page, heading in rng.sample(asked, min(TRANSLATED, len(asked))):
        candidates, right = among(page, pool, rng)
        task.questions.append(Question(heading, candidates, right, script, pool=f"pages {language}"))
    return [task] if task.questions else []


def other_layouts(data: Path, rng: random.Random) -> list[Task]:
    """Of the same pages, by a smaller page of the section in another layout and typeface."""
    task = Task("page to page of the same section, 20", "Success@1", "0.80", key="layouts", groups="script")
    asked = [(script, language, pool, page) for script, language, pool in heading_pools(data) for page in pool]
    for script, language, pool, page in rng.sample(asked, min(OTHER_LAYOUTS, len(asked))):
        candidates, right = among(page, pool, rng)
        layouts = [layout for layout in ("article", "columns", "list", "table") if layout != page.style.layout]
        style = page.style
        while style.face.family == page.style.face.family:
            style = draw_style(data, page.row["language"], rng, (16, 18), layouts=layouts)
        style.size, style.margin = SMALL_SIZE, min(style.margin, 30)
        query = Page(page.row, style, rng.getrandbits(32))
        task.questions.append(Question(query, candidates, right, script, pool=f"pages {language}"))
    return [task] if task.questions else []


# --- by words of the body ---------------------------------------------------------------------------------------------


def least_letters(language: str) -> int:
    script = script_of(language)
    if language == "ko":
        return 2
    return 5 if script in ("latin", "cyrillic", "greek") else 4


def own_words(page: Page, candidates: Sequence[Page]) -> list[str]:
    """Words of the body, in the page's script, that stand on none of the other candidates, folded."""
    others = {word for other in candidates if other is not page for word in other.words}
    language = page.row["language"]
    least, latin = least_letters(language), script_of(language) == "latin"
    return sorted(
        word
        for word in set(page.body) - others
        if len(word) >= least and not any(c.isdigit() or (c.isascii() and not latin) for c in word)
    )


def own_strings(page: Page, candidates: Sequence[Page]) -> list[str]:
    """Strings of a script without blanks that stand in one line of the body and on none of the other candidates: two characters, or
    in Thai, whose vowel signs are no characters of their own, all between two blanks or commas."""
    if page.row["language"] == "th":
        found = set(THAI.findall(page.row["text"]))
    else:
        lines = page.body_lines.split("\n")
        found = {line[i : i + 2] for line in lines for i in range(len(line) - 1)}
        found = {string for string in found if all(UNSPACED_LETTER.match(c) for c in string)}
    others = ["".join(other.words) for other in candidates if other is not page]

    def stands_here_only(string: str) -> bool:
        letters = "".join(WORD_PIECE.findall(" ".join(fold(string))))
        return letters in page.body_lines and not any(letters in other for other in others)

    return sorted(filter(stands_here_only, found))


def two_words(page: Page, candidates: Sequence[Page], rng: random.Random) -> str | None:
    """A query of two words, or short strings, that stand in the body of this page and on no other candidate."""
    if unspaced(page.row["language"]):
        found = own_strings(page, candidates)
    else:
        found = [page.as_written(word) for word in own_words(page, candidates)]
    return " ".join(rng.sample(found, 2)) if len(found) >= 2 else None


def ask_for_words(pool: Sequence[Page], count: int, group: str, name: str, rng: random.Random) -> list[Question]:
    """So many questions, the pages of the pool in turn; fewer where their words do not suffice."""
    questions: list[Question] = []
    asked = set()
    for _ in range(2 * -(-count // max(1, len(pool)))):
        for page in pool:
            candidates, right = among(page, pool, rng)
            query = two_words(page, candidates, rng)
            if query is not None and query not in asked and len(questions) < count:
                asked.add(query)
                questions.append(Question(query, list(candidates), right, group, pool=name))
    return questions


def heights(data: Path, rng: random.Random) -> list[Task]:
    """The same sections at every height, by words that stand on all their pages."""
    task = Task(
        "two words to page by text height, 20", "Success@1", "", key="heights", groups="text height, pixels", words=True
    )
    rows = choose_rows(held_rows(data), HEIGHT_LANGUAGE, CANDIDATES, rng)
    styles = [
        (draw_style(data, row["language"], rng, layouts=("article", "list"), sizes=SMALLEST), rng.getrandbits(32))
        for row in rows
    ]
    pools = []
    for height in HEIGHTS:
        pages = []
        for row, (style, seed) in zip(rows, styles, strict=True):
            larger = Style(**{**vars(style), "body": height, "heading": max(20, round(1.4 * height))})
            pages.append(Page(row, larger, seed))
        pools.append(pages)
    asked: set[tuple[int, str]] = set()
    for _ in range(10 * HEIGHT_QUERIES):
        if len(asked) == HEIGHT_QUERIES or not rows:
            break
        number = rng.randrange(len(rows))
        found = set.intersection(*(set(own_words(pages[number], pages)) for pages in pools))
        if len(found) >= 2:
            asked.add((number, " ".join(pools[0][number].as_written(w) for w in sorted(rng.sample(sorted(found), 2)))))
    for height, pages in zip(HEIGHTS, pools, strict=True):
        for number, query in sorted(asked):
            candidates, right = among(pages[number], pages, random.Random(crc32(query.encode())))
            task.questions.append(Question(query, candidates, right, str(height), pool=f"pages with text of {height} pixels"))
    return [task] if task.questions else []


def typefaces(data: Path, rng: random.Random) -> list[Task]:
    task = Task("two words to page, held-out typefaces, 20", "Success@1", "0.60, aim 0.80", key="typefaces", words=True)
    task.groups = "script"
    rows = held_rows(data)
    for language in TYPEFACE_LANGUAGES:
        chosen = choose_rows(rows, language, CANDIDATES, rng)
        pool = draw_pool(data, chosen, rng, body=(16, 24), held_out=True, sizes=SMALLEST)
        count = TYPEFACE_QUERIES // len(TYPEFACE_LANGUAGES)
        task.questions += ask_for_words(pool, count, script_of(language), f"typefaces {language}", rng)
    return [task] if task.questions else []


def scripts(data: Path, rng: random.Random) -> list[Task]:
    task = Task("two words to page, other scripts, 20", "Success@1", "", key="scripts", groups="script", words=True)
    rows = held_rows(data)
    for script, languages in SCRIPT_LANGUAGES.items():
        own = {language: rows[language] for language in languages if language in rows}
        if sum(map(len, own.values())) < CANDIDATES:
            own = {languages[0]: list_emoji(data, languages[0], rng)}
        pool = draw_pool(
            data, choose_rows(own, languages[0], CANDIDATES, rng), rng, layouts=("article", "list"), sizes=[SCRIPT_SIZE]
        )
        group = f"{script} ({languages[0]})"
        task.questions += ask_for_words(pool, SCRIPT_QUERIES, group, f"pages in {script}", rng)
    return [task] if task.questions else []


def list_emoji(data: Path, language: str, rng: random.Random) -> list[dict]:
    """Texts for a language of which there is no manual: names that are held out in it, with their keywords."""
    rows = [row for row in read_json_lines(data / "emoji.jsonl") if language in row["held_out"] and language in row["keywords"]]
    rows = rng.sample(rows, len(rows))
    texts = []
    for start in range(0, len(rows) - 7, 7):
        some = rows[start : start + 7]
        text = ". ".join(f"{row['names'][language]}: {', '.join(row['keywords'][language])}" for row in some[1:])
        texts.append({"id": f"emoji/{start}", "language": language, "heading": some[0]["names"][language], "text": text})
    return texts


def pointing(data: Path, rng: random.Random) -> list[Task]:
    """One word of a page at a time: does the hottest cell of the default explanation lie on it?"""
    task = Task("query word on a page: hottest cell lies on it", "hits", "0.80", key="pointing", groups="script", points=True)
    rows = held_rows(data)
    languages = [(script, language) for script, some in LANGUAGES.items() for language in some]
    for number, (script, language) in enumerate(languages):
        share = POINTED_PAGES * (number + 1) // len(languages) - POINTED_PAGES * number // len(languages)
        pool = draw_pool(data, choose_rows(rows, language, share, rng), rng, sizes=SMALLEST)
        for page in pool:
            words = own_words(page, [])
            for word in rng.sample(words, min(POINTED_WORDS, len(words))):
                question = Question(page.as_written(word), [page], 0, script, pool=f"explanations {language}")
                task.questions.append(question)
    return [task] if task.questions else []
