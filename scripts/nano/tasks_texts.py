"""Held-out tasks whose candidates are texts: sections of manuals, and functions."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from nano.material import SECTION_CHARACTERS, read_json_lines
from nano.measuring import Question, Task, shuffled
from nano.pages import script_of
from nano.spelling import fold, words_of

from m0.evaluate.bm25 import BM25

SAME_LANGUAGE_MOST = 85
"""Queries of one language; more only English has."""
ACROSS, RARE_EACH, CODE = 400, 100, 200
LIBREOFFICE_FILE = "sections-libreoffice.jsonl"
LIBREOFFICE_LANGUAGES, LIBREOFFICE_EACH = ("en", "de", "fr", "ru", "el", "tr", "hi", "ja"), 20
NUMBER = re.compile(r"(?<![\w.,:/-])\d+(?:[.:/,-]\d+)*(?![\w:/-])")
"""A number, a version, a date or a time, whole."""
IDENTIFIER = re.compile(r"(?<![\w.])(?:[a-z]+[A-Z]\w+|[A-Za-z]\w*_\w+|[A-Za-z]+\d\w*)(?!\w)")
LONG_WORD = re.compile(r"[^\W\d_]{5,}")
NAME = re.compile(r"(?<=[^\W\d_] )[^\W\d_]{4,}")
"""A word behind another, so that none begins a sentence."""


@lru_cache(maxsize=1)
def section_rows(data: Path) -> dict[str, list[dict]]:
    """Sections by language, each with its opening, which is what candidates show."""
    by_language: dict[str, list[dict]] = defaultdict(list)
    for row in read_json_lines(data / "sections.jsonl"):
        by_language[row["language"]].append({**row, "opening": row["text"][:SECTION_CHARACTERS]})
    return dict(sorted(by_language.items()))


def ask_bm25s_best(asked: list[dict], own: list[dict], language: str, pool: str) -> list[Question]:
    """Each heading with the 50 sections that BM25 finds for it, and BM25's scores."""
    index = BM25({str(i): row["opening"] for i, row in enumerate(own)})
    questions = []
    for row in asked:
        scores = index.scores(row["heading"])
        best = [int(i) for i in np.argsort(-scores, kind="stable")[:50]]
        right = next((place for place, i in enumerate(best) if own[i] is row), -1)
        found = [own[i]["opening"] for i in best]
        questions.append(Question(row["heading"], found, right, language, [float(scores[i]) for i in best], pool))
    return questions


def same_language(data: Path, rng: random.Random) -> list[Task]:
    task = Task("same language, 50 from BM25", "nDCG@10", "BM25 + 0.03", key="same", words=True)
    for language, own in section_rows(data).items():
        held = [row for row in own if row["held_out"]]
        asked = rng.sample(held, min(SAME_LANGUAGE_MOST, len(held)))
        task.questions += ask_bm25s_best(asked, own, language, f"texts {language}")
    return [task]


def libreoffice_texts(data: Path, rng: random.Random) -> list[Task]:
    """The same with another kind of text, none of which was trained on. Nothing where the file is not there."""
    if not (data / LIBREOFFICE_FILE).exists():
        return []
    task = Task("LibreOffice's help, same language, 50 from BM25", "nDCG@10", "", key="libreoffice", words=True)
    for language in LIBREOFFICE_LANGUAGES:
        own = [row for row in read_json_lines(data / LIBREOFFICE_FILE) if row["language"] == language]
        for row in own:
            row["opening"] = row["text"][:SECTION_CHARACTERS]
        asked = rng.sample(own, min(LIBREOFFICE_EACH, len(own)))
        task.questions += ask_bm25s_best(asked, own, language, f"LibreOffice texts {language}")
    return [task] if task.questions else []


def add_negatives(row: dict, own: list[dict], count: int, rng: random.Random) -> tuple[list[dict], int]:
    """The row among others of its language, held-out ones first, so that unseen is compared with unseen as far as they reach, and
    its number there."""
    pool = [other for other in own if other["heading"] != row["heading"] and other["id"] != row["id"]]
    pool.sort(key=lambda other: (not other["held_out"], rng.random()))
    return shuffled(row, pool[: count - 1], rng)


def across_languages(data: Path, rng: random.Random) -> list[Task]:
    task = Task("across languages, 20", "nDCG@10", "0.75", key="across", words=True)
    by_language = section_rows(data)
    several: dict[str, list[dict]] = defaultdict(list)
    for own in by_language.values():
        for row in own:
            if row["held_out"]:
                several[row["id"]].append(row)
    large = {language for language, own in by_language.items() if len(own) >= 20}
    pairs = [
        (asked, shown)
        for some in several.values()
        for asked in some
        for shown in some
        if asked["language"] != shown["language"] and shown["language"] in large
    ]
    for asked, shown in rng.sample(pairs, min(ACROSS, len(pairs))):
        candidates, right = add_negatives(shown, by_language[shown["language"]], 20, rng)
        openings = [row["opening"] for row in candidates]
        pool = f"texts {shown['language']}"
        task.questions.append(Question(asked["heading"], openings, right, asked["language"], pool=pool))
    return [task]


# --- one typo, one number, one name -----------------------------------------------------------------------------------


def mistype(word: str, letters: str, rng: random.Random) -> str:
    """Two letters swapped, one dropped, doubled or replaced; the first stays. The word if that changes nothing."""
    place = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    return word[:place] + (word[place] * 2 if kind == 2 else rng.choice(letters)) + word[place + 1 :]


def long_words(text: str) -> set[str]:
    return set(LONG_WORD.findall(text.casefold()))


def ask_with_typo(text: str, others: set[str], letters: str, rng: random.Random) -> str | None:
    """Two words of the text; the one with the typo stands in this text only, and with the typo in none.

    `others`: the long words of the other candidates.
    """
    words = sorted(long_words(text))
    own = [word for word in words if word not in others]
    if not own or len(words) < 2:
        return None
    word = rng.choice(own)
    wrong = mistype(word, letters, rng)
    if wrong == word or wrong in others or wrong in words:
        return None
    untouched = rng.choice([other for other in words if other != word])
    asked = [wrong, untouched]
    rng.shuffle(asked)
    return " ".join(asked)


def ask_for_number(text: str, other_texts: list[str], rng: random.Random) -> str | None:
    """A number, version or date that stands in this text only, alone or as a part of another."""
    numbers = sorted({number for number in NUMBER.findall(text) if len(number) >= 2})
    own = [number for number in numbers if not any(number in other for other in other_texts)]
    return rng.choice(own) if own else None


def ask_for_name(text: str, other_texts: list[str], counts: Counter[str], rng: random.Random) -> str | None:
    """A capitalised name or an identifier that stands in this text only, and in at most 5 of the language."""
    names = {*IDENTIFIER.findall(text), *(name for name in NAME.findall(text) if name[0].isupper())}
    own = [
        name
        for name in sorted(names)
        if counts[fold(name)] <= 5 and not any(fold(name) in fold(other) for other in other_texts)
    ]
    return rng.choice(own) if own else None


def rare_words(data: Path, rng: random.Random) -> list[Task]:
    task = Task("typo, number, rare name, 20", "Success@1", "0.80", key="rare", groups="what is asked for", words=True)
    kinds = ("typo", "number", "rare name")
    counts_by_language, letters = {}, {}
    rows, by_language = [], {}
    for language, own in section_rows(data).items():
        held = [row for row in own if row["held_out"]]
        # German writes every noun with a capital, and other scripts have none.
        if len(held) < 20 or script_of(language) not in ("latin", "cyrillic", "greek") or language == "de":
            continue
        by_language[language] = held
        words = [set(words_of(row["text"])) for row in own]
        counts_by_language[language] = Counter(word for some in words for word in some)
        letters[language] = "".join(sorted({c for row in held for word in long_words(row["opening"]) for c in word}))
        rows += held
    for kind in kinds:
        asked = 0
        for row in rng.sample(rows, len(rows)):
            language = row["language"]
            candidates, right = add_negatives(row, by_language[language], 20, rng)
            texts = [candidate["opening"] for candidate in candidates]
            others = [c["opening"] for c in candidates if c is not row]
            if kind == "typo":
                query = ask_with_typo(row["opening"], set().union(*map(long_words, others)), letters[language], rng)
            elif kind == "number":
                query = ask_for_number(row["opening"], others, rng)
            else:
                query = ask_for_name(row["opening"], others, counts_by_language[language], rng)
            if query is None or len(candidates) < 20:
                continue
            task.questions.append(Question(query, texts, right, kind, pool=f"texts {language}"))
            asked += 1
            if asked == RARE_EACH:
                break
    return [task]


def code(data: Path, rng: random.Random) -> list[Task]:
    task = Task("docstring to code, 20", "Success@1", "0.630 before", key="code", words=True)
    functions = [row for row in read_json_lines(data / "code.jsonl") if row["held_out"]]
    for row in rng.sample(functions, min(CODE, len(functions))):
        candidates, right = shuffled(row, rng.sample([o for o in functions if o is not row], 19), rng)
        task.questions.append(Question(row["query"], [c["code"] for c in candidates], right, "all"))
    return [task]
