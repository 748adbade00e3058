"""Measure m0-nano on what was held out from its training, BM25 and the untrained model beside it, through the calls users make.

    PYTHONPATH=scripts python -m nano.evaluate [--model weights/m0-nano] [--write weights/m0-nano/README.md] [--figures FILE.json]
    PYTHONPATH=scripts python -m nano.evaluate --only headings typefaces --limit 30   # a quick look

| `--only` | query | candidates |
| --- | --- | --- |
| headings | heading of a held-out section | pages of 20 held-out sections of its language (typefaces of the training) |
| libreoffice-pages | the same of LibreOffice's help, if DATA has it | the same |
| translated | the section's heading in another language | the same pages |
| layouts | a page of the section in another layout and typeface | the same pages |
| typefaces | two words of the body of one page, on none of the others | 20 pages in typefaces never shown, text of 16 to 24 pixels |
| heights | the same | 20 pages, the same sections with text of 12 to 28 pixels |
| scripts | the same, in scripts without blanks two short strings | 20 pages in other scripts |
| pointing | a word of a page | whether the hottest cell of the default explanation lies on the word |
| same | heading of a held-out section | the 50 sections of its language that BM25 finds, training's among them |
| libreoffice | the same of LibreOffice's help, if DATA has it | the same |
| across | heading of a held-out section | 20 sections of another language |
| rare | two words with a typo; a number or date; a name | 20 held-out sections; what is asked for stands in one |
| emoji | a held-out name | 20 emoji as their files are |
| changed | a held-out name | 20 emoji on another background, of another size, cropped, blurred, turned by 10 degrees |
| fluent | a held-out name | 20 emoji of a maker never shown, if DATA has them |
| names | an emoji as its file is | 20 names in one language, the right one held out |
| sheets | a held-out name | 10 sheets of six emoji; the right one has it among them |
| alike | an emoji, changed | 20 emoji as their files are |
| mixed | a held-out name | 20 pictures; 20 texts (keywords in another language); 10 of each |
| clipart | a held-out name | 20 held-out drawings on white |
| figures | heading of a section with a figure | 8 sections, each with its figure |
| code | a held-out docstring's first sentence | 20 held-out functions |

A section is given by its first 600 characters, to BM25 as well; a page to the model as a picture, to BM25 by the words that stand on it.
One candidate is right. Candidates are drawn with a fixed seed. Intervals are 95 % bootstrap intervals over queries. The untrained model
is asked a tenth of the queries.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import torch
from nano import tasks_pages, tasks_pictures, tasks_texts
from nano.measuring import Question, Task, a_tenth, format_estimate, model_scores, score_all, values, write_between
from nano.tables import Result, report

from m0 import Reranker

__all__ = ["SEED", "Question", "Task", "build_tasks", "format_estimate", "model_scores", "values", "write_between"]
SEED = 11
MARKS = ("<!-- figures: written by scripts/nano/evaluate.py -->", "<!-- end of figures -->")
BUILDERS: dict[str, Callable[[Path, random.Random], list[Task]]] = {
    "headings": tasks_pages.headings,
    "libreoffice-pages": tasks_pages.libreoffice_headings,
    "translated": tasks_pages.translated_headings,
    "layouts": tasks_pages.other_layouts,
    "typefaces": tasks_pages.typefaces,
    "heights": tasks_pages.heights,
    "scripts": tasks_pages.scripts,
    "pointing": tasks_pages.pointing,
    "same": tasks_texts.same_language,
    "libreoffice": tasks_texts.libreoffice_texts,
    "across": tasks_texts.across_languages,
    "rare": tasks_texts.rare_words,
    "emoji": tasks_pictures.emoji_names,
    "changed": tasks_pictures.changed_pictures,
    "fluent": tasks_pictures.another_maker,
    "names": tasks_pictures.picture_to_name,
    "sheets": tasks_pictures.sheets,
    "alike": tasks_pictures.alike,
    "mixed": tasks_pictures.mixed_lists,
    "clipart": tasks_pictures.clipart,
    "figures": tasks_pictures.figures,
    "code": tasks_texts.code,
}


def build_tasks(data: Path, only: Collection[str] = ()) -> list[Task]:
    """The tasks of these names, or all. Each has a seed of its own, so that it asks the same whichever others are built."""
    tasks = []
    for name, build in BUILDERS.items():
        if not only or name in only:
            found = build(data, random.Random(crc32(f"{SEED} {name}".encode())))
            if not found:
                print(f"{name}: {data} has no material for it, so it is left out.", flush=True)
            tasks += found
    return tasks


def shorten(task: Task, limit: int) -> Task:
    """The first questions of each group, so many in all or a few more."""
    groups: dict[str, list[Question]] = {}
    for question in task.questions:
        groups.setdefault(question.group, []).append(question)
    each = max(1, limit // len(groups))
    kept = [question for some in groups.values() for question in some[:each]] if task.groups else task.questions[:limit]
    return replace(task, questions=kept)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/nano-data"))
    parser.add_argument("--model", type=Path, default=Path("weights/m0-nano"))
    parser.add_argument("--untrained", type=Path, help="default: DATA/untrained, which nano/train.py leaves there")
    parser.add_argument("--only", nargs="+", choices=BUILDERS, default=[], metavar="TASK", help="only these tasks")
    parser.add_argument("--limit", type=int, help="ask so many questions of each task")
    parser.add_argument("--earlier", type=Path, help="--figures of earlier weights, for a column of their own")
    parser.add_argument("--write", type=Path, help="put the tables between the marks of this model card")
    parser.add_argument("--figures", type=Path, help="write the figures as JSON")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 or bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-pixels", type=int, help="of pictures; default: the checkpoint's")
    parser.add_argument("--processes", type=int, default=2, help="that share the questions out, each on one core; on a GPU 1")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1.")
    if options.write and (options.only or options.limit):
        parser.error("--write needs all tasks in full, so it does not go with --only and --limit.")
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    processes = options.processes if options.device == "cpu" else 1

    def loader(model: Path) -> Callable[[], Reranker]:
        return lambda: Reranker.from_pretrained(
            model, dtype=options.dtype, device=options.device, max_pixels=options.max_pixels
        )

    begin = time.monotonic()
    tasks = build_tasks(options.data, options.only)
    if options.limit:
        tasks = [shorten(task, options.limit) for task in tasks]
    print(f"{sum(len(task.questions) for task in tasks):,} questions, {time.monotonic() - begin:.0f} s", flush=True)
    trained = score_all(loader(options.model), tasks, processes, told=True)
    print("untrained, on a tenth of the questions:", flush=True)
    tenths = {task.name: a_tenth(task) for task in tasks}
    fewer = [replace(task, questions=[task.questions[i] for i in tenths[task.name]]) for task in tasks]
    untrained = score_all(loader(options.untrained or options.data / "untrained"), fewer, processes, told=True)
    results = [
        Result(task, trained[task.name], values(few, untrained[task.name])) for task, few in zip(tasks, fewer, strict=True)
    ]
    earlier = json.loads(options.earlier.read_text(encoding="utf-8")) if options.earlier else {}
    text, figures = report(results, earlier)
    print(f"{text}\n\n{time.monotonic() - begin:.0f} s in all")
    if options.write:
        write_between(options.write, MARKS, text)
    if options.figures:
        options.figures.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
