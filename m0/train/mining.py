"""Hard negatives: documents that the present model ranks high for a query, though they are not its positives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from m0.errors import InputError
from m0.reranker import Reranker
from m0.train.config import TrainConfig
from m0.train.data import Example, Examples, document_key

MAX_SHARE_OF_POSITIVE_SCORE = 0.95
"""Another query's document that scores above this share of the query's best positive is left out, as it may well be relevant
(Moreira et al. 2024, NV-Retriever); the line's own negatives are known not to be."""


def mine(
    reranker: Reranker,
    examples: Examples,
    numbers: Sequence[int],
    keep: int,
    pool: int,
    seed: int,
    limits: dict[str, Any] | None = None,
    after_each: Callable[[], None] = lambda: None,
) -> dict[int, tuple[Any, ...]]:
    """Look for hard negatives of some queries.

    Each query meets its own positives and negatives and the positives of `pool` other queries, drawn by seed. Of what is not
    its positive, the `keep` best-scored are returned, without others' documents that score as the positives do (see SAFETY), or
    that are the query itself, as among questions that ask the same.

    Args:
        reranker: the model as it is now.
        examples: all queries; `numbers` are those to mine for.
        keep: hard negatives wanted, a query.
        pool: other queries whose positives are tried.
        seed: of the draw.
        limits: max_length and the like, for `Reranker.rank`.
        after_each: called after each query, for a bar.

    Returns: for each number its hard negatives, hardest first, fewer where there are not enough.
    """
    mined: dict[int, tuple[Any, ...]] = {}
    for number in numbers:
        example = examples[number]
        rng = random.Random(f"mine {seed} {number}")
        others = [i for i in rng.sample(range(len(examples)), min(pool + 1, len(examples))) if i != number][:pool]
        positives = {document_key(document) for document in example.positive}
        negatives: dict[str, Any] = {document_key(document): document for document in example.negative}
        for i in others:
            for document in _borrowable_positives(examples[i], example):
                negatives.setdefault(document_key(document), document)
        documents = [*example.positive, *(document for key, document in negatives.items() if key not in positives)]
        try:
            ranking = reranker.rank(example.query, documents, on_error="skip", **(limits or {}))
        except InputError:  # the query itself cannot be read; training reports it as its on_bad_line says
            mined[number] = example.negative[:keep]
            after_each()
            continue
        count = len(example.positive)
        best = max((result.score for result in ranking if result.index < count), default=1.0)
        known = {document_key(document) for document in example.negative}
        hard = [
            result.document
            for result in ranking
            if result.index >= count
            and (result.score <= MAX_SHARE_OF_POSITIVE_SCORE * best or document_key(result.document) in known)
        ]
        mined[number] = tuple(hard[:keep])
        after_each()
    return mined


def mine_for_stage(
    run: Path, config: TrainConfig, number: int, reranker: Reranker, examples: Examples, rank: int, world: int
) -> dict[int, tuple[Any, ...]]:
    """Hard negatives for a stage, each process mining its share; kept in the run's directory for a resumed run.

    Args:
        run: the run's directory.
        config, number: the config, and the stage's number, from 0.
        reranker, examples: the model as it is now, and all queries.
        rank, world: this process's number, and how many there are.
    """
    stage = config.stages[number]
    if not stage.hard_negatives:
        return {}
    path = run / f"hard-negatives-{number + 1}.jsonl"
    if not path.exists():
        numbers = range(rank, len(examples), world)
        limits = {name: getattr(config, name) for name in ("max_length", "max_query_length", "max_doc_length")}
        reranker.model.eval()
        seed = config.seed + number
        mined = mine(reranker, examples, numbers, stage.hard_negatives, stage.mining_pool, seed, limits)
        reranker.model.train()
        if world > 1:
            parts: list[Any] = [None] * world
            dist.all_gather_object(parts, mined)
            mined = {i: documents for part in parts for i, documents in part.items()}
        if rank == 0:
            partial = path.with_suffix(".partial")
            with partial.open("w", encoding="utf-8") as file:
                for i in sorted(mined):
                    file.write(json.dumps({"line": i, "negative": mined[i]}, ensure_ascii=False) + "\n")
            partial.replace(path)
        if world > 1:
            dist.barrier()
    with path.open(encoding="utf-8") as file:
        return {row["line"]: tuple(row["negative"]) for row in map(json.loads, file)}


def _borrowable_positives(other: Example, example: Example) -> tuple[Any, ...]:
    query_key = document_key(example.query)
    if document_key(other.query) == query_key:
        return ()
    return tuple(document for document in other.positive if document_key(document) != query_key)
