"""What a cascade saves and what it costs, on m0-nano's held-out sections: nDCG@10 against time.

    python scripts/evaluate_cascade.py [--model weights/m0-nano] [--data build/nano-data] [--questions 80] [--plot docs/pictures/cascade.png]

Each question has the 50 sections that BM25 finds. Time is that of ranking, prompts included, beside scoring all in full.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from evaluate_nano import SEED, section_tasks, values

from m0 import Cascade, DocumentCache, Reranker

KEEP, DEPTHS = (5, 10, 20), (3, 4, 5)


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
    task = section_tasks(options.data, random.Random(SEED))[0]
    task.questions = random.Random(SEED).sample(task.questions, options.questions)
    found = []
    for cascade in (None, *(Cascade(keep=keep, depth=depth) for depth in DEPTHS for keep in KEEP)):
        begin, scores = time.monotonic(), []
        for question in task.questions:
            ranking = reranker.rank(question.query, question.candidates, cascade=cascade)
            # The order counts: those with a first look only stand behind the others.
            row = [0.0] * len(ranking)
            for place, result in enumerate(ranking):
                row[result.index] = -float(place)
            scores.append(row)
        some = values(task, scores)
        found.append((cascade, sum(some) / len(some), time.monotonic() - begin))
    print("| first look | scored in full | nDCG@10 | time, of scoring all |\n| --- | --- | --- | --- |")
    whole = found[0][2]
    for cascade, quality, seconds in found:
        what = "| none | 50" if cascade is None else f"| {cascade.depth} of 6 layers | {cascade.keep}"
        print(f"{what} | {quality:.3f} | {seconds / whole:.2f} |")
    if options.plot:
        plot(found, options.plot)


def plot(found: list[tuple[Cascade | None, float, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, whole = figure.subplots(), found[0][2]
    for depth in DEPTHS:
        points = [(seconds / whole, quality) for cascade, quality, seconds in found if cascade and cascade.depth == depth]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"first look after {depth} of 6 layers")
    axes.plot(1.0, found[0][1], "ks", label="all in full")
    axes.set_xlabel("time, of scoring all in full")
    axes.set_ylabel("nDCG@10")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
