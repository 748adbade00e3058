"""What the command line takes: each command with its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from m0.cli.evaluate import run_evaluate
from m0.cli.explain import run_explain
from m0.cli.fetch import run_fetch
from m0.cli.info import run_info
from m0.cli.policy import add_policy_arguments
from m0.cli.rank import run_rank
from m0.cli.rank_many import CommandParser, add_many_arguments
from m0.cli.train import run_train

DOCUMENTS_HELP = (
    'A .jsonl file (or -, standard input) holds a document a line: a JSON string, {"text": ...}, '
    '{"image": path or URL} (paths relative to the file), or a list of these. On standard input, lines that are '
    "not JSON are documents of plain text. A URL is a picture. Each page of a PDF, of a TIFF with several pages, and of a CBZ is a document. "
    "Named .json, .csv, .tsv and .parquet files hold a document a record. Of a folder, text files, pictures, files with pages, HTML and office "
    "files, e-mails and .jsonl files are read."
)


def parser() -> argparse.ArgumentParser:
    """The whole. `parse_args` gives the function that runs the command as `run`."""
    parser = argparse.ArgumentParser(prog="m0", description="jina-reranker-m0 in pure PyTorch: rank texts and pictures.")
    commands: argparse._SubParsersAction[argparse.ArgumentParser] = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=CommandParser
    )
    _add_rank(commands)
    _add_explain(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_info(commands)
    _add_fetch(commands)
    return parser


def _add_rank(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "rank",
        help="rank documents by relevance to a query",
        description="Rank text files, pictures and JSON lines by relevance to a query.",
        epilog=DOCUMENTS_HELP,
    )
    _add_ranking_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_many_arguments(parser)
    parser.set_defaults(run=run_rank)


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "explain",
        help="show which words and picture regions made the scores",
        description="Rank documents and explain each score: words and picture cells that speak for a document or against it.",
        epilog=DOCUMENTS_HELP,
    )
    _add_ranking_arguments(parser)
    parser.add_argument("--method", help="how to explain (frozen_gradient; docs/explanation/explaining.md compares all)")
    parser.add_argument("--pixels", action="store_true", help="through the vision tower down to pixels (methods by gradient)")
    parser.add_argument(
        "--no-matrix", action="store_true", help="without the matrix of query and document, which --json and --html show"
    )
    parser.add_argument("--unit", choices=("word", "sentence"), help="what is left out at a time (occlusion, shapley)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no network")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write each picture under its heat map")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run_explain)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train an adapter, the score head or everything",
        description="Train as a TOML file says; docs/guides/training.md explains every setting. Runs under torchrun, too.",
    )
    parser.add_argument("config", help="TOML file")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--output", help="the run's directory, instead of the config's")
    parser.set_defaults(run=run_train)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="rerank a dataset and measure the rankings",
        description="Rerank a dataset in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), pictures included.",
    )
    parser.add_argument("dataset", help="the dataset's directory")
    parser.add_argument("--split", default="test", help="which judgements: qrels/SPLIT.tsv (test)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--candidates", metavar="RUN", help="TREC run whose documents are reranked (default: all documents)")
    source.add_argument(
        "--winoground", action="store_true", help="the directory's examples.jsonl has captions and pictures to match"
    )
    source.add_argument("--bm25", type=int, metavar="N", help="rerank the N documents that BM25 finds, and compare with BM25")
    parser.add_argument("--compare", metavar="RUN", help="TREC run to compare with: differences and their significance")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep scores, run.trec and report.json; goes on where it stopped"
    )
    parser.add_argument("--measures", nargs="+", metavar="M", help="such as nDCG@10 R@100 RR AP P@5 Success@1")
    parser.add_argument(
        "--keep-identical-ids",
        action="store_true",
        help="rank the document with the query's own id, too; it is left out by default, as BEIR does",
    )
    parser.add_argument("--model", default="m0-nano", help="m0-nano (default), a directory, or a hub id")
    parser.add_argument("--adapter", help="directory of a LoRA adapter in peft's format")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--max-length", type=int, default=10240, help="tokens of query and document together (10240)")
    _add_running_arguments(parser)
    add_policy_arguments(parser)
    parser.set_defaults(run=run_evaluate)


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="print sizes, parameters, type and memory of a model")
    parser.add_argument(
        "model", nargs="?", default="m0-nano", metavar="PATH", help="m0-nano (default), a directory, or a hub id"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_info)


def _add_fetch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("fetch", help="download a model into weights/")
    parser.add_argument("model", help="hub id, such as jinaai/jina-reranker-m0")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to put it (default: weights/OWNER/NAME)")
    parser.set_defaults(run=run_fetch)


def _add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", help="the query; with --image-query the path or URL of a picture")
    parser.add_argument("documents", nargs="+", metavar="FILE|FILE#PAGES|DIR|URL|DOCUMENTS.jsonl|-", help="what to rank")
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
    _add_reading_arguments(parser)
    parser.add_argument("--documents-folder", metavar="DIR", help="keep computed documents there for later queries")


def _add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """How documents are read and cut, and where they may come from."""
    pages = parser.add_argument_group("pages and long documents")
    pages.add_argument("--pages", metavar="PAGES", help="of files with pages only these, such as 1-3,7 (also: FILE#1-3,7)")
    pages.add_argument(
        "--as",
        dest="as_",
        choices=("image", "text", "both", "auto"),
        default="image",
        help="a PDF's page is its picture (default), its text, both, or (auto) the text of pages that have text and no pictures",
    )
    pages.add_argument("--password", help="of protected PDFs and archives")
    pages.add_argument(
        "--whole",
        action="store_true",
        help="a file with pages is one document, scored by its best page (default: each page is one)",
    )
    pages.add_argument("--passages", type=int, metavar="N", help="cut texts into passages of N tokens; the best one counts")
    pages.add_argument(
        "--overlap", type=int, metavar="N", help="tokens that a passage shares with the one before (an eighth of N)"
    )
    pages.add_argument(
        "--passage-score",
        choices=("max", "first", "mean"),
        default="max",
        help="a document's score: of its best passage (default), of its first, or the mean of its best three",
    )
    records = parser.add_argument_group("records")
    records.add_argument("--text-field", metavar="NAME", help="field of a record that holds the text")
    records.add_argument("--image-field", metavar="NAME", help="field of a record that holds the picture")
    records.add_argument("--id-field", metavar="NAME", help="field of a record that holds the id")
    records.add_argument("--encoding", help="of texts and records that are not UTF-8, such as cp1252")
    add_policy_arguments(parser)


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
