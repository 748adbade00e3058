"""What the scores of all tasks come to, as the tables of the model card and as figures for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nano.measuring import Task, bm25_values, by_group, chance, format_estimate, mean_difference, values

from m0.evaluate.metrics import estimate

LEAST_QUERIES = 50
"""Of a language, for a verdict on it."""


@dataclass
class Result:
    """What came of a task."""

    task: Task
    scores: list[list[float]]
    untrained: list[float]
    """The untrained model's measure, of a tenth of the questions."""

    def __post_init__(self) -> None:
        self.values = values(self.task, self.scores)
        self.bm25 = bm25_values(self.task)


def report(results: Sequence[Result], earlier: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Tables as Markdown, and the figures. `earlier`: figures of earlier weights, by task."""
    figures = {result.task.name: figures_of(result) for result in results}
    columns = ["task, candidates", "measure", "target", "m0-nano", *(["earlier weights"] if earlier else [])]
    columns += ["BM25", "untrained", "chance", "queries"]
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " --- |" * (len(columns) - 1)]
    for result in results:
        task, own = result.task, figures[result.task.name]
        cells = [task.name, task.measure, task.bar, format_estimate(estimate(result.values))]
        if earlier:
            cells.append(f"{earlier[task.name]['m0-nano']['mean']:.3f}" if task.name in earlier else "not measured")
        cells.append("no words" if result.bm25 is None else format_estimate(estimate(result.bm25)))
        cells += [f"{own['untrained']:.3f}", f"{own['chance']:.3f}", f"{own['queries']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    for result in results:
        if result.task.groups:
            lines += ["", *group_table(result)]
    listed = [line for result in results if not result.task.groups for line in group_list(result)]
    lines += ["", "Means by language of the query:", "", *listed] if listed else []
    compared = [line for result in results if result.task.key in ("same", "libreoffice") for line in comparison(result)]
    lines += ["", *compared] if compared else []
    return "\n".join(lines), figures


def figures_of(result: Result) -> dict[str, Any]:
    task = result.task
    found: dict[str, Any] = {
        "measure": task.measure,
        "m0-nano": vars(estimate(result.values)),
        "untrained": float(np.mean(result.untrained)),
        "chance": chance(task, result.scores),
        "queries": len(task.questions),
        "groups": {},
    }
    if result.bm25 is not None:
        found["BM25"] = vars(estimate(result.bm25))
        found["difference to BM25"] = vars(mean_difference(result.values, result.bm25))
    for group, numbers in by_group(task).items():
        own = [result.values[i] for i in numbers]
        found["groups"][group] = vars(estimate(own))
        if result.bm25 is not None:
            theirs = [result.bm25[i] for i in numbers]
            found["groups"][group] |= {"BM25": float(np.mean(theirs)), "difference to BM25": vars(mean_difference(own, theirs))}
    found["significantly below BM25"] = below_bm25(found)
    return found


def below_bm25(figures: dict[str, Any]) -> list[str]:
    """Groups with enough queries whose paired interval lies wholly below 0."""
    return [
        group
        for group, own in figures["groups"].items()
        if own["queries"] >= LEAST_QUERIES and own.get("difference to BM25", {"high": 0.0})["high"] < 0
    ]


def group_table(result: Result) -> list[str]:
    task = result.task
    lines = [
        f"{task.name}, by {task.groups}:",
        "",
        f"| {task.groups} | m0-nano | BM25 | queries |",
        "| --- | --- | --- | --- |",
    ]
    for group, numbers in by_group(task).items():
        own = estimate([result.values[i] for i in numbers])
        theirs = "no words" if result.bm25 is None else f"{np.mean([result.bm25[i] for i in numbers]):.3f}"
        lines.append(f"| {group} | {format_estimate(own)} | {theirs} | {own.queries} |")
    return lines


def group_list(result: Result) -> list[str]:
    """One line with the mean of each language; nothing where there is one group only."""
    groups = by_group(result.task)
    if len(groups) < 2:
        return []
    parts = []
    for group, numbers in groups.items():
        other = "" if result.bm25 is None else f" / {np.mean([result.bm25[i] for i in numbers]):.2f}"
        parts.append(f"{group} {np.mean([result.values[i] for i in numbers]):.2f}{other}")
    return [f"- {result.task.name}{'' if result.bm25 is None else ', m0-nano / BM25'}: {', '.join(parts)}."]


def comparison(result: Result) -> list[str]:
    """Against BM25 in pairs, over all queries and in each language with enough of them."""
    assert result.bm25 is not None
    figures = figures_of(result)
    whole = mean_difference(result.values, result.bm25)
    lines = [f"{result.task.name}, difference to BM25 in pairs: {whole.mean:+.3f} ({whole.low:+.3f} to {whole.high:+.3f})."]
    large = {group: own for group, own in figures["groups"].items() if own["queries"] >= LEAST_QUERIES}
    if large:
        below = figures["significantly below BM25"]
        lines[0] += (
            f" Significantly below BM25 in {', '.join(below) if below else 'no language'} of those with at least {LEAST_QUERIES} queries:"
        )
        lines += ["", "| language | m0-nano | BM25 | difference | queries |", "| --- | --- | --- | --- | --- |"]
    for group, own in large.items():
        change = own["difference to BM25"]
        lines.append(
            f"| {group} | {own['mean']:.3f} | {own['BM25']:.3f} | {change['mean']:+.3f} "
            f"({change['low']:+.3f} to {change['high']:+.3f}) | {own['queries']} |"
        )
    return [*lines, ""]
