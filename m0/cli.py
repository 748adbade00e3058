"""The command line: `m0 rank`, `m0 explain`, `m0 train`, `m0 evaluate`, `m0 info`, `m0 fetch`.

Exit status: 0 done; 1 ranked, but some documents could not be used (they are named on stderr); 2 nothing done. Under torchrun 0 stands
for 1 as well, for torchrun takes every other status for a crash, and reports it as one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m0.errors import InputError, M0Error
from m0.paths import path_of
from m0.progress import Progress, is_terminal
from m0.sources import Source, is_address, read_sources, say
from m0.table import format_table, snippet
from m0.texts import kind_by_name

if TYPE_CHECKING:
    from m0.evaluate import Evaluation
    from m0.reranker import RankedDocument, Reranker

BAR_FROM_DOCUMENTS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot write must not end the ranking
            stream.reconfigure(errors="replace")
    shown_before, warnings.showwarning = warnings.showwarning, _say_warning
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except M0Error as error:
        if not _said_by_first(f"m0: {error}"):
            print(f"m0: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("m0: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, most likely
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = f"{error.filename} cannot be used" if error.filename else "the output cannot be written"
        print(f"m0: {what}: {error.strerror or error}.", file=sys.stderr)
        return 2
    finally:
        warnings.showwarning = shown_before


def _say_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning as the other messages are, without the line of code that it comes from."""
    text = " ".join(str(message).split())
    print(f"m0: {text}" if category is UserWarning else f"m0: {category.__name__}: {text}", file=sys.stderr)


def _said_by_first(sentence: str) -> bool:
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # then there is no need to wait for PyTorch to be imported
        return False
    from m0.torchrun import first_says

    return first_says(sentence)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="m0", description="jina-reranker-m0 in pure PyTorch: rank texts and pictures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    documents_help = (
        'A .jsonl file (or -, standard input) holds a document a line: a JSON string, {"text": ...}, '
        '{"image": path or URL} (paths relative to the file), or a list of these. On standard input, lines that are '
        "not JSON are documents of plain text. A URL is a picture. Of a folder, text files, pictures and .jsonl files are read."
    )
    rank = commands.add_parser(
        "rank",
        help="rank documents by relevance to a query",
        description="Rank text files, pictures and JSON lines by relevance to a query.",
        epilog=documents_help,
    )
    _add_ranking_arguments(rank)
    rank.add_argument("--json", action="store_true", help="print JSON instead of a table")
    rank.set_defaults(run=_rank)

    explain = commands.add_parser(
        "explain",
        help="show which words and picture regions made the scores",
        description="Rank documents and explain each score: words and picture cells that speak for a document or against it.",
        epilog=documents_help,
    )
    _add_ranking_arguments(explain)
    explain.add_argument("--method", help="how to explain (frozen_gradient; docs/explaining.md compares all)")
    explain.add_argument("--pixels", action="store_true", help="through the vision tower down to pixels (methods by gradient)")
    explain.add_argument(
        "--no-matrix", action="store_true", help="without the matrix of query and document, which --json and --html show"
    )
    explain.add_argument("--unit", choices=("word", "sentence"), help="what is left out at a time (occlusion, shapley)")
    explain.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no network")
    explain.add_argument("--png", type=Path, metavar="DIR", help="write each picture under its heat map")
    explain.add_argument("--json", action="store_true", help="print JSON instead of text")
    explain.set_defaults(run=_explain)

    train = commands.add_parser(
        "train",
        help="train an adapter, the score head or everything",
        description="Train as a TOML file says; docs/training.md explains every setting. Runs under torchrun, too.",
    )
    train.add_argument("config", help="TOML file")
    train.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    train.add_argument("--output", help="the run's directory, instead of the config's")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="rerank a dataset and measure the rankings",
        description="Rerank a dataset in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), pictures included.",
    )
    evaluate.add_argument("dataset", help="the dataset's directory")
    evaluate.add_argument("--split", default="test", help="which judgements: qrels/SPLIT.tsv (test)")
    source = evaluate.add_mutually_exclusive_group()
    source.add_argument("--candidates", metavar="RUN", help="TREC run whose documents are reranked (default: all documents)")
    source.add_argument(
        "--winoground", action="store_true", help="the directory's examples.jsonl has captions and pictures to match"
    )
    source.add_argument("--bm25", type=int, metavar="N", help="rerank the N documents that BM25 finds, and compare with BM25")
    evaluate.add_argument("--compare", metavar="RUN", help="TREC run to compare with: differences and their significance")
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="keep scores, run.trec and report.json; goes on where it stopped"
    )
    evaluate.add_argument("--measures", nargs="+", metavar="M", help="such as nDCG@10 R@100 RR AP P@5 Success@1")
    evaluate.add_argument(
        "--keep-identical-ids",
        action="store_true",
        help="rank the document with the query's own id, too; it is left out by default, as BEIR does",
    )
    evaluate.add_argument("--model", default="m0-nano", help="m0-nano (default), a directory, or a hub id")
    evaluate.add_argument("--adapter", help="directory of a LoRA adapter in peft's format")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of tables")
    evaluate.add_argument("--max-length", type=int, default=10240, help="tokens of query and document together (10240)")
    _add_running_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)

    info = commands.add_parser("info", help="print sizes, parameters, type and memory of a model")
    info.add_argument("model", nargs="?", default="m0-nano", metavar="PATH", help="m0-nano (default), a directory, or a hub id")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    fetch = commands.add_parser("fetch", help="download a model into weights/")
    fetch.add_argument("model", help="hub id, such as jinaai/jina-reranker-m0")
    fetch.add_argument("--revision", help="branch, tag or commit")
    fetch.add_argument("--to", type=Path, metavar="DIR", help="where to put it (default: weights/OWNER/NAME)")
    fetch.set_defaults(run=_fetch)
    return parser


def _add_running_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels", type=int, help="pixels of a picture after resizing (the checkpoint's; released model: 602112)"
    )
    parser.add_argument(
        "--batch-tokens", type=int, help="tokens that go through the model at a time (2048 on a CPU, 16384 on a GPU)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="threads that compute (the cores this process may use)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or float64")


def _add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", help="the query; with --image-query the path or URL of a picture")
    parser.add_argument("documents", nargs="+", metavar="FILE|DIR|URL|DOCUMENTS.jsonl|-", help="what to rank")
    parser.add_argument("--image-query", action="store_true", help="the query is a picture")
    parser.add_argument("--model", default="m0-nano", help="m0-nano (default), a directory, or a hub id")
    parser.add_argument("--adapter", help="directory of a LoRA adapter in peft's format")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--top-n", type=int, help="show only the best N")
    parser.add_argument("--max-length", type=int, default=10240, help="tokens of query and document together (10240)")
    parser.add_argument("--max-query-length", type=int, default=512, help="tokens of the query's text (512)")
    parser.add_argument("--max-image-pixels", type=int, help="refuse larger pictures (178956970)")
    _add_running_arguments(parser)
    parser.add_argument(
        "--quantization",
        choices=("int8", "int8-weights", "float8"),
        help="linear layers in 8 bits, less exact: less memory, and with int8 on x86 CPUs more speed (float8: for GPUs that have it)",
    )
    parser.add_argument("--documents-folder", metavar="DIR", help="keep computed documents there for later queries")


# --- m0 rank and m0 explain -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """Documents of the command line in their order, and what could not be ranked."""

    reranker: Reranker
    query: dict[str, str]
    rows: list[tuple[int, Source, RankedDocument]]
    """Number on the command line, source, result; best first."""
    failures: list[tuple[int, str, str]]

    def status(self) -> int:
        for _, name, error in self.failures:
            print(f"m0: {name}: {error}" if name not in error else f"m0: {error}", file=sys.stderr)
        return 2 if not self.rows else 1 if self.failures else 0


def _ranked(options: argparse.Namespace, shared: bool = False, report: Path | None = None, talks: bool = True) -> Ranked:
    """`report`: a file that will be written, and so must not be one of the documents. `talks`: whether this process says how far it
    has come."""
    tell = say if talks else lambda _: None
    sources = [source for argument in options.documents for source in read_sources(argument, tell)]
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
    if not options.image_query and _names_picture(options.query):
        print(f"m0: the query {options.query!r} is read as text; --image-query shows the picture.", file=sys.stderr)
    from m0.documents import DocumentCache  # imported here so that --help and wrong arguments answer at once
    from m0.parallel import use_cores
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
        progress=talks and _worth_a_bar(len(usable)),
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
    return Ranked(reranker, query, [(*usable[result.index], result) for result in ranking], failures)


def _names_picture(query: str) -> bool:
    if kind_by_name(query) != "picture" or len(query) > 1000:
        return False
    try:
        return is_address(query) or path_of(query).is_file()
    except (InputError, OSError):
        return False


def _worth_a_bar(documents: int) -> bool:
    """A few documents need no bar on a terminal; a log gets lines only where it takes long."""
    return documents >= BAR_FROM_DOCUMENTS or not is_terminal()


def _rank(options: argparse.Namespace) -> int:
    import torch.distributed as dist

    from m0.parallel import processes
    from m0.torchrun import exit_status, one_voice

    with processes() as first, one_voice(first):
        shared = dist.is_initialized()
        if shared and "-" in options.documents:
            raise InputError("several processes cannot share the standard input; give a file.")
        found = _ranked(options, shared, talks=first)
        return exit_status(_show_ranking(options, found)) if first else 0


def _show_ranking(options: argparse.Namespace, found: Ranked) -> int:
    from m0.prompt import Cut

    if options.json:
        results = [
            {
                "index": number,
                "name": source.name,
                "score": result.score,
                "logit": result.logit,
                "tokens": result.tokens,
                "cut": [vars(cut) for cut in result.cut],
            }
            for number, source, result in found.rows
        ]
        failed = [{"index": number, "name": name, "error": error} for number, name, error in found.failures]
        print(_json({"query": options.query, "model": options.model, "results": results, "failed": failed}))
    elif found.rows:
        rows = [(result.score, source.name, snippet(source.document)) for _, source, result in found.rows]
        print(format_table(rows, [result.logit for _, _, result in found.rows]))
        for _, source, result in found.rows:
            for cut in result.cut:
                print(f"m0: {source.name}: {'cut to fit: ' * isinstance(cut, Cut)}{cut}.", file=sys.stderr)
    return found.status()


def _explain(options: argparse.Namespace) -> int:
    from m0.explain import DEFAULT_METHOD, METHODS, beside_ranking, method_of, options_of

    method = options.method or DEFAULT_METHOD
    if method not in METHODS:
        raise InputError(f"--method is {method!r}, but must be one of {', '.join(METHODS)}.")
    extra: dict[str, Any] = {"pixels": True} if options.pixels else {}
    extra |= {"unit": options.unit} if options.unit else {}
    if options.no_matrix and "matrix" in options_of(method):
        extra["matrix"] = False
    method_of(method, extra)
    options.html, options.png = (path and path_of(path) for path in (options.html, options.png))
    if options.html and not options.html.absolute().parent.is_dir():
        raise InputError(f"{options.html} cannot be written: its folder does not exist.")
    if options.html and options.html.is_dir():
        raise InputError(f"{options.html} cannot be written: it is a folder.")
    if options.png and options.png.exists() and not options.png.is_dir():
        raise InputError(f"{options.png} cannot be written: it is no folder.")
    found = _ranked(options, report=options.html)
    from m0.explain.html import page
    from m0.explain.show import printable

    explanations, rows = [], []
    bar = Progress(len(found.rows), "explaining", _worth_a_bar(len(found.rows)))
    for number, source, result in found.rows:
        try:
            encoding = found.reranker.encode(
                found.query, source.document, max_length=options.max_length, max_query_length=options.max_query_length
            )
            explanation = found.reranker.explain_prompt(encoding, method, **extra)
        except InputError as error:
            found.failures.append((number, source.name, str(error)))
            continue
        finally:
            bar.advance()
        explanations.append(beside_ranking(explanation, result.logit, result.score))
        rows.append((number, source, result))
    bar.close()
    found = replace(found, rows=rows)
    names = [source.name for _, source, _ in rows]
    if options.json:
        failed = [{"index": number, "name": name, "error": error} for number, name, error in found.failures]
        results = [
            {"index": number, "name": source.name, **e.to_json()}
            for (number, source, _), e in zip(rows, explanations, strict=True)
        ]
        print(_json({"query": options.query, "model": options.model, "results": results, "failed": failed}))
    else:
        for place, (name, explanation) in enumerate(zip(names, explanations, strict=True), 1):
            print(f"{place}. {printable(name)}\n{textwrap.indent(str(explanation), '   ')}\n")
    if options.html and rows:
        page(explanations, options.html, names=names)
    if options.png:
        for place, (name, explanation) in enumerate(zip(names, explanations, strict=True), 1):
            if explanation.pictures:
                stem = "".join(c if c.isalnum() else "-" for c in Path(name).name)[:40]
                explanation.to_png(options.png / f"{place:03d}-{stem}")
    return found.status()


def _json(value: Any) -> str:
    """JSON that standard output can write: file names need not be text, and terminals need not know all letters."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


# --- m0 train, m0 info, m0 fetch ------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    from m0.parallel import processes, use_cores
    from m0.train import TrainConfig, train

    use_cores()
    changes = {"output": os.path.abspath(path_of(options.output))} if options.output else {}
    config = TrainConfig.load(options.config, changes)
    with processes() as first:
        result = train(config, options.resume)
        if first:
            print(result)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from m0.evaluate import Dataset, Evaluation, bm25_run, evaluate, read_run
    from m0.evaluate.metrics import DEFAULT, parse_measures
    from m0.parallel import processes, use_cores
    from m0.reranker import Reranker
    from m0.torchrun import exit_status, one_voice

    use_cores(options.threads)
    if options.winoground:
        return _winoground(options)
    measures, ignore = options.measures or DEFAULT, not options.keep_identical_ids
    parse_measures(measures)  # wrong ones show before the work
    with processes() as first, one_voice(first):
        dataset = Dataset.load(options.dataset, options.split)
        candidates = bm25_run(dataset, options.bm25, ignore) if options.bm25 is not None else None
        if options.candidates:
            candidates = read_run(options.candidates)
        other = read_run(options.compare) if options.compare else candidates if options.bm25 is not None else None
        other_name = "BM25" if options.bm25 is not None and not options.compare else str(options.compare)
        if options.compare and other is not None:
            missing = len(dataset.queries.keys() - other.keys())
            if missing == len(dataset.queries):
                raise InputError(f"{options.compare} ranks none of the dataset's queries.")
            if missing:
                some = f"{missing} of the {len(dataset.queries)} queries; they count as 0 for it."
                print(f"m0: {options.compare} does not rank {some}", file=sys.stderr)
        beside = None if other is None else Evaluation.of(dataset, other, measures, ignore_identical_ids=ignore)
        reranker = Reranker.from_pretrained(
            options.model, options.dtype, options.device, adapter=options.adapter, max_pixels=options.max_pixels
        )
        evaluation = evaluate(
            reranker,
            dataset,
            candidates,
            options.out,
            measures,
            progress=True,
            ignore_identical_ids=ignore,
            batch_tokens=options.batch_tokens,
            max_length=options.max_length,
        )
        return exit_status(_show_evaluation(options, evaluation, beside, other_name)) if first else 0


def _show_evaluation(options: argparse.Namespace, evaluation: Evaluation, beside: Evaluation | None, other_name: str) -> int:
    from m0.evaluate.files import NAMED

    print(_json(evaluation.report(beside)) if options.json else evaluation.table(beside, other_name))
    for note in evaluation.notes:
        print(f"m0: {note}", file=sys.stderr)
    for remark in () if beside is None else beside.remarks:
        if remark not in evaluation.remarks:
            print(f"m0: {other_name}: {remark}", file=sys.stderr)
    failed = {what: why for what, why in evaluation.failed.items() if what not in evaluation.dataset.unusable}
    # Candidates that are not in the corpus stand in the notes; ids hold no blanks, queries and pairs do.
    tried = {what: why for what, why in failed.items() if what in evaluation.dataset.corpus or " " in what}
    for what, why in list(tried.items())[:NAMED]:
        print(f"m0: {what}: {why}", file=sys.stderr)
    if len(tried) > NAMED:
        print(f"m0: {len(tried)} could not be used, the others in the report (--json, --out).", file=sys.stderr)
    return 1 if failed else 0


def _winoground(options: argparse.Namespace) -> int:
    from m0.evaluate import evaluate_contrasts, load_contrasts
    from m0.parallel import processes
    from m0.reranker import Reranker
    from m0.torchrun import one_voice

    unused = {"--out": options.out, "--compare": options.compare, "--measures": options.measures}
    if given := [name for name, value in unused.items() if value is not None]:
        raise InputError(f"--winoground prints its three scores only; leave out {' and '.join(given)}.")
    examples = load_contrasts(options.dataset)
    with processes() as first, one_voice(first):
        reranker = Reranker.from_pretrained(
            options.model, options.dtype, options.device, adapter=options.adapter, max_pixels=options.max_pixels
        )
        scores = evaluate_contrasts(
            reranker, examples, batch_tokens=options.batch_tokens, max_length=options.max_length, progress=first
        )
        if first and options.json:
            print(_json({"examples": len(examples), "scores": {name: vars(value) for name, value in scores.items()}}))
        elif first:
            rows = [f"| {name} | {value} |" for name, value in scores.items()]
            print("\n".join(["| score | mean [95 % interval] |", "| --- | --- |", *rows]))
    return 0


def _info(options: argparse.Namespace) -> int:
    from m0.checkpoint import list_tensors, match_tensors, parameter_shapes
    from m0.config import RerankerConfig
    from m0.hub import locate

    directory = locate(options.model)
    config = RerankerConfig.load(directory)
    shapes = parameter_shapes(config)
    matched = match_tensors(list_tensors(directory), shapes, directory)
    parts = {
        part: sum(s.numel() for key, s in shapes.items() if key.startswith(part)) for part in ("vision", "decoder", "head")
    }
    total = sum(parts.values())
    types = sorted({tensor.type for tensor in matched.values()})
    memory = {"float32": 4 * total, "bfloat16 or float16": 2 * total}
    if options.json:
        sizes = {"path": str(directory), **config.sizes(), "parameters": {**parts, "total": total}, "stored_as": types}
        print(json.dumps({**sizes, "memory_bytes": memory}, indent=2))
        return 0
    vision, decoder = config.vision, config.decoder
    embeddings = shapes["decoder.embed_tokens.weight"].numel()
    stored = sum(tensor.bytes for tensor in matched.values())
    print(
        textwrap.dedent(f"""\
        {directory}
        vision tower   {_count(parts["vision"])} parameters: {vision.depth} blocks, width {vision.hidden_size}, \
{vision.num_heads} heads of {vision.head_dim}, {vision.patch_size} px patches merged {vision.spatial_merge_size}x{vision.spatial_merge_size}
        decoder        {_count(parts["decoder"])} parameters ({_count(embeddings).strip()} of them embeddings): \
{decoder.num_layers} layers, width {decoder.hidden_size}, {decoder.num_heads} query and {decoder.num_kv_heads} key/value heads \
of {decoder.head_dim}, MLP {decoder.intermediate_size}, vocabulary {decoder.vocab_size}, {decoder.max_positions} positions
        score head     {_count(parts["head"])} parameters
        total          {_count(total)} parameters, stored as {" and ".join(types)}, {stored / 2**20:,.0f} MiB
        memory needed  {memory["float32"] / 2**20:,.0f} MiB in float32, \
{memory["bfloat16 or float16"] / 2**20:,.0f} MiB in bfloat16 or float16, plus what a batch needs""")
    )
    return 0


def _count(number: int) -> str:
    return f"{number / 1e6:9,.2f} M"


def _fetch(options: argparse.Namespace) -> int:
    from m0.hub import fetch

    print(fetch(options.model, options.revision, options.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
