"""Reproduce the published scores of jina-reranker-m0 with the released weights, and print ours beside them.

    m0 fetch jinaai/jina-reranker-m0
    python scripts/verify_release.py [--model weights/jinaai/jina-reranker-m0] [--texts texts.json] [--pictures FOLDER]

The released weights (CC BY-NC 4.0) are not part of this project, and this script has not been run with them: whoever has
them is the first to know. Exit status: 0 all within the bounds below, 1 something is not or could not be scored, 2 nothing could be compared.

The vendor has published two tables of the same 16 pairs, both made on a GPU in bfloat16:
- Scores of its own code. sigmoid is taken in float32 there, so that each score tells its logit, a bfloat16 number, exactly.
  Logits are compared. Texts: one step of bfloat16 at the published logit's size (1/64 from 2 to 4, 1/32 from 4 to 8).
  Pictures: four steps, as the picture's path rounds as well: it is not said with which version of which library, in which
  the same picture differs by one or two grey levels, the vendor's were resized, and the tower's 32 blocks add to it.
- Scores through sentence-transformers. sigmoid is taken in bfloat16 there, whose steps above 0.5 are 1/256; they differ from
  the first table's by up to 0.017. Relevances are compared, within 0.02.

--texts is a JSON list of the four texts of the vendor's announcement, in its order (the ReaderLM-v2 paragraph in English, the
Chinese line on regular expressions, the gold-rush line, the German paragraph). They are the vendor's and not repeated here.
--pictures is a folder with the four pictures of the vendor's public test set:
    handelsblatt-preview.png  paper-11.png  wired-preview.png  using-deepseek-r1-reasoning-model-in-deepsearch.webp
Cases whose texts or pictures are missing or cannot be read are left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m0 import M0Error, Reranker
from m0.inputs.images import ImageSettings
from m0.inputs.reading import read_parts
from m0.paths import path_of

PICTURES = (
    "handelsblatt-preview.png",
    "paper-11.png",
    "wired-preview.png",
    "using-deepseek-r1-reasoning-model-in-deepsearch.webp",
)
QUERY = "slm markdown"
TEXT_STEPS, PICTURE_STEPS = 1, 4
TOLERANCE = 0.02


@dataclass(frozen=True)
class Case:
    """Four published pairs: the query against each document of a kind."""

    name: str
    query: str
    """"text", or "picture", the second of them."""
    documents: str
    """"texts" or "pictures"."""
    max_length: int
    logits: tuple[float, ...]
    """Of the first table: sigmoid(logit - 2.65), to four places, is what is printed there."""
    relevances: tuple[float, ...]
    """Of the second."""

    @property
    def steps(self) -> int:
        """How many steps of bfloat16 a logit may be off."""
        return TEXT_STEPS if (self.query, self.documents) == ("text", "texts") else PICTURE_STEPS


CASES = (
    Case("text to text", "text", "texts", 1024, (3.421875, 2.421875, 3.015625, 2.46875), (0.6875, 0.4434, 0.5938, 0.4590)),
    Case("text to picture", "text", "pictures", 2048, (2.625, 3.96875, 2.5625, 2.734375), (0.4980, 0.7813, 0.4824, 0.5039)),
    Case("picture to text", "picture", "texts", 2048, (6.59375, 3.859375, 2.90625, 5.25), (0.9805, 0.7773, 0.5664, 0.9297)),
    Case("picture to picture", "picture", "pictures", 2048, (3.171875, 7.5, 4.09375, 4.0), (0.6250, 0.9922, 0.8125, 0.7930)),
)
HOSTED_QUERY = "small language model data extraction"
# The vendor's hosted API ranked pictures 1 to 3, text 1, picture 4, texts 2 to 4 in one list, and counted 2829 tokens.
HOSTED = (0.8828, 0.9587, 0.8892, 0.9337, 0.8701, 0.8455, 0.8677, 0.8923)
HOSTED_TOKENS = 2829


@dataclass(frozen=True)
class Comparison:
    """One number of ours beside a published one."""

    published: float
    ours: float
    allowed: float

    @property
    def difference(self) -> float:
        return self.ours - self.published

    @property
    def passed(self) -> bool:
        return abs(self.difference) <= self.allowed  # false for NaN, too


def bfloat16_step(value: float) -> float:
    """The distance of two neighbouring bfloat16 numbers of this size, which have eight binary places."""
    return 2.0 ** (math.frexp(value)[1] - 8)


def compare_logits(case: Case, logits: Sequence[float]) -> list[Comparison]:
    """Our logits of a case's four pairs with those of the first table."""
    return [
        Comparison(theirs, ours, case.steps * bfloat16_step(theirs)) for theirs, ours in zip(case.logits, logits, strict=True)
    ]


def compare_relevances(case: Case, relevances: Sequence[float]) -> list[Comparison]:
    """Our relevances of a case's four pairs with those of the second table."""
    return [Comparison(theirs, ours, TOLERANCE) for theirs, ours in zip(case.relevances, relevances, strict=True)]


def read_texts(given: str | Path | None) -> list[str] | None:
    if given is None:
        return None
    path = path_of(given)
    try:
        texts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise M0Error(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(texts, list) or len(texts) != 4 or not all(isinstance(text, str) for text in texts):
        raise M0Error(f"{path} must hold a JSON list of four strings.")
    for number, text in enumerate(texts, 1):
        try:
            read_parts(text, "document", ImageSettings())
        except M0Error as error:
            raise M0Error(f"{path}: text {number} cannot be scored: {error}") from None
    return texts


def find_pictures(given: str | Path | None) -> list[dict[str, Path]] | None:
    if given is None:
        return None
    folder = path_of(given)
    if missing := [name for name in PICTURES if not (folder / name).exists()]:
        raise M0Error(f"{folder} lacks {', '.join(missing)}.")
    return [{"image": folder / name} for name in PICTURES]


def verify(reranker: Reranker, documents: dict[str, Any]) -> tuple[int, int, int]:
    """Score and print all cases whose documents are there.

    Returns how many numbers were compared, how many of these are outside, and how many cases could not be scored.
    """
    compared: list[Comparison] = []
    broken = 0
    bias = reranker.model.config.logit_bias
    print(f"{'case':20} {'document':>8}  {'what':9}  {'published':>9}  {'ours':>8}  {'difference':>10}  {'allowed':>7}")
    for case in CASES:
        if missing := sorted(kind for kind in {case.documents, f"{case.query}s"} if documents.get(kind, True) is None):
            print(f"{case.name:20} left out: no {' and no '.join(missing)} given")
            continue
        query = QUERY if case.query == "text" else documents["pictures"][1]
        pairs = [(query, document) for document in documents[case.documents]]
        try:
            logits = reranker.logits(pairs, max_length=case.max_length)
        except M0Error as error:
            print(f"{case.name:20} left out: {error}")
            broken += 1
            continue
        relevances = [1 / (1 + math.exp(min(bias - logit, 700.0))) for logit in logits]
        for what, found in (("logit", compare_logits(case, logits)), ("relevance", compare_relevances(case, relevances))):
            compared += found
            for number, one in enumerate(found, 1):
                print(
                    f"{case.name:20} {number:>8}  {what:9}  {one.published:9.4f}  {one.ours:8.4f}  {one.difference:+10.4f}  "
                    f"{one.allowed:7.4f}{'' if one.passed else '  OUTSIDE'}"
                )
    return len(compared), sum(not one.passed for one in compared), broken


def show_hosted(reranker: Reranker, texts: list[str], pictures: list[Any]) -> None:
    """What the hosted API said of a mixed list. Its way of counting and its settings are not published: for the eye only."""
    try:
        ranking = reranker.rank(HOSTED_QUERY, [*pictures[:3], texts[0], pictures[3], *texts[1:]])
    except M0Error as error:
        print(f"{'hosted API':20} left out: {error}")
        return
    for result in sorted(ranking, key=lambda result: result.index):
        theirs = HOSTED[result.index]
        print(
            f"{'hosted API':20} {result.index:>8}  relevance  {theirs:9.4f}  {result.score:8.4f}  {result.score - theirs:+10.4f}"
        )
    order = sorted(range(len(HOSTED)), key=lambda i: -HOSTED[i])
    print(f"hosted API: published order {order}, ours {[result.index for result in ranking]};")
    print(f"tokens {HOSTED_TOKENS} published, {sum(result.tokens['total'] for result in ranking)} ours.")
    print("Its way of counting and its settings are not published, so that this case does not count.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/jinaai/jina-reranker-m0")
    parser.add_argument("--texts")
    parser.add_argument("--pictures")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    options = parser.parse_args(arguments)
    try:
        documents: dict[str, Any] = {"texts": read_texts(options.texts), "pictures": find_pictures(options.pictures)}
        if not any(documents.values()):
            raise M0Error("Nothing to compare: give --texts, --pictures, or both.")
        reranker = Reranker.from_pretrained(options.model, dtype=options.dtype, device=options.device)
        number, outside, broken = verify(reranker, documents)
        if documents["texts"] is None or documents["pictures"] is None:
            print("hosted API           left out: needs texts and pictures")
        else:
            show_hosted(reranker, documents["texts"], documents["pictures"])
    except M0Error as error:
        print(error, file=sys.stderr)
        return 2
    if not number:
        print("Nothing could be compared.", file=sys.stderr)
        return 2
    print(
        f"{number - outside} of {number} numbers are within the bounds: {TEXT_STEPS} step of bfloat16 for the logits of texts, "
        f"{PICTURE_STEPS} with pictures; {TOLERANCE} for relevances."
    )
    if broken:
        print(f"{broken} case{'s' * (broken > 1)} could not be scored.")
    return 1 if outside or broken else 0


if __name__ == "__main__":
    sys.exit(main())
