"""What `m0 rank` and `m0 explain` share: the documents of the command line, ranked."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from m0.cli.sources import ReadingOptions, Source, is_address, print_message, read_sources
from m0.engine.progress import is_terminal
from m0.errors import InputError
from m0.inputs.document import Document
from m0.inputs.texts import kind_by_name
from m0.paths import path_of

if TYPE_CHECKING:
    from m0.inputs.passages import Passages
    from m0.reranker import RankedDocument, Reranker

READ_AT_ONCE = 1000
"""Documents that are known before the first is ranked; with more nobody knows how many there are."""
MIN_DOCUMENTS_FOR_BAR = 8
"""Fewer documents show no progress bar on a terminal."""


@dataclass(frozen=True)
class _SourceDocument(Document):
    """A document that remembers what the command line calls it."""

    source: Source = field(default_factory=lambda: Source(""))
    number: int = 0


@dataclass(frozen=True)
class RankedSources:
    """Documents of the command line in their order, and what could not be ranked."""

    reranker: Reranker
    query: dict[str, str]
    rows: list[tuple[int, Source, RankedDocument]]
    """Number on the command line, source, result; best first."""
    failures: list[tuple[int, str, str]]
    passages: Passages
    """How documents were cut."""

    def report_failures(self) -> int:
        """Print on stderr what could not be ranked. Returns the exit status."""
        for _, name, error in self.failures:
            print(f"m0: {name}: {error}" if name not in error else f"m0: {error}", file=sys.stderr)
        return 2 if not self.rows else 1 if self.failures else 0


def rank_sources(
    options: argparse.Namespace, shared: bool = False, report: Path | None = None, verbose: bool = True, once: bool = False
) -> RankedSources:
    """Rank what the command line names.

    `report`: a file that will be written, and so must not be one of the documents. `verbose`: whether this process says how far it
    has come. `once`: nothing is asked of the documents afterwards, so that none need be kept.
    """
    reading = ReadingOptions.of(options)
    passages = passages_of(options)
    failures: list[tuple[int, str, str]] = []
    sources = _usable_sources(options, reading, failures, print_message if verbose else lambda _: None, report)
    begun = list(itertools.islice(sources, READ_AT_ONCE))
    if not begun:
        for _, _, error in failures:
            print(f"m0: {error}", file=sys.stderr)
        raise InputError("there is no document to rank.")
    if not options.image_query and _is_picture_file(options.query):
        print(f"m0: the query {options.query!r} is read as text; --image-query shows the picture.", file=sys.stderr)
    from m0.engine.options import RunOptions
    from m0.engine.parallel import use_cores
    from m0.engine.prefix_cache import DocumentCache  # imported here so that --help and wrong arguments answer at once
    from m0.engine.ranking import rank
    from m0.inputs.prompt import Limits
    from m0.reranker import Reranker

    use_cores(options.threads)
    reranker = Reranker.from_pretrained(
        options.model,
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        adapter=options.adapter,
        max_pixels=options.max_pixels,
        max_image_pixels=options.max_image_pixels,
        quantization=options.quantization,
        policy=reading.settings.policy,
    )
    if options.documents_folder is not None:
        reranker.documents = DocumentCache(folder=options.documents_folder)
    elif once:
        reranker.documents = DocumentCache(max_bytes=0)
    query = {"image": options.query} if options.image_query else {"text": options.query}
    rest = list(sources) if shared or len(begun) < READ_AT_ONCE else None
    documents = itertools.chain(begun, sources) if rest is None else [*begun, *rest]
    limits = Limits(options.max_length, options.max_query_length)
    run = RunOptions(options.batch_tokens, verbose and (rest is None or needs_progress_bar(len(begun) + len(rest))), shared)
    with reranker.calls.shared():
        ranking = rank(reranker, query, documents, options.top_n, "skip", None, limits, run, passages)
    if unwritten := reranker.documents.counts.unwritten:
        print(
            f"m0: {unwritten} of the documents could not be kept in {options.documents_folder}; is it full or write-protected?",
            file=sys.stderr,
        )
    failures += [(failed.document.number, failed.document.source.name, failed.error) for failed in ranking.failed]
    rows = [(result.document.number, result.document.source, result) for result in ranking]
    return RankedSources(reranker, query, rows, sorted(failures), passages)


def passages_of(options: argparse.Namespace) -> Passages:
    """How documents are cut, as the arguments say. Raises InputError."""
    from m0.inputs.passages import PAGES, Passages

    if options.passages is None:
        if options.overlap is not None:
            raise InputError("--overlap goes with --passages.")
        return replace(PAGES, score=options.passage_score)
    return Passages(options.passages, options.overlap, options.passage_score)


def _usable_sources(
    options: argparse.Namespace,
    reading: ReadingOptions,
    failures: list[tuple[int, str, str]],
    notify: Callable[[str], None],
    report: Path | None,
) -> Iterator[_SourceDocument]:
    """The documents, one after the other; those that cannot be used go to `failures`."""
    number = 0
    for argument in options.documents:
        _refuse_report(os.path.expanduser(argument), report)
        for source in read_sources(argument, notify, reading):
            if source.error is not None:
                failures.append((number, source.name, source.error))
            else:
                if isinstance(source.document, dict):
                    _refuse_report(source.name, report)
                yield _SourceDocument(source.document, source.id, source.metadata, source, number)
            number += 1


def _refuse_report(name: str, report: Path | None) -> None:
    if report is not None and report.exists() and os.path.isfile(name) and os.path.samefile(name, report):
        raise InputError(f"{report} is one of the documents; the report needs a file of its own.")


def _is_picture_file(query: str) -> bool:
    if kind_by_name(query) != "picture" or len(query) > 1000:
        return False
    try:
        return is_address(query) or path_of(query).is_file()
    except (InputError, OSError):
        return False


def needs_progress_bar(documents: int) -> bool:
    """A few documents need no bar on a terminal; a log gets lines only where it takes long."""
    return documents >= MIN_DOCUMENTS_FOR_BAR or not is_terminal()
