"""Questions with candidates, the scores a model gives them, and what follows from the scores: measures, intervals, tables."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from nano.spelling import fold
from PIL import Image

from m0 import Reranker
from m0.evaluate.bm25 import BM25
from m0.evaluate.metrics import Estimate, estimate, per_query

PAIRS_AT_A_TIME = 1500
"""Pairs in one call: what is held in memory."""
LEAST_OVERLAP = 0.25
"""Of the smaller of a cell and a word's box: what counts as lying on the word."""


@runtime_checkable
class Drawable(Protocol):
    """A picture that is drawn when it is needed, the same at every call."""

    def picture(self) -> Image.Image: ...

    @property
    def text(self) -> str:
        """The words that stand on it."""
        ...


@dataclass
class Question:
    query: Any
    candidates: list[Any]
    right: int
    """Number of the right candidate; -1: it is not among them."""
    group: str
    bm25: list[float] | None = None
    pool: str = ""
    """Questions of one pool share candidates, which are read once for all of them, whatever their tasks."""


@dataclass
class Task:
    name: str
    measure: str
    bar: str
    questions: list[Question] = field(default_factory=list)
    key: str = ""
    """What `--only` calls it."""
    groups: str = ""
    """What the questions' groups are, where they have figures of their own."""
    words: bool = False
    """Whether BM25 is asked, too; of pages it is given the words that stand on them."""
    points: bool = False
    """Whether the hottest cell of an explanation is measured and no ranking. Each question has one candidate."""


def shuffled(right: Any, others: Sequence[Any], rng: random.Random) -> tuple[list[Any], int]:
    """The right candidate among others, in any order, and its number there."""
    candidates = [right, *others]
    rng.shuffle(candidates)
    return candidates, next(number for number, candidate in enumerate(candidates) if candidate is right)


# --- scores -----------------------------------------------------------------------------------------------------------


def key_of(content: Any) -> Any:
    """Equal for contents that need reading once."""
    if isinstance(content, str):
        return content
    return content["image"] if isinstance(content, dict) else id(content)


def readable(content: Any) -> Any:
    return content.picture() if isinstance(content, Drawable) else content


def read_query(reranker: Reranker, query: Any) -> Any:
    return {"text": query} if isinstance(query, str) else reranker.read(readable(query), "query")


def score_pool(reranker: Reranker, questions: Sequence[Question]) -> list[list[float]]:
    """Logits of every question's candidates. Each candidate is read once, and computed once for all questions that have it."""
    scores = [[0.0] * len(question.candidates) for question in questions]
    places: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    contents = {}
    for number, question in enumerate(questions):
        for place, candidate in enumerate(question.candidates):
            places[key_of(candidate)].append((number, place))
            contents[key_of(candidate)] = candidate
    queries = {number: read_query(reranker, question.query) for number, question in enumerate(questions)}
    # Like lengths go together, which wastes less of a batch.
    order = sorted(places, key=lambda key: len(key) if isinstance(key, str) else 0)
    chunk: list[Any] = []
    for key in order:
        chunk.append(key)
        if sum(len(places[k]) for k in chunk) >= PAIRS_AT_A_TIME or key == order[-1]:
            pairs, slots = [], []
            for k in chunk:
                content = contents[k]
                document = content if isinstance(content, str) else reranker.read(readable(content))
                pairs += [(queries[number], document) for number, _ in places[k]]
                slots += places[k]
            for (number, place), logit in zip(slots, reranker.logits(pairs), strict=True):
                scores[number][place] = logit
            chunk = []
    return scores


def point_at_words(reranker: Reranker, questions: Sequence[Question]) -> list[list[float]]:
    """Of each question: whether the hottest cell of the default explanation lies on its word, and what share of all cells would."""
    found = []
    shown: dict[int, tuple[Any, Any]] = {}
    for question in questions:
        (page,) = question.candidates
        if id(page) not in shown:
            picture, drawn = page.draw()
            shown[id(page)] = (reranker.read(picture), drawn)
        document, drawn = shown[id(page)]
        picture = reranker.explain({"text": question.query}, document).pictures[0]
        boxes = [box for word, box in zip(drawn.words, drawn.boxes, strict=True) if word == fold(question.query)]
        rows, columns = picture.cells.shape
        on_word = [
            any(overlaps(picture.picture.cell_box(row, column), box) for box in boxes)
            for row in range(rows)
            for column in range(columns)
        ]
        found.append([float(on_word[int(picture.cells.argmax())]), sum(on_word) / len(on_word)])
    return found


def overlaps(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes share at least a quarter of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return False
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height >= LEAST_OVERLAP * smaller


def model_scores(reranker: Reranker, task: Task) -> list[list[float]]:
    """Logits of every question's candidates, in order."""
    return score_all(lambda: reranker, [task])[task.name]


@dataclass
class _Job:
    name: str
    run: Callable[[Reranker], list[list[float]]]
    places: list[tuple[str, int]]
    """Task and number of each question."""
    pairs: int


def _jobs(tasks: Sequence[Task]) -> Iterator[_Job]:
    """What can be done apart from the rest: all questions of a pool; the words of some pages. The longest first."""
    pools: dict[tuple[bool, str], list[tuple[str, int, Question]]] = defaultdict(list)
    for task in tasks:
        for number, question in enumerate(task.questions):
            pools[task.points, question.pool or task.name].append((task.name, number, question))
    found = []
    for (points, pool), some in pools.items():
        questions = [question for _, _, question in some]

        def run(reranker: Reranker, points: bool = points, questions: list[Question] = questions) -> list[list[float]]:
            return (point_at_words if points else score_pool)(reranker, questions)

        places = [(name, number) for name, number, _ in some]
        found.append(_Job(pool, run, places, sum(len(question.candidates) for question in questions)))
    yield from sorted(found, key=lambda job: -job.pairs)


_RUNNING: dict[str, Any] = {}
"""Of this process: its model and the jobs, which a process gets by being forked."""


def _begin(load: Callable[[], Reranker]) -> None:
    torch.set_num_threads(1)
    _RUNNING["model"] = load()


def _run(number: int) -> tuple[int, list[list[float]], float]:
    begin = time.monotonic()
    result = _RUNNING["jobs"][number].run(_RUNNING["model"])
    return number, result, time.monotonic() - begin


def score_all(
    load: Callable[[], Reranker], tasks: Sequence[Task], processes: int = 1, told: bool = False
) -> dict[str, list[list[float]]]:
    """Scores of all questions by task.

    Args:
        load: gives the model; every process calls it.
        processes: how many share the pools out; each computes on one core, which is faster than one on several.
        told: whether to print a line for each pool.
    """
    jobs = list(_jobs(tasks))
    _RUNNING["jobs"] = jobs
    scores: dict[str, list[list[float]]] = {task.name: [[] for _ in task.questions] for task in tasks}

    def note(number: int, result: list[list[float]], seconds: float) -> None:
        job = jobs[number]
        for (name, place), row in zip(job.places, result, strict=True):
            scores[name][place] = row
        if told:
            print(f"{job.name}: {job.pairs:,} pairs, {seconds:.0f} s", flush=True)

    try:
        if processes == 1:
            _RUNNING["model"] = load()
            for number in range(len(jobs)):
                note(*_run(number))
        else:
            with multiprocessing.get_context("fork").Pool(processes, _begin, (load,)) as pool:
                for done in pool.imap_unordered(_run, range(len(jobs))):
                    note(*done)
    finally:
        _RUNNING.clear()
    return scores


# --- measures ---------------------------------------------------------------------------------------------------------


def values(task: Task, scores: Sequence[Sequence[float]]) -> list[float]:
    """The task's measure for each question. Equal scores are ordered against the right candidate."""
    if task.points:
        return [row[0] for row in scores]
    qrels = {str(n): {str(question.right): 1} for n, question in enumerate(task.questions)}
    run: dict[str, dict[str, float]] = {}
    for n, (question, some) in enumerate(zip(task.questions, scores, strict=True)):
        order = sorted(range(len(some)), key=lambda i: (-some[i], i == question.right))
        run[str(n)] = {str(i): float(-place) for place, i in enumerate(order)}
    found = per_query(qrels, run, [task.measure])[task.measure]
    return [found[str(n)] for n in range(len(task.questions))]


def chance(task: Task, scores: Sequence[Sequence[float]]) -> float:
    """What guessing would get."""
    if task.points:
        return float(np.mean([row[1] for row in scores]))
    if task.measure == "Success@1":
        return float(np.mean([1 / len(q.candidates) for q in task.questions]))
    gains = [sum(1 / np.log2(place + 2) for place in range(min(10, len(q.candidates)))) for q in task.questions]
    return float(np.mean([(q.right >= 0) * gain / len(q.candidates) for q, gain in zip(task.questions, gains, strict=True)]))


def bm25_scores(question: Question) -> list[float]:
    """Of each candidate; of a page by the words that stand on it, without accents, as the query is then, too."""
    drawn = any(isinstance(candidate, Drawable) for candidate in question.candidates)
    texts = [candidate.text if drawn else candidate for candidate in question.candidates]
    index = BM25({str(i): text for i, text in enumerate(texts)})
    return [float(score) for score in index.scores(fold(question.query) if drawn else question.query)]


def bm25_values(task: Task) -> list[float] | None:
    """BM25's measure for each question; None where it is not asked."""
    if not task.words:
        return None
    return values(task, [bm25_scores(question) if question.bm25 is None else question.bm25 for question in task.questions])


def a_tenth(task: Task) -> list[int]:
    """Numbers of a tenth of the questions, at least one, from whole pools, so that few candidates have to be read."""
    pools: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(task.questions):
        pools[question.pool].append(number)
    names = sorted(pools)
    names = names[len(names) // 2 :] + names[: len(names) // 2]
    return sorted([number for name in names for number in pools[name]][: max(1, len(task.questions) // 10)])


def by_group(task: Task) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(task.questions):
        groups[question.group].append(number)
    return groups


def format_estimate(value: Estimate) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def write_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between two marks of a file."""
    page = path.read_text(encoding="utf-8")
    before, after = page.split(marks[0])[0], page.split(marks[1])[1]
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of two measures of the same questions, ours minus theirs, with a paired interval."""
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)])
