"""`m0 rank`."""

from __future__ import annotations

import argparse
import sys

from m0.cli.output import as_json
from m0.cli.ranking import Ranked, ranked
from m0.cli.tables import format_table, snippet
from m0.errors import InputError


def run_rank(options: argparse.Namespace) -> int:
    """Rank, in as many processes as there are, and show the ranking in the first."""
    import torch.distributed as dist

    from m0.engine.parallel import processes
    from m0.engine.torchrun import exit_status, one_voice

    with processes() as first, one_voice(first):
        shared = dist.is_initialized()
        if shared and "-" in options.documents:
            raise InputError("several processes cannot share the standard input; give a file.")
        found = ranked(options, shared, talks=first)
        return exit_status(_show(options, found)) if first else 0


def _show(options: argparse.Namespace, found: Ranked) -> int:
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
            }
            for number, source, result in found.rows
        ]
        failed = [{"index": number, "name": name, "error": error} for number, name, error in found.failures]
        print(as_json({"query": options.query, "model": options.model, "results": results, "failed": failed}))
    elif found.rows:
        rows = [(result.score, source.name, snippet(source.document)) for _, source, result in found.rows]
        print(format_table(rows, [result.logit for _, _, result in found.rows]))
        for _, source, result in found.rows:
            for cut in result.cut:
                print(f"m0: {source.name}: {'cut to fit: ' * isinstance(cut, Cut)}{cut}.", file=sys.stderr)
    return found.status()
