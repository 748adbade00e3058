"""Reproduce the published scores of jina-reranker-m0 with the released weights, and print ours beside them.

    m0 fetch jinaai/jina-reranker-m0
    python scripts/verify_release.py [--model weights/jinaai/jina-reranker-m0] [--texts texts.json] [--pictures FOLDER]

The released weights (CC BY-NC 4.0) are not part of this project, and this script has not been run with them: whoever has
them is the first to know. The published figures were made on a GPU in half precision, so expect agreement to about 0.02.

--texts is a JSON list of the four texts of the vendor's announcement, in its order (the ReaderLM-v2 paragraph in English, the
Chinese line on regular expressions, the gold-rush line, the German paragraph). They are the vendor's and not repeated here.
--pictures is a folder with the four pictures of the vendor's public test set:
    handelsblatt-preview.png  paper-11.png  wired-preview.png  using-deepseek-r1-reasoning-model-in-deepsearch.webp
Cases whose texts or pictures are missing are left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from m0 import M0Error, Reranker

PICTURES = (
    "handelsblatt-preview.png",
    "paper-11.png",
    "wired-preview.png",
    "using-deepseek-r1-reasoning-model-in-deepsearch.webp",
)
QUERY = "slm markdown"
# name, query ("text" or the second picture), documents, max_length, published scores
CASES = (
    ("text to text", "text", "texts", 1024, (0.6839, 0.4432, 0.5904, 0.4548)),
    ("text to picture", "text", "pictures", 2048, (0.4938, 0.7890, 0.4781, 0.5211)),
    ("picture to text", "picture", "texts", 2048, (0.9810, 0.7702, 0.5637, 0.9309)),
    ("picture to picture", "picture", "pictures", 2048, (0.6276, 0.9922, 0.8090, 0.7941)),
)
TOLERANCE = 0.02
HOSTED_QUERY = "small language model data extraction"
# The vendor's hosted API ranked pictures 1 to 3, text 1, picture 4, texts 2 to 4 in one list, and counted 2829 tokens.
HOSTED = (0.8828, 0.9587, 0.8892, 0.9337, 0.8701, 0.8455, 0.8677, 0.8923)
HOSTED_TOKENS = 2829


def read_texts(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    texts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(texts, list) or len(texts) != 4 or not all(isinstance(text, str) for text in texts):
        sys.exit(f"{path} must hold a JSON list of four strings.")
    return texts


def find_pictures(folder: Path | None) -> list[dict[str, Path]] | None:
    if folder is None:
        return None
    if missing := [name for name in PICTURES if not (folder / name).exists()]:
        sys.exit(f"{folder} lacks {', '.join(missing)}.")
    return [{"image": folder / name} for name in PICTURES]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/jinaai/jina-reranker-m0")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    options = parser.parse_args()
    documents: dict[str, Any] = {"texts": read_texts(options.texts), "pictures": find_pictures(options.pictures)}
    if not any(documents.values()):
        sys.exit("Nothing to compare: give --texts, --pictures, or both.")
    try:
        reranker = Reranker.from_pretrained(options.model, dtype=options.dtype, device=options.device)
    except M0Error as error:
        sys.exit(str(error))
    worst = 0.0
    print(f"{'case':20} {'document':>8}  {'published':>9}  {'ours':>7}  {'difference':>10}")
    for name, kind, which, max_length, published in CASES:
        if documents[which] is None or (kind == "picture" and documents["pictures"] is None):
            print(f"{name:20} left out: no {which if documents[which] is None else 'pictures'} given")
            continue
        query: Any = QUERY if kind == "text" else documents["pictures"][1]
        scores = reranker.score([(query, document) for document in documents[which]], max_length=max_length)
        for number, (theirs, ours) in enumerate(zip(published, scores, strict=True), 1):
            worst = max(worst, abs(ours - theirs))
            print(f"{name:20} {number:>8}  {theirs:9.4f}  {ours:7.4f}  {ours - theirs:+10.4f}")
    if documents["texts"] is None or documents["pictures"] is None:
        print("hosted API           left out: needs texts and pictures")
    else:
        texts, pictures = documents["texts"], documents["pictures"]
        mixed = [*pictures[:3], texts[0], pictures[3], *texts[1:]]
        ranking = reranker.rank(HOSTED_QUERY, mixed)
        for result in sorted(ranking, key=lambda result: result.index):
            theirs = HOSTED[result.index]
            print(f"{'hosted API':20} {result.index:>8}  {theirs:9.4f}  {result.score:7.4f}  {result.score - theirs:+10.4f}")
        order = sorted(range(len(HOSTED)), key=lambda i: -HOSTED[i])
        print(f"hosted API: published order {order}, ours {[result.index for result in ranking]}; ", end="")
        print(
            f"tokens {HOSTED_TOKENS} published, {sum(result.tokens['total'] for result in ranking)} ours (their way of counting"
        )
        print("and their settings are not published, so this case does not count for the largest difference)")
    print(f"largest difference {worst:.4f}; expected at most about {TOLERANCE}, as the published scores are half precision")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
