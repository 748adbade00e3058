"""What `m0 rank` and `m0 explain` share: the documents of the command line, ranked."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m0.cli.sources import Source, is_address, print_message, read_sources
from m0.engine.progress import is_terminal
from m0.errors import InputError
from m0.inputs.texts import kind_by_name
from m0.paths import path_of

if TYPE_CHECKING:
    from m0.reranker import RankedDocument, Reranker

MIN_DOCUMENTS_FOR_BAR = 8
"""Fewer documents show no progress bar on a terminal."""


@dataclass(frozen=True)
class RankedSources:
    """Documents of the command line in their order, and what could not be ranked."""

    reranker: Reranker
    query: dict[str, str]
    rows: list[tuple[int, Source, RankedDocument]]
    """Number on the command line, source, result; best first."""
    failures: list[tuple[int, str, str]]

    def report_failures(self) -> int:
        """Print on stderr what could not be ranked. Returns the exit status."""
        for _, name, error in self.failures:
            print(f"m0: {name}: {error}" if name not in error else f"m0: {error}", file=sys.stderr)
        return 2 if not self.rows else 1 if self.failures else 0


def rank_sources(
    options: argparse.Namespace, shared: bool = False, report: Path | None = None, verbose: bool = True
) -> RankedSources:
    """Rank what the command line names.

    `report`: a file that will be written, and so must not be one of the documents. `verbose`: whether this process says how far it
    has come.
    """
    notify = print_message if verbose else lambda _: None
    sources = [source for argument in options.documents for source in read_sources(argument, notify)]
    if report is not None and report.exists():
        for name in (*(os.path.expanduser(name) for name in options.documents), *(source.name for source in sources)):
            if os.path.isfile(name) and os.path.samefile(name, report):
                raise InputError(f"{report} is one of the documents; the report needs a file of its own.")
    usable = [(number, source) for number, source in enumerate(sources) if source.error is None]
    failures = [(number, source.name, source.error) for number, source in enumerate(sources) if source.error is not None]
    if not usable:
        for _, _, error in failures:
            print(f"m0: {error}", file=sys.stderr)
        raise InputError("there is no document to rank.")
    if not options.image_query and _is_picture_file(options.query):
        print(f"m0: the query {options.query!r} is read as text; --image-query shows the picture.", file=sys.stderr)
    from m0.engine.parallel import use_cores
    from m0.engine.prefix_cache import DocumentCache  # imported here so that --help and wrong arguments answer at once
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
    )
    if options.documents_folder is not None:
        reranker.documents = DocumentCache(folder=options.documents_folder)
    query = {"image": options.query} if options.image_query else {"text": options.query}
    ranking = reranker.rank(
        query,
        [source.document for _, source in usable],
        top_n=options.top_n,
        batch_tokens=options.batch_tokens,
        progress=verbose and needs_progress_bar(len(usable)),
        on_error="skip",
        max_length=options.max_length,
        max_query_length=options.max_query_length,
        shared=shared,
    )
    if unwritten := reranker.documents.counts.unwritten:
        print(
            f"m0: {unwritten} of the documents could not be kept in {options.documents_folder}; is it full or write-protected?",
            file=sys.stderr,
        )
    failures += [(usable[failed.index][0], usable[failed.index][1].name, failed.error) for failed in ranking.failed]
    return RankedSources(reranker, query, [(*usable[result.index], result) for result in ranking], failures)


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
