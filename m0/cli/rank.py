"""`m0 rank`."""

from __future__ import annotations

import argparse
import sys

from m0.cli.formatting import display_name, format_table, snippet
from m0.cli.output import format_json
from m0.cli.ranking import RankedSources, rank_sources
from m0.errors import InputError


def run_rank(options: argparse.Namespace) -> int:
    """Rank, in as many processes as there are, and show the ranking in the first."""
    import torch.distributed as dist

    from m0.engine.parallel import processes
    from m0.engine.torchrun import exit_status, only_first_on_stderr

    with processes() as first, only_first_on_stderr(first):
        shared = dist.is_initialized()
        if shared and "-" in options.documents:
            raise InputError("several processes cannot share the standard input; give a file.")
        ranked = rank_sources(options, shared, verbose=first, once=True)
        return exit_status(_show(options, ranked)) if first else 0


def _show(options: argparse.Namespace, ranked: RankedSources) -> int:
    from m0.inputs.prompt import Cut

    if options.json:
        results = [
            {
                "index": number,
                "name": source.name,
                "score": result.score,
                "logit": result.logit,
                "tokens": result.tokens,
                "cut": [vars(cut) for cut in result.cut],
                "id": source.id,
                "metadata": source.metadata,
                "passage": None if result.passage is None else result.passage.to_json(),
            }
            for number, source, result in ranked.rows
        ]
        failed = [{"index": number, "name": name, "error": error} for number, name, error in ranked.failures]
        print(format_json({"query": options.query, "model": options.model, "results": results, "failed": failed}))
    elif ranked.rows:
        rows = [(result.score, display_name(source, result), snippet(source.document)) for _, source, result in ranked.rows]
        print(format_table(rows, [result.logit for _, _, result in ranked.rows]))
        for _, source, result in ranked.rows:
            for cut in result.cut:
                print(f"m0: {source.name}: {'cut to fit: ' * isinstance(cut, Cut)}{cut}.", file=sys.stderr)
    return ranked.report_failures()
