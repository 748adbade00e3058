"""Memory and time of a LoRA training step of the released size on a CPU, with random weights.

    python scripts/bench/training.py [--folder DIR] [--tokens 512] [--documents 4] [--steps 3]

Writes a random checkpoint of 2.2 B parameters in bfloat16 (4.4 GB) to a temporary folder, trains a LoRA adapter on it through
`m0.train.train` with gradient checkpointing, and prints the peak resident memory of the whole process. Limit: 20 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

LIMIT_GIB = 20.0


def write_checkpoint(folder: Path) -> None:
    """In a process of its own, so that its memory does not count."""
    from m0.checkpoints.files import save_checkpoint
    from m0.checkpoints.hub import locate
    from m0.model.config import RerankerConfig
    from m0.model.reranker_model import RerankerModel

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = RerankerModel(RerankerConfig())
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(-0.035, 0.035, generator=generator)
            if name.endswith("weight") and ("norm" in name or "ln_q" in name):
                parameter.add_(1.0)
    save_checkpoint(model, folder, tokenizer_file=locate("m0-nano") / "tokenizer.json")


def run_stages(script: str, folder: Path | None, stages: tuple[str, ...], arguments: list[str]) -> None:
    """Run a script's stages, each in a process of its own, on a temporary folder."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for stage in stages:
            subprocess.run([sys.executable, script, "--folder", temporary, "--stage", stage, *arguments], check=True)


def train_once(folder: Path, tokens: int, documents: int, steps: int) -> None:
    from m0.train import TrainConfig, train

    words = "the network must be configured after the system was installed on the disk ".split()
    text = " ".join(words[i % len(words)] for i in range(tokens))
    line = {
        "query": "network after installation",
        "positive": [text],
        "negative": [f"{i} {text}" for i in range(documents - 1)],
    }
    (folder / "train.jsonl").write_text((json.dumps(line) + "\n") * 4, encoding="utf-8")
    config = TrainConfig.of(
        {
            "model": str(folder / "model"),
            "data": [str(folder / "train.jsonl")],
            "output": str(folder / "run"),
            "dtype": "bfloat16",
            "gradient_checkpointing": True,
            "max_doc_length": tokens,
            "lora": {"r": 16, "alpha": 32.0},
            "stage": [
                {
                    "train": "lora",
                    "steps": steps,
                    "learning_rate": 1e-4,
                    "queries_per_step": 1,
                    "queries_per_pass": 1,
                    "negatives": documents - 1,
                }
            ],
        }
    )
    begin = time.monotonic()
    train(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{steps} steps of 1 query and {documents} documents of {tokens} tokens: {time.monotonic() - begin:.0f} s with loading and "
        f"saving, peak memory {peak:.1f} GiB (limit {LIMIT_GIB:.0f} GiB), {torch.get_num_threads()} threads"
    )
    if peak > LIMIT_GIB:
        sys.exit("above the limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put the checkpoint (5 GB); default: a temporary folder")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--stage", choices=["write", "train"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.stage == "write":
        write_checkpoint(options.folder / "model")
    elif options.stage == "train":
        train_once(options.folder, options.tokens, options.documents, options.steps)
    else:
        sizes = ["--tokens", str(options.tokens), "--documents", str(options.documents), "--steps", str(options.steps)]
        run_stages(__file__, options.folder, ("write", "train"), sizes)


if __name__ == "__main__":
    main()
