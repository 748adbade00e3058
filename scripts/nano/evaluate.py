"""Measure m0-nano on what was held out from its training, BM25 and the untrained model beside it, through the calls users make.

    PYTHONPATH=scripts python -m nano.evaluate [--model weights/m0-nano] [--write weights/m0-nano/README.md] [--figures FILE.json]

| task | query | candidates |
| --- | --- | --- |
| same language | heading of a held-out section | the 50 sections of its language that BM25 finds, training's among them |
| sections, 10 | heading of a held-out section | 10 sections of its language, held-out ones first |
| across languages | heading of a held-out section | 20 sections of another language |
| emoji name to picture | a held-out name | 20 emoji as their files are |
| changed pictures | a held-out name | 20 emoji on another background, of another size, cropped, blurred, turned by 10 degrees |
| picture to emoji name | an emoji as its file is | 20 names in one language, the right one held out |
| emoji name to sheet | a held-out name | 10 sheets of six emoji; the right one has it among them |
| picture to picture | an emoji, changed | 20 emoji as their files are |
| clip-art name to picture | a held-out name | 20 held-out drawings on white |
| heading to page | heading of a held-out section | pages of 20 held-out sections, any language |
| heading to page, one language | the same | pages of 20 held-out sections of the same language |
| text to figure and text | heading of a section with a figure | 8 sections, each with its figure |
| docstring to code | a held-out docstring's first sentence | 20 held-out functions |
| pictures alone, texts alone, mixed | a held-out emoji name | 20 pictures; 20 texts (keywords in another language); 10 of each |

A section is given by its first 600 characters, to BM25 as well. One candidate is right. Candidates are drawn with a fixed seed.
Intervals are 95 % bootstrap intervals over queries.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano.material import SECTION_CHARACTERS, draw_sheet, open_on_white, read_json_lines
from PIL import Image, ImageFilter

from m0 import Reranker
from m0.evaluate.bm25 import BM25
from m0.evaluate.metrics import Estimate, estimate, per_query
from m0.inputs.images import resize

SEED = 11
MARKS = ("<!-- figures: written by scripts/nano/evaluate.py -->", "<!-- end of figures -->")
PER_LANGUAGE = {"same language": 30, "emoji name to picture": 20, "changed pictures": 8, "picture to emoji name": 12}


@dataclass
class Question:
    query: Any
    candidates: list[Any]
    right: int
    """Number of the right candidate; -1: BM25 did not find it."""
    group: str
    bm25: list[float] | None = None


@dataclass
class Task:
    name: str
    measure: str
    bar: str
    questions: list[Question] = field(default_factory=list)


def build_tasks(data: Path) -> list[Task]:
    rng = random.Random(SEED)
    return [*section_tasks(data, rng), *emoji_tasks(data, rng), *other_tasks(data, rng)]


# --- sections ---------------------------------------------------------------------------------------------------------


def section_tasks(data: Path, rng: random.Random) -> list[Task]:
    rows = read_json_lines(data / "sections.jsonl")
    for row in rows:
        row["opening"] = row["text"][:SECTION_CHARACTERS]
    by_language: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row)
    same = Task("same language, 50 from BM25", "nDCG@10", "BM25's")
    ten = Task("same language, 10", "Success@1", "0.50")
    across = Task("across languages, 20", "nDCG@10", "0.55")
    for language, own in sorted(by_language.items()):
        held = [row for row in own if row["held_out"]]
        asked = rng.sample(held, min(PER_LANGUAGE["same language"], len(held)))
        index = BM25({str(i): row["opening"] for i, row in enumerate(own)})
        for row in asked:
            scores = index.scores(row["heading"])
            best = [int(i) for i in np.argsort(-scores, kind="stable")[:50]]
            right = next((place for place, i in enumerate(best) if own[i] is row), -1)
            found = [own[i]["opening"] for i in best]
            same.questions.append(Question(row["heading"], found, right, language, [float(scores[i]) for i in best]))
            ten.questions.append(add_negatives(row, own, 10, rng, language))
    several: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        if row["held_out"]:
            several[row["id"]].append(row)
    pairs = [(a, b) for some in several.values() for a in some for b in some if a is not b]
    for asked_row, shown in rng.sample(pairs, min(700, len(pairs))):
        question = add_negatives(shown, by_language[shown["language"]], 20, rng, shown["language"])
        question.query, question.group = asked_row["heading"], asked_row["language"]
        question.bm25 = bm25_scores(question)
        across.questions.append(question)
    for question in ten.questions:
        question.bm25 = bm25_scores(question)
    return [same, ten, across]


def add_negatives(row: dict, own: list[dict], count: int, rng: random.Random, group: str) -> Question:
    """The row among others of its language, held-out ones first, so that unseen is compared with unseen as far as they reach."""
    pool = [other for other in own if other["heading"] != row["heading"] and other["id"] != row["id"]]
    pool.sort(key=lambda other: (not other["held_out"], rng.random()))
    candidates = [row, *pool[: count - 1]]
    rng.shuffle(candidates)
    return Question(row["heading"], [c["opening"] for c in candidates], candidates.index(row), group)


def bm25_scores(question: Question) -> list[float]:
    index = BM25({str(i): text for i, text in enumerate(question.candidates)})
    return [float(score) for score in index.scores(question.query)]


# --- emoji ------------------------------------------------------------------------------------------------------------


def emoji_tasks(data: Path, rng: random.Random) -> list[Task]:
    emoji = read_json_lines(data / "emoji.jsonl")
    for row in emoji:
        row["picture"] = Image.open(data / row["image"])
        row["file"] = {"image": str(data / row["image"])}
    held: dict[str, list[dict]] = defaultdict(list)
    for row in emoji:
        for language in row["held_out"]:
            held[language].append(row)
    to_picture = Task("emoji name to picture, 20", "Success@1", "0.80")
    changed = Task("the same, pictures changed, 20", "Success@1", "0.65")
    to_name = Task("picture to emoji name, 20", "Success@1", "0.80")
    pictures = Task("pictures alone, 20", "nDCG@10", "")
    texts = Task("texts alone, 20", "nDCG@10", "")
    mixed = Task("mixed, 10 and 10", "nDCG@10", "mean of these two - 0.05")

    def others(row: dict, language: str) -> list[dict]:
        return rng.sample(
            [o for o in emoji if o is not row and o["names"].get(language) not in (None, row["names"][language])], 19
        )

    for language, rows in sorted(held.items()):
        for row in rng.sample(rows, min(PER_LANGUAGE["emoji name to picture"], len(rows))):
            candidates, right = shuffled(row, others(row, language), rng)
            to_picture.questions.append(Question(row["names"][language], [c["file"] for c in candidates], right, language))
        for row in rng.sample(rows, min(PER_LANGUAGE["changed pictures"], len(rows))):
            candidates, right = shuffled(row, others(row, language), rng)
            shown = [render_on_screen(c["picture"], rng) for c in candidates]
            changed.questions.append(Question(row["names"][language], shown, right, language))
        for row in rng.sample(rows, min(PER_LANGUAGE["picture to emoji name"], len(rows))):
            candidates, right = shuffled(row, others(row, language), rng)
            to_name.questions.append(Question(row["file"], [c["names"][language] for c in candidates], right, language))
        for number, row in enumerate(rng.sample(rows, min(6, len(rows)))):
            chosen = others(row, language)
            candidates, right = shuffled(row, chosen, rng)
            words = [draw_words(c, language, rng) for c in candidates]
            files = [c["file"] for c in candidates]
            pictures.questions.append(Question(row["names"][language], files, right, language))
            texts.questions.append(Question(row["names"][language], words, right, language))
            # The right one is a picture or a text, in turn.
            shown_right = number % 2 == 0
            as_picture = set(rng.sample([i for i in range(20) if i != right], 9 if shown_right else 10))
            as_picture |= {right} if shown_right else set()
            both = [files[i] if i in as_picture else words[i] for i in range(20)]
            mixed.questions.append(Question(row["names"][language], both, right, language))
    sheets = Task("emoji name to sheet of six, 10", "Success@1", "")
    own = random.Random(SEED + 1)  # so that the other tasks ask what they asked before there was this one
    several = [(row, language) for language, rows in sorted(held.items()) for row in rows]
    for row, language in own.sample(several, 300):
        drawn = [row, *own.sample([o for o in emoji if o is not row], 59)]
        papers = [
            draw_sheet([o["picture"].convert("RGBA") for o in drawn[start : start + 6]], own, (2, 3), 84)[0]
            for start in range(0, 60, 6)
        ]
        first = papers[0]
        own.shuffle(papers)
        right = next(number for number, paper in enumerate(papers) if paper is first)
        sheets.questions.append(Question(row["names"][language], papers, right, language))
    alike = Task("picture to picture, 20", "Success@1", "")
    for row in rng.sample(emoji, 300):
        candidates, right = shuffled(row, rng.sample([o for o in emoji if o is not row], 19), rng)
        alike.questions.append(Question(render_on_screen(row["picture"], rng), [c["file"] for c in candidates], right, "all"))
    return [to_picture, changed, to_name, sheets, alike, pictures, texts, mixed]


def shuffled(row: dict, others: list[dict], rng: random.Random) -> tuple[list[dict], int]:
    candidates = [row, *others]
    rng.shuffle(candidates)
    return candidates, next(i for i, c in enumerate(candidates) if c is row)


def draw_words(row: dict, language: str, rng: random.Random) -> str:
    other = rng.choice([key for key in row["keywords"] if key != language])
    return ", ".join(row["keywords"][other][:5])


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


# --- drawings, pages, code --------------------------------------------------------------------------------------------


def other_tasks(data: Path, rng: random.Random) -> list[Task]:
    drawings = list({row["name"]: row for row in read_json_lines(data / "clipart.jsonl") if row["held_out"]}.values())
    clipart = Task("clip-art name to picture, 20", "Success@1", "0.35")
    for row in rng.sample(drawings, min(400, len(drawings))):
        names = set(row["name"].split())
        pool = [o for o in drawings if o is not row and not names & set(o["name"].split())]
        candidates, right = shuffled(row, rng.sample(pool, 19), rng)
        shown = [open_on_white(data / c["image"]) for c in candidates]
        clipart.questions.append(Question(row["name"], shown, right, "all"))
    rows = [row for row in read_json_lines(data / "sections.jsonl") if row["held_out"]]
    by_language: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row)
    page = Task("heading to page, 20", "Success@1", "0.35")
    page_one = Task("heading to page, one language, 20", "Success@1", "")
    for row in rows:
        pool = [o for o in rows if o["id"] != row["id"] and o["heading"] != row["heading"]]
        candidates, right = shuffled(row, rng.sample(pool, 19), rng)
        files = [{"image": str(data / c["page"])} for c in candidates]
        page.questions.append(Question(row["heading"], files, right, row["language"]))
        near = [o for o in pool if o["language"] == row["language"]]
        if len(near) >= 19:
            candidates, right = shuffled(row, rng.sample(near, 19), rng)
            files = [{"image": str(data / c["page"])} for c in candidates]
            page_one.questions.append(Question(row["heading"], files, right, row["language"]))
    figure = Task("text to figure and text, 8", "Success@1", "")
    figured = [row for row in rows if "figure" in row]
    for row in figured:
        pool = [o for o in figured if o["id"] != row["id"]]
        if len(pool) < 7:
            continue
        candidates, right = shuffled(row, rng.sample(pool, 7), rng)
        mixed = [[c["text"][:SECTION_CHARACTERS], {"image": str(data / c["figure"])}] for c in candidates]
        figure.questions.append(Question(row["heading"], mixed, right, row["language"]))
    code = Task("docstring to code, 20", "Success@1", "")
    functions = [row for row in read_json_lines(data / "code.jsonl") if row["held_out"]]
    for row in rng.sample(functions, min(300, len(functions))):
        candidates, right = shuffled(row, rng.sample([o for o in functions if o is not row], 19), rng)
        question = Question(row["query"], [c["code"] for c in candidates], right, "all")
        question.bm25 = bm25_scores(question)
        code.questions.append(question)
    return [clipart, page, page_one, *([figure] if figure.questions else []), code]


# --- measuring --------------------------------------------------------------------------------------------------------


def values(task: Task, scores: Sequence[Sequence[float]]) -> list[float]:
    """The task's measure for each question. Equal scores are ordered against the right candidate."""
    qrels = {str(n): {str(question.right): 1} for n, question in enumerate(task.questions)}
    run: dict[str, dict[str, float]] = {}
    for n, (question, some) in enumerate(zip(task.questions, scores, strict=True)):
        order = sorted(range(len(some)), key=lambda i: (-some[i], i == question.right))
        run[str(n)] = {str(i): float(-place) for place, i in enumerate(order)}
    found = per_query(qrels, run, [task.measure])[task.measure]
    return [found[str(n)] for n in range(len(task.questions))]


def model_scores(reranker: Reranker, task: Task) -> list[list[float]]:
    read: dict[int, Any] = {}
    pairs = []
    for question in task.questions:
        for candidate in question.candidates:
            key = candidate["image"] if isinstance(candidate, dict) else id(candidate)
            if key not in read:
                read[key] = candidate if isinstance(candidate, str) else reranker.read(candidate)
            pairs.append(({"text": question.query} if isinstance(question.query, str) else question.query, read[key]))
    logits = iter(reranker.logits(pairs))
    return [[next(logits) for _ in question.candidates] for question in task.questions]


def measure(reranker: Reranker, tasks: list[Task]) -> dict[str, list[float]]:
    found = {}
    for task in tasks:
        begin = time.monotonic()
        found[task.name] = values(task, model_scores(reranker, task))
        print(f"{task.name}: {np.mean(found[task.name]):.3f} ({time.monotonic() - begin:.0f} s)", flush=True)
    return found


def chance(task: Task) -> float:
    if task.measure == "Success@1":
        return float(np.mean([1 / len(q.candidates) for q in task.questions]))
    gains = [sum(1 / np.log2(place + 2) for place in range(min(10, len(q.candidates)))) for q in task.questions]
    return float(np.mean([(q.right >= 0) * gain / len(q.candidates) for q, gain in zip(task.questions, gains, strict=True)]))


def report(tasks: list[Task], trained: dict[str, list[float]], untrained: dict[str, list[float]]) -> tuple[str, dict]:
    lines = ["| task, candidates | measure | bar | m0-nano | BM25 | untrained | chance | queries |", "| --- |" + " --- |" * 7]
    figures: dict[str, Any] = {}
    baseline: dict[str, list[float]] = {}
    for task in tasks:
        ours, theirs = estimate(trained[task.name]), estimate(untrained[task.name])
        if task.questions[0].bm25 is not None:
            baseline[task.name] = values(task, [question.bm25 or [] for question in task.questions])
        bm25 = format_estimate(estimate(baseline[task.name])) if task.name in baseline else "no words"
        bar = f"{task.bar}" if task.bar else ""
        lines.append(
            f"| {task.name} | {task.measure} | {bar} | {format_estimate(ours)} | {bm25} | {theirs.mean:.3f} | {chance(task):.3f} | {ours.queries} |"
        )
        figures[task.name] = {"measure": task.measure, "m0-nano": vars(ours), "untrained": theirs.mean, "queries": ours.queries}
        if task.name in baseline:
            figures[task.name]["BM25"] = float(np.mean(baseline[task.name]))
    by_name = {task.name: task for task in tasks}
    lines += ["", "By language (of the query; across languages: of the heading):", ""]
    for name in (
        "same language, 50 from BM25",
        "across languages, 20",
        "emoji name to picture, 20",
        "picture to emoji name, 20",
    ):
        groups: dict[str, list[int]] = defaultdict(list)
        for number, question in enumerate(by_name[name].questions):
            groups[question.group].append(number)
        means = {group: float(np.mean([trained[name][i] for i in some])) for group, some in groups.items()}
        figures[name]["languages"] = means
        text = []
        for group, mean in means.items():
            other = f" / {np.mean([baseline[name][i] for i in groups[group]]):.2f}" if name.startswith("same") else ""
            text.append(f"{group} {mean:.2f}{other}")
        lines += [f"- {name}{', m0-nano / BM25' if name.startswith('same') else ''}: " + ", ".join(text)]
        if name.startswith("same"):
            wins = sum(bool(mean >= np.mean([baseline[name][i] for i in groups[group]])) for group, mean in means.items())
            lines[-1] += f". At least BM25's in {wins} of {len(means)} languages."
            figures[name]["languages at least BM25"] = wins
        if name.startswith("emoji"):
            lines[-1] += f". At least 0.50 in {sum(v >= 0.5 for v in means.values())} of {len(means)} languages."
    return "\n".join(lines), figures


def format_estimate(value: Estimate) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def write_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between two marks of a file."""
    page = path.read_text(encoding="utf-8")
    before, after = page.split(marks[0])[0], page.split(marks[1])[1]
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--model", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--untrained", type=Path, help="default: DATA/untrained, which nano/train.py leaves there")
    parser.add_argument("--write", type=Path, help="put the tables between the marks of this model card")
    parser.add_argument("--figures", type=Path, help="write the figures as JSON")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = build_tasks(options.data)
    trained = measure(Reranker.from_pretrained(options.model, dtype="float32"), tasks)
    print("untrained, on a tenth of the questions:")
    tenth = [replace(task, questions=task.questions[::10]) for task in tasks]
    untrained = measure(Reranker.from_pretrained(options.untrained or options.data / "untrained", dtype="float32"), tenth)
    text, figures = report(tasks, trained, untrained)
    print(text)
    if options.write:
        write_between(options.write, MARKS, text)

    if options.figures:
        options.figures.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
