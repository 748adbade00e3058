"""What rounding costs on m0-nano's held-out questions: 8-bit layers, and kept documents in bfloat16 and int8.

    PYTHONPATH=scripts python scripts/bench/rounding.py [--model weights/m0-nano] [--data build/nano-data] [--questions 40] [--threads 2]

Of each task some questions; changes of relevance scores and the order of each question's candidates (Kendall's tau) against float32.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
from nano.evaluate import SEED, Task, build_tasks, model_scores, values
from scipy.stats import kendalltau

from m0 import DocumentCache, Reranker
from m0.engine.calibration import DEFAULT_UNQUANTIZED_SHARE

TASKS = (
    "same language, 50 from BM25",
    "across languages, 20",
    "emoji name to picture, 20",
    "picture to emoji name, 20",
    "mixed, 10 and 10",
    "docstring to code, 20",
)
KEYS = ("same", "across", "emoji", "names", "mixed", "code")
"""What `nano.evaluate` calls them."""


def load_unquantized(model: Path) -> Reranker:
    reranker = Reranker.from_pretrained(model, dtype="float32", device="cpu")
    reranker.documents = DocumentCache(max_bytes=0)
    return reranker


def load_quantized(how: str, groups: int = 1, share: float = 0.0) -> Callable[[Path], Reranker]:
    """`share`: of the weights that stay plain."""

    def load(model: Path) -> Reranker:
        reranker = load_unquantized(model)
        reranker.quantize(how, groups=groups, unquantized_share=share)  # type: ignore[arg-type]
        return reranker

    return load


def load_with_cache(precision: str) -> Callable[[Path], Reranker]:
    def load(model: Path) -> Reranker:
        reranker = load_unquantized(model)
        reranker.documents = DocumentCache(max_bytes=8 * 2**30, precision=precision)  # type: ignore[arg-type]
        return reranker

    return load


WAYS: dict[str, Callable[[Path], Reranker]] = {
    "int8": load_quantized("int8", share=DEFAULT_UNQUANTIZED_SHARE),
    "int8, 0.33 plain": load_quantized("int8", share=0.33),
    "int8, 0.28 plain": load_quantized("int8", share=0.28),
    "int8, a quarter plain": load_quantized("int8", share=0.25),
    "int8, a fifth plain": load_quantized("int8", share=0.2),
    "int8, a tenth plain": load_quantized("int8", share=0.1),
    "int8, none plain": load_quantized("int8"),
    "int8, 4 groups": load_quantized("int8", 4),
    "int8, 16 groups": load_quantized("int8", 16),
    "int8-weights, none plain": load_quantized("int8-weights"),
    "int8-weights": load_quantized("int8-weights", share=DEFAULT_UNQUANTIZED_SHARE),
    "int8-weights, 16 groups": load_quantized("int8-weights", 16),
    "kept in bfloat16": load_with_cache("bfloat16"),
    "kept in int8": load_with_cache("int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--model", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS], metavar="WAY")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = [task for task in build_tasks(options.data, KEYS) if task.name in TASKS]
    for task in tasks:
        task.questions = random.Random(SEED).sample(task.questions, min(options.questions, len(task.questions)))
    exact = load_unquantized(options.model)
    before = {task.name: model_scores(exact, task) for task in tasks}
    print("| rounding | task | mean change of a score | largest | Kendall's tau | measure before | after |")
    print("| --- |" + " --- |" * 6)
    for way in options.ways:
        reranker = WAYS[way](options.model)
        changes, orders = [], []
        for task in tasks:
            if way.startswith("kept"):
                # All of them, be they ever so short.
                reranker.prepare([reranker.read(c) for q in task.questions for c in q.candidates])
                assert reranker.documents.counts.computed, "documents are kept"
            after = model_scores(reranker, task)
            some, taus = compare_scores(task, before[task.name], after)
            changes += some
            orders += taus
            print_row(way, task.name, some, taus, values(task, before[task.name]), values(task, after))
        print_row(way, "all", changes, orders)


def compare_scores(task: Task, before: list[list[float]], after: list[list[float]]) -> tuple[list[float], list[float]]:
    changes, orders = [], []
    for one, other in zip(before, after, strict=True):
        a, b = torch.tensor(one), torch.tensor(other)
        changes += (torch.sigmoid(a - 2.65) - torch.sigmoid(b - 2.65)).abs().tolist()
        orders.append(float(kendalltau(one, other).statistic))
    return changes, orders


def print_row(way: str, name: str, changes: list[float], orders: list[float], *measures: list[float]) -> None:
    cells = [f"{sum(changes) / len(changes):.4f}", f"{max(changes):.3f}", f"{sum(orders) / len(orders):.3f}"]
    cells += [f"{sum(some) / len(some):.3f}" for some in measures] or ["", ""]
    print(f"| {way} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
