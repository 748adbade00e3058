"""`m0 rank --queries`: documents ranked by each query of a file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m0.cli.ranking import passages_of
from m0.cli.sources import PLAIN, ReadingOptions, Source, is_address, print_message, read_sources
from m0.errors import InputError
from m0.inputs.document import Document
from m0.paths import path_of

if TYPE_CHECKING:
    from m0.evaluate.rankings import Format, QueryRankings

DEFAULT_TOP_N = 100
MAX_NAMED = 20
"""How many failures are named before the rest is counted."""


class CommandParser(argparse.ArgumentParser):
    """A command's parser. With --queries, where the command has it, every positional argument is a document, and none is the query."""

    takes_queries = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self.takes_queries:
            return super().parse_known_args(args, namespace)
        words = list(sys.argv[1:] if args is None else args)
        finder = argparse.ArgumentParser(add_help=False, exit_on_error=False)
        finder.add_argument("--queries", nargs="?", action="append")
        has_queries = finder.parse_known_args(words)[0].queries is not None
        # An empty text takes the query's place.
        options, rest = super().parse_known_args(["", *words] if has_queries else words, namespace)
        if has_queries:
            options.run, options.query = run_rank_many, None
        elif options.write_run is not None or options.candidates is not None:
            self.error(f"{'--candidates' if options.write_run is None else '--write-run'} goes with --queries")
        return options, rest


def add_many_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `m0 rank` for many queries."""
    assert isinstance(parser, CommandParser)
    parser.takes_queries = True
    many = parser.add_argument_group("many queries")
    many.add_argument(
        "--queries",
        metavar="FILE",
        help="rank by each query of a file (.jsonl, .json, .csv, .tsv: an id, a tab, a query; .txt: a query a line); there is no QUERY then",
    )
    many.add_argument(
        "--write-run",
        metavar="FILE",
        help="write the rankings there, as a TREC run, or as JSON lines (.jsonl, --json); goes on where it stopped",
    )
    many.add_argument("--candidates", metavar="RUN", help="TREC run whose documents are ranked (default: all documents)")


class Sources:
    """The documents of the command line, read anew each time they are gone through. What could not be read is in `failed`."""

    def __init__(
        self, arguments: Sequence[str], notify: Callable[[str], None] = print_message, reading: ReadingOptions = PLAIN
    ) -> None:
        self.arguments, self.notify, self.reading = arguments, notify, reading
        self.failed: dict[str, str] = {}

    def __iter__(self) -> Iterator[Document]:
        self.failed.clear()
        notify, self.notify = self.notify, lambda _: None  # once will do
        for argument in self.arguments:
            for source in read_sources(argument, notify, self.reading):
                if source.error is not None:
                    self.failed[source.name] = source.error
                else:  # with an id: its own, or its name
                    yield _with_id(source)


def _with_id(source: Source) -> Document:
    return Document(source.document, source.name if source.id is None else source.id, source.metadata)


def run_rank_many(options: argparse.Namespace) -> int:
    """Rank by many queries, in as many processes as there are, and write or print the rankings in the first."""
    from m0.engine.parallel import processes
    from m0.engine.torchrun import exit_status, only_first_on_stderr

    with processes() as first, only_first_on_stderr(first):
        return exit_status(_rank(options, first))


def _rank(options: argparse.Namespace, first: bool) -> int:
    _check(options)
    from m0.engine.parallel import use_cores
    from m0.engine.prefix_cache import DocumentCache
    from m0.evaluate import rank_many, read_queries, read_run
    from m0.reranker import Reranker

    queries = read_queries(options.queries)
    candidates = None if options.candidates is None else read_run(options.candidates)
    reading = ReadingOptions.of(options)
    sources = Sources(options.documents, reading=reading)
    form: Format = "jsonl" if options.json or str(options.write_run or "").lower().endswith(".jsonl") else "trec"
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
    rankings = rank_many(
        reranker,
        queries,
        iter(sources) if "-" in options.documents else sources,
        candidates,
        DEFAULT_TOP_N if options.top_n is None else options.top_n,
        options.write_run,
        form,
        batch_tokens=options.batch_tokens,
        progress=True,
        max_length=options.max_length,
        max_query_length=options.max_query_length,
        passages=passages_of(options),
    )
    return _report(options, rankings, sources.failed, form) if first else 0


def _report(options: argparse.Namespace, rankings: QueryRankings, unread: Mapping[str, str], form: Format) -> int:
    """Print the rankings unless they are in a file, and on stderr what is to be known of them."""
    if options.write_run is None:
        for line in rankings.lines(form):
            print(line)
    else:
        pairs = f"{rankings.scored:,} pairs scored"
        print_message(pairs + (f", {rankings.reused:,} were scored before." if rankings.reused else "."))
    for remark in rankings.remarks:
        print_message(remark)
    failed = {**unread, **rankings.failed}
    for name, error in list(failed.items())[:MAX_NAMED]:
        print_message(error if name in error else f"{name}: {error}")
    if len(failed) > MAX_NAMED:
        print_message(f"{len(failed) - MAX_NAMED:,} more could not be used.")
    return 1 if failed else 0


def _check(options: argparse.Namespace) -> None:
    """Raises InputError for what cannot go together, before anything is read."""
    import torch.distributed as dist

    if options.image_query:
        raise InputError('--image-query is of one query; with --queries a picture is a record with "image".')
    if dist.is_initialized() and "-" in options.documents:
        raise InputError("several processes cannot share the standard input; give a file.")
    if options.write_run is None:
        return
    out = path_of(options.write_run)
    for what, name in _inputs(options):
        if _is_same(out, name):
            raise InputError(f"{options.write_run} is {what}; the rankings need a file of their own.")
        if what == "one of the documents" and _is_read_with_folder(out, name):
            raise InputError(
                f"{options.write_run} would be read as a document, since it lies in {name}; write the rankings elsewhere."
            )


def _inputs(options: argparse.Namespace) -> Iterable[tuple[str, str]]:
    yield "the file of queries", options.queries
    if options.candidates is not None:
        yield "the file of candidates", options.candidates
    for name in options.documents:
        if name != "-" and not is_address(name):
            yield "one of the documents", name


def _is_same(out: Path, name: str) -> bool:
    try:
        return out.exists() and os.path.samefile(out, path_of(name))
    except (OSError, ValueError, InputError):
        return False


def _is_read_with_folder(out: Path, name: str) -> bool:
    """Whether a folder's documents would be read from `out`, too."""
    from m0.inputs.texts import kind_by_name

    try:
        folder = path_of(name)
        is_inside = folder.is_dir() and out.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, InputError):
        return False
    return is_inside and (out.suffix.lower() == ".jsonl" or kind_by_name(out) is not None)
