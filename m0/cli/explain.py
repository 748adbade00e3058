"""`m0 explain`."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m0.cli.output import format_json
from m0.cli.ranking import RankedSources, needs_progress_bar, rank_sources
from m0.engine.progress import Progress
from m0.errors import InputError
from m0.paths import path_of

if TYPE_CHECKING:
    from m0.explain.explanation import Explanation


def run_explain(options: argparse.Namespace) -> int:
    """Rank, explain each score, and show the explanations."""
    from m0.explain import DEFAULT_METHOD

    method = options.method or DEFAULT_METHOD
    settings = _settings(options, method)
    _check_output_paths(options)
    ranked, explanations = _explain_sources(options, rank_sources(options, report=options.html), method, settings)
    _show(options, ranked, explanations)
    return ranked.report_failures()


def _settings(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The method's own options. Raises InputError where there is no such method or it has no such option."""
    from m0.explain import METHODS, method_of, options_of

    if method not in METHODS:
        raise InputError(f"--method is {method!r}, but must be one of {', '.join(METHODS)}.")
    settings: dict[str, Any] = {"pixels": True} if options.pixels else {}
    settings |= {"unit": options.unit} if options.unit else {}
    if options.no_matrix and "matrix" in options_of(method):
        settings["matrix"] = False
    method_of(method, settings)
    return settings


def _check_output_paths(options: argparse.Namespace) -> None:
    """Check before the work that the page and the pictures can be written. Raises InputError."""
    options.html, options.png = (path and path_of(path) for path in (options.html, options.png))
    if options.html and not options.html.absolute().parent.is_dir():
        raise InputError(f"{options.html} cannot be written: its folder does not exist.")
    if options.html and options.html.is_dir():
        raise InputError(f"{options.html} cannot be written: it is a folder.")
    if options.png and options.png.exists() and not options.png.is_dir():
        raise InputError(f"{options.png} cannot be written: it is no folder.")


def _explain_sources(
    options: argparse.Namespace, ranked: RankedSources, method: str, method_options: dict[str, Any]
) -> tuple[RankedSources, list[Explanation]]:
    """The documents that could be explained, and their explanations; the others are failures, too."""
    from m0.engine.passages import encode_passage
    from m0.explain import keep_originals, note_ranking_score, of_passage
    from m0.inputs.prompt import Limits
    from m0.inputs.reading import read_parts_and_warn

    settings = keep_originals(ranked.reranker.image_settings)
    query = read_parts_and_warn(ranked.query, "query", settings)
    limits = Limits(options.max_length, options.max_query_length)
    explanations, rows = [], []
    bar = Progress(len(ranked.rows), "explaining", needs_progress_bar(len(ranked.rows)))
    for number, source, result in ranked.rows:
        try:
            encoding = encode_passage(
                ranked.reranker, query, source.document, limits, result.passage, ranked.passages, settings
            )
            explanation = of_passage(ranked.reranker.explain_prompt(encoding, method, **method_options), result.passage)
        except InputError as error:
            ranked.failures.append((number, source.name, str(error)))
            continue
        finally:
            bar.advance()
        explanations.append(note_ranking_score(explanation, result.logit, result.score))
        rows.append((number, source, result))
    bar.close()
    return replace(ranked, rows=rows), explanations


def _show(options: argparse.Namespace, ranked: RankedSources, explanations: list[Explanation]) -> None:
    from m0.explain.html import page
    from m0.explain.show import replace_control_characters

    rows = ranked.rows
    names = [source.name for _, source, _ in rows]
    if options.json:
        failed = [{"index": number, "name": name, "error": error} for number, name, error in ranked.failures]
        results = [
            {"index": number, "name": source.name, **e.to_json()}
            for (number, source, _), e in zip(rows, explanations, strict=True)
        ]
        print(format_json({"query": options.query, "model": options.model, "results": results, "failed": failed}))
    else:
        for place, (name, explanation) in enumerate(zip(names, explanations, strict=True), 1):
            print(f"{place}. {replace_control_characters(name)}\n{textwrap.indent(str(explanation), '   ')}\n")
    if options.html and rows:
        page(explanations, options.html, names=names)
    if options.png:
        for place, (name, explanation) in enumerate(zip(names, explanations, strict=True), 1):
            if explanation.pictures:
                stem = "".join(c if c.isalnum() else "-" for c in Path(name).name)[:40]
                explanation.to_png(options.png / f"{place:03d}-{stem}")
