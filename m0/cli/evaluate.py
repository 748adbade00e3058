"""`m0 evaluate`, with --winoground, too."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m0.cli.output import format_json
from m0.cli.policy import policy_of
from m0.errors import InputError

if TYPE_CHECKING:
    from m0.evaluate import Evaluation
    from m0.inputs.policy import SourcePolicy
    from m0.reranker import Reranker


def run_evaluate(options: argparse.Namespace) -> int:
    """Rerank a dataset, in as many processes as there are, and show the measures in the first."""
    from m0.engine.parallel import processes, use_cores
    from m0.engine.torchrun import exit_status, only_first_on_stderr
    from m0.evaluate import Dataset, Evaluation, bm25_run, evaluate, read_run
    from m0.evaluate.dataset import CORPUS, QRELS, QUERIES
    from m0.evaluate.metrics import DEFAULT_MEASURES, parse_measures

    use_cores(options.threads)
    policy = policy_of(options)
    if options.winoground:
        return _winoground(options, policy)
    _check_dataset(options.dataset, (CORPUS, QUERIES, f"{QRELS}/{options.split}.tsv"), policy)
    measures, ignore = options.measures or DEFAULT_MEASURES, not options.keep_identical_ids
    parse_measures(measures)  # wrong ones show before the work
    with processes() as first, only_first_on_stderr(first):
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
        other_evaluation = None if other is None else Evaluation.of(dataset, other, measures, ignore_identical_ids=ignore)
        reranker = _load(options, policy)
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
        return exit_status(_show(options, evaluation, other_evaluation, other_name)) if first else 0


def _show(options: argparse.Namespace, evaluation: Evaluation, other_evaluation: Evaluation | None, other_name: str) -> int:
    from m0.evaluate.files import MAX_NAMED_IDS

    print(format_json(evaluation.report(other_evaluation)) if options.json else evaluation.table(other_evaluation, other_name))
    for note in evaluation.notes:
        print(f"m0: {note}", file=sys.stderr)
    for remark in () if other_evaluation is None else other_evaluation.remarks:
        if remark not in evaluation.remarks:
            print(f"m0: {other_name}: {remark}", file=sys.stderr)
    failed = {subject: reason for subject, reason in evaluation.failed.items() if subject not in evaluation.dataset.unusable}
    # Candidates that are not in the corpus stand in the notes; ids hold no blanks, queries and pairs do.
    not_missing = {
        subject: reason for subject, reason in failed.items() if subject in evaluation.dataset.corpus or " " in subject
    }
    for subject, reason in list(not_missing.items())[:MAX_NAMED_IDS]:
        print(f"m0: {subject}: {reason}", file=sys.stderr)
    if len(not_missing) > MAX_NAMED_IDS:
        print(f"m0: {len(not_missing)} could not be used, the others in the report (--json, --out).", file=sys.stderr)
    return 1 if failed else 0


def _check_dataset(directory: str, files: Sequence[str], policy: SourcePolicy) -> None:
    """Raises InputError where the policy does not allow a file of the dataset to be read."""
    for file in files:
        policy.check_path(os.path.join(directory, file))


def _load(options: argparse.Namespace, policy: SourcePolicy) -> Reranker:
    from m0.reranker import Reranker

    return Reranker.from_pretrained(
        options.model, options.dtype, options.device, adapter=options.adapter, max_pixels=options.max_pixels, policy=policy
    )


def _winoground(options: argparse.Namespace, policy: SourcePolicy) -> int:
    from m0.engine.parallel import processes
    from m0.engine.torchrun import only_first_on_stderr
    from m0.evaluate import evaluate_contrasts, load_contrasts
    from m0.evaluate.contrast import EXAMPLES_FILE

    unused = {"--out": options.out, "--compare": options.compare, "--measures": options.measures}
    if given := [name for name, value in unused.items() if value is not None]:
        raise InputError(f"--winoground prints its three scores only; leave out {' and '.join(given)}.")
    _check_dataset(options.dataset, (EXAMPLES_FILE,), policy)
    examples = load_contrasts(options.dataset)
    with processes() as first, only_first_on_stderr(first):
        reranker = _load(options, policy)
        scores = evaluate_contrasts(
            reranker, examples, batch_tokens=options.batch_tokens, max_length=options.max_length, progress=first
        )
        if first and options.json:
            print(format_json({"examples": len(examples), "scores": {name: vars(value) for name, value in scores.items()}}))
        elif first:
            rows = [f"| {name} | {value} |" for name, value in scores.items()]
            print("\n".join(["| score | mean [95 % interval] |", "| --- | --- |", *rows]))
    return 0
