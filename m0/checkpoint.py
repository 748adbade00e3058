"""Safetensors in, safetensors out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from m0.model import RerankerModel

HUB_LAYOUT = {"vision.": "visual.", "decoder.": "model.", "head.": "score."}


def save_checkpoint(model: RerankerModel, directory: Path, tokenizer_file: Path | None = None, dtype=None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, value in model.state_dict().items():
        for ours, theirs in HUB_LAYOUT.items():
            if key.startswith(ours):
                tensors[theirs + key[len(ours) :]] = value.detach().to(dtype or value.dtype).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2))
    if tokenizer_file and tokenizer_file.parent != directory:
        shutil.copyfile(tokenizer_file, directory / "tokenizer.json")
