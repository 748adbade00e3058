"""Measure m0-nano on what was held out from its training, the untrained model beside it, through the same calls that users make.

    python scripts/evaluate_nano.py [--model weights/m0-nano] [--write weights/m0-nano/README.md]

| task | query | candidates | how many |
| --- | --- | --- | --- |
| name to picture | a held-out emoji name | 20 emoji pictures as their files are | up to 40 names a language |
| heading to section | heading of a held-out section | 10 openings of sections in the same language | every held-out section |
| mixed list | a held-out emoji name | 10 pictures and 10 texts of 20 emoji; the right one is a picture or a text, in turn | up to 20 names a language |

A text candidate of the mixed list is the emoji's keywords in another language. Success@1: the right candidate has the highest
score. Intervals are 95 % bootstrap intervals over queries. Candidates are drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m0 import Reranker
from m0.images import prepare_picture

SEED = 11
NAMES_PER_LANGUAGE = 40
MIXED_PER_LANGUAGE = 20
OPENING_CHARACTERS = 420
MARKS = ("<!-- figures: written by scripts/evaluate_nano.py -->", "<!-- end of figures -->")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def first_places(reranker: Reranker, questions: list[tuple[Any, list[Any], int]]) -> list[int]:
    """The number of the candidate with the highest score, for each (query, candidates, right one)."""
    pairs = [(query, candidate) for query, candidates, _ in questions for candidate in candidates]
    scores = iter(reranker.score(pairs))
    return [int(np.argmax([next(scores) for _ in candidates])) for _, candidates, _ in questions]


def interval(hits: list[bool]) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval."""
    values = np.array(hits, dtype=float)
    generator = np.random.default_rng(SEED)
    means = generator.choice(values, (2000, len(values))).mean(1)
    return float(values.mean()), *(float(edge) for edge in np.quantile(means, [0.025, 0.975]))


class Questions:
    """All tasks' questions, the same for every model."""

    def __init__(self, data: Path) -> None:
        rng = random.Random(SEED)
        emoji = read(data / "emoji.jsonl")
        for row in emoji:
            row["picture"] = prepare_picture(data / row["image"])
        held: dict[str, list[dict]] = defaultdict(list)
        for row in emoji:
            for language in row["held_out"]:
                held[language].append(row)
        self.names: dict[str, list] = {}
        self.mixed: dict[str, list] = {}
        for language, rows in sorted(held.items()):
            self.names[language] = []
            for row in rng.sample(rows, min(NAMES_PER_LANGUAGE, len(rows))):
                others = rng.sample(
                    [o for o in emoji if o is not row and o["names"].get(language) != row["names"][language]], 19
                )
                candidates = [row, *others]
                rng.shuffle(candidates)
                pictures = [candidate["picture"] for candidate in candidates]
                self.names[language].append((row["names"][language], pictures, candidates.index(row)))
            self.mixed[language] = []
            for number, row in enumerate(rng.sample(rows, min(MIXED_PER_LANGUAGE, len(rows)))):
                others = rng.sample(
                    [o for o in emoji if o is not row and o["names"].get(language) != row["names"][language]], 19
                )
                shown = [row, *others[:9]] if number % 2 == 0 else others[:10]
                written = others[9:] if number % 2 == 0 else [row, *others[10:]]
                candidates = [(o, o["picture"]) for o in shown] + [(o, self.words(o, language, rng)) for o in written]
                rng.shuffle(candidates)
                right = next(i for i, (o, _) in enumerate(candidates) if o is row)
                self.mixed[language].append((row["names"][language], [content for _, content in candidates], right))
        self.sections: dict[str, list] = {}
        by_language: dict[str, list[dict]] = defaultdict(list)
        for row in read(data / "sections.jsonl"):
            by_language[row["language"]].append(row)
        for language, rows in sorted(by_language.items()):
            asked = [row for row in rows if row["held_out"]]
            if len(rows) < 10 or not asked:
                continue
            self.sections[language] = []
            for row in asked:
                # Other held-out sections first, so that unseen is compared with unseen as far as they reach.
                pool = sorted(
                    (o for o in rows if o["heading"] != row["heading"]), key=lambda o: (not o["held_out"], rng.random())
                )
                candidates = [row, *pool[:9]]
                rng.shuffle(candidates)
                texts = [candidate["text"][:OPENING_CHARACTERS] for candidate in candidates]
                self.sections[language].append((row["heading"], texts, candidates.index(row)))

    @staticmethod
    def words(row: dict, language: str, rng: random.Random) -> str:
        other = rng.choice([key for key in row["keywords"] if key != language])
        return ", ".join(row["keywords"][other][:5])


def measure(reranker: Reranker, questions: Questions) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for task in ("names", "sections"):
        by_language = {}
        for language, asked in getattr(questions, task).items():
            by_language[language] = [
                first == right for first, (_, _, right) in zip(first_places(reranker, asked), asked, strict=True)
            ]
        result[task] = by_language
    hits: dict[str, list[bool]] = {"picture": [], "text": []}
    pictures_first = []
    for asked in questions.mixed.values():
        for first, (_, candidates, right) in zip(first_places(reranker, asked), asked, strict=True):
            hits["text" if isinstance(candidates[right], str) else "picture"].append(first == right)
            pictures_first.append(not isinstance(candidates[first], str))
    result["mixed"] = hits
    result["pictures first"] = pictures_first
    return result


def line(hits: list[bool]) -> str:
    mean, low, high = interval(hits)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def joined(by_language: dict[str, list[bool]]) -> list[bool]:
    return [hit for hits in by_language.values() for hit in hits]


def report(trained: dict[str, Any], untrained: dict[str, Any]) -> str:
    rows = [
        ("name to picture, 20 candidates", "0.050", joined(trained["names"]), joined(untrained["names"])),
        ("heading to section, 10 candidates", "0.100", joined(trained["sections"]), joined(untrained["sections"])),
        ("mixed list of 20, right one a picture", "0.050", trained["mixed"]["picture"], untrained["mixed"]["picture"]),
        ("mixed list of 20, right one a text", "0.050", trained["mixed"]["text"], untrained["mixed"]["text"]),
        (
            "mixed list: share of first places that are pictures",
            "0.500",
            trained["pictures first"],
            untrained["pictures first"],
        ),
    ]
    lines = ["| success@1, held out | chance | m0-nano | untrained | queries |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {name} | {chance} | {line(ours)} | {line(theirs)} | {len(ours)} |" for name, chance, ours, theirs in rows]
    names = {language: np.mean(hits) for language, hits in trained["names"].items()}
    above = sum(value >= 0.5 for value in names.values())
    lines += ["", f"Name to picture is at least 0.50 in {above} of {len(names)} languages:", ""]
    lines += [", ".join(f"{language} {value:.2f}" for language, value in sorted(names.items()))]
    sections = {language: (np.mean(hits), len(hits)) for language, hits in trained["sections"].items()}
    lines += ["", "Heading to section by language (held-out sections in brackets):", ""]
    lines += [", ".join(f"{language} {value:.2f} ({count})" for language, (value, count) in sorted(sections.items()))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--model", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--untrained", type=Path, help="default: DATA/untrained, which train_nano.py leaves there")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this model card")
    options = parser.parse_args()
    torch.set_num_threads(2)
    questions = Questions(options.data)
    trained = measure(Reranker.from_pretrained(options.model), questions)
    untrained = measure(Reranker.from_pretrained(options.untrained or options.data / "untrained"), questions)
    text = report(trained, untrained)
    print(text)
    if options.write:
        card = options.write.read_text(encoding="utf-8")
        before, after = card.split(MARKS[0])[0], card.split(MARKS[1])[1]
        options.write.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
