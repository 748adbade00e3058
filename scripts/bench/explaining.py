"""Time and memory of one gradient-based explanation at the released size on a CPU, beside a forward pass, with random weights.

    python scripts/bench/explaining.py [--folder DIR] [--tokens 800] [--runs 3] [--methods attnlrp frozen_gradient gradient_input]

Writes a random checkpoint of 2.2 B parameters in bfloat16 (4.4 GB) to a temporary folder, scores one pair and explains it. Bars: at
most 5 times the forward pass, and 16 GiB of memory, mapped weights included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from pathlib import Path

import torch
from speed import timed
from training import run_stages, write_checkpoint

TIMES, LIMIT_GIB = 5.0, 16.0


def measure(folder: Path, tokens: int, runs: int, methods: list[str]) -> None:
    from m0 import Reranker
    from m0.interp import forward

    reranker = Reranker.from_pretrained(folder / "model", dtype="bfloat16")
    words = "the network must be configured after the system was installed on the disk ".split()
    text = " ".join(words[i % len(words)] for i in range(2 * tokens))
    encoding = reranker.encode("network after installation", text, max_length=tokens, max_doc_length=tokens)

    def score() -> None:
        with torch.inference_mode():
            forward(reranker, [encoding])

    score()
    once = statistics.median(timed(score) for _ in range(runs))
    print(f"{len(encoding)} tokens, {torch.get_num_threads()} threads, bfloat16; forward {once:.2f} s (median of {runs})")
    failed = False
    for method in methods:
        seconds = statistics.median(timed(lambda method=method: reranker.explain_prompt(encoding, method)) for _ in range(runs))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{method}: {seconds:.2f} s, {seconds / once:.2f} times the forward pass; peak memory so far {peak:.1f} GiB",
            flush=True,
        )
        failed |= seconds > TIMES * once or peak > LIMIT_GIB
    if failed:
        sys.exit(f"above a bar ({TIMES:.0f} times, {LIMIT_GIB:.0f} GiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put the checkpoint (5 GB); default: a temporary folder")
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["frozen_gradient", "gradient_input", "attnlrp"])
    parser.add_argument("--stage", choices=["write", "measure"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.stage == "write":
        write_checkpoint(options.folder / "model")
    elif options.stage == "measure":
        measure(options.folder, options.tokens, options.runs, options.methods)
    else:
        sizes = ["--tokens", str(options.tokens), "--runs", str(options.runs), "--methods", *options.methods]
        run_stages(__file__, options.folder, ("write", "measure"), sizes)


if __name__ == "__main__":
    main()
