"""What a cascade saves and what it costs on m0-nano's held-out questions: quality against time.

    PYTHONPATH=scripts python scripts/bench/cascade.py [--model weights/m0-nano] [--data build/nano-data] [--questions 80] [--plot docs/pictures/cascade.png]

Two sweeps: a score read after fewer layers, on the 50 sections that BM25 finds for a heading; pictures shown smaller, on 20 drawings
for a name. Each question is ranked in every way, one after the other; time is that of ranking, prompts included, beside scoring all
in full.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from nano.evaluate import SEED, Task, build_tasks, values

from m0 import Cascade, DocumentCache, Reranker

DEPTHS, SECTIONS_KEPT = (3, 4, 5), (5, 10, 20)
TOKENS, DRAWINGS_KEPT = (1, 4, 9), (3, 5, 10)
"""Visual tokens that the first look's pictures have at most; in full a drawing has 9 to 16."""


@dataclass
class Point:
    label: str
    kept: int
    quality: float
    time: float
    """Of scoring all in full."""


@dataclass
class Sweep:
    task: Task
    ways: dict[str, list[Cascade]]
    """By what their first look is."""

    def points(self, reranker: Reranker) -> list[Point]:
        """The first is without a cascade."""
        labels = {None: "none"} | {cascade: label for label, some in self.ways.items() for cascade in some}
        seconds, scores = dict.fromkeys(labels, 0.0), {cascade: [] for cascade in labels}
        for cascade in labels:  # the first call pays for what later ones find
            reranker.rank(self.task.questions[0].query, self.task.questions[0].candidates, cascade=cascade)
        for question in self.task.questions:
            for cascade in labels:
                begin = time.perf_counter()
                ranking = reranker.rank(question.query, question.candidates, cascade=cascade)
                seconds[cascade] += time.perf_counter() - begin
                # The order counts: those with a first look only stand behind the others.
                row = [0.0] * len(ranking)
                for place, result in enumerate(ranking):
                    row[result.index] = -float(place)
                scores[cascade].append(row)
        found = []
        for cascade, label in labels.items():
            some = values(self.task, scores[cascade])
            kept = len(self.task.questions[0].candidates) if cascade is None else cascade.keep
            found.append(Point(label, kept, sum(some) / len(some), seconds[cascade] / seconds[None]))
        return found


def sweeps(data: Path, questions: int) -> list[Sweep]:
    headings, names = build_tasks(data, ["same", "clipart"])
    for task in (headings, names):
        task.questions = random.Random(SEED).sample(task.questions, min(questions, len(task.questions)))
    by_depth = {f"{depth} of 6 layers": [Cascade(keep=keep, depth=depth) for keep in SECTIONS_KEPT] for depth in DEPTHS}
    by_size = {
        f"{tokens} visual token{'s' * (tokens > 1)}": [Cascade(keep=keep, max_pixels=tokens * 28**2) for keep in DRAWINGS_KEPT]
        for tokens in TOKENS
    }
    return [Sweep(headings, by_depth), Sweep(names, by_size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--model", default="weights/m0-nano")
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    reranker = Reranker.from_pretrained(options.model, dtype="float32")
    reranker.documents = DocumentCache(max_bytes=0)
    found = []
    for sweep in sweeps(options.data, options.questions):
        points = sweep.points(reranker)
        found.append((sweep.task, points))
        print(
            f"\n{sweep.task.name}\n\n| first look | scored in full | {sweep.task.measure} | time, of scoring all |\n| --- | --- | --- | --- |"
        )
        for point in points:
            print(f"| {point.label} | {point.kept} | {point.quality:.3f} | {point.time:.2f} |", flush=True)
    if options.plot:
        plot(found, options.plot)


def plot(found: Sequence[tuple[Task, list[Point]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (task, points) in zip(figure.subplots(1, len(found)), found, strict=True):
        whole = points[0]
        for label in dict.fromkeys(point.label for point in points[1:]):
            some = [(point.time, point.quality) for point in points if point.label == label]
            axes.plot(*zip(*some, strict=True), marker="o", label=f"first look: {label}")
        axes.plot(whole.time, whole.quality, "ks", label="all in full")
        axes.set_title(task.name, fontsize=9)
        axes.set_xlabel("time, of scoring all in full")
        axes.set_ylabel(task.measure)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
