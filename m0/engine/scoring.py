"""Prompts in, raw logits out: batched, prefixes cached, shared out over processes, watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m0.engine.batch import Batch
from m0.engine.batching import batches
from m0.engine.cascade import Cascade
from m0.engine.host import Host
from m0.engine.parallel import distribute_work
from m0.engine.prefixes import begin_lookup, find_cacheable, get_or_compute_prefixes
from m0.engine.progress import Progress
from m0.engine.visual_features import VisualFeatures
from m0.engine.watching import announce_call, wants_every_token
from m0.errors import M0Error
from m0.inputs.prompt import Encoding
from m0.model.attention import group_equal


@dataclass(frozen=True)
class ScoringCall:
    """How the prompts of one call are scored."""

    batch_tokens: int
    """Tokens that go through the model at a time."""
    progress: bool = False
    pictures: VisualFeatures | None = None
    """Visual features computed earlier in the same call."""
    shared: bool = False
    """Whether every process scores some of the documents."""


def score_prompts(
    host: Host,
    encodings: list[Encoding],
    how: ScoringCall,
    draft: Cascade | None = None,
    part_of: tuple[Progress, float] | None = None,
) -> Tensor:
    """Raw logits in the order given, float32 (float64 for a float64 model), on the CPU, (prompts,).

    `draft`: the cascade whose draft scores these are. `part_of`: the progress of a longer call, and how much of it these prompts are;
    None: they have a bar of their own. Raises M0Error where a score is not a number.
    """
    pictures = how.pictures
    if pictures is None or host.sessions:  # who watches sees every picture of a call
        pictures = VisualFeatures(host.model, host.sessions)

    def score_numbers(numbers: Iterable[int]) -> Tensor:
        # What is recorded may be used where gradients flow, so then it must not be inference's.
        with torch.no_grad() if host.sessions else torch.inference_mode():
            return _score_locally(host, [encodings[i] for i in numbers], how, draft, pictures, part_of)

    if not how.shared:
        return score_numbers(range(len(encodings)))
    documents = group_equal(encoding.document_key for encoding in encodings).values()
    groups = sorted(documents, key=lambda members: -sum(len(encodings[i]) for i in members))
    logits = distribute_work(groups, lambda numbers: score_numbers(numbers).tolist())
    dtype = torch.promote_types(host.model.dtype, torch.float32)
    return torch.tensor([logits[number] for number in range(len(encodings))], dtype=dtype)


def _score_locally(
    host: Host,
    encodings: list[Encoding],
    how: ScoringCall,
    draft: Cascade | None,
    pictures: VisualFeatures,
    part_of: tuple[Progress, float] | None,
) -> Tensor:
    """The same in this process."""
    # The same prompt twice is scored once: a row's place in a batch may change its last bit.
    row_of_key: dict[Any, int] = {}
    keys = [place if host.sessions else encoding.key for place, encoding in enumerate(encodings)]
    row_of_prompt = [row_of_key.setdefault(key, len(row_of_key)) for key in keys]
    unique = list(dict(zip(row_of_prompt, encodings, strict=True)).values())
    order: list[int] = []
    batch_logits: list[Tensor] = []
    tokens = sum(len(encoding) for encoding in unique)
    bar = part_of[0].part(tokens, part_of[1]) if part_of else Progress(tokens, "scoring", how.progress)
    # A draft score is no reason to compute a document whole, nor to count it as seen.
    has_cache = host.documents.max_bytes or host.documents.folder is not None
    lookup = begin_lookup(host, pictures) if has_cache and not host.sessions and not draft else None
    cacheable = find_cacheable(unique, lookup) if lookup else set()
    # Who watches wants every pair to have tokens of its own.
    share, every_token = not host.sessions, wants_every_token(host.sessions)
    with announce_call(host, unique):
        for members in batches(unique, how.batch_tokens, cacheable, share):
            batch_encodings = [unique[i] for i in members]
            cacheable_encodings = [encoding for encoding in batch_encodings if encoding.document_key in cacheable]
            prefixes = get_or_compute_prefixes(host, cacheable_encodings, how.batch_tokens, pictures, lookup) if lookup else {}
            batch = Batch.of(batch_encodings, share, host.model.device, prefixes)
            features = pictures.get_or_compute(batch.pictures)
            for session in host.sessions:
                session.enter_batch(members, batch.packing)
            order += members
            batch_logits.append(batch.score(host.model, features, draft.depth if draft else None, every_token))
            bar.advance(sum(len(unique[i]) for i in members))
    bar.close()
    logits = torch.empty(len(unique), dtype=torch.promote_types(host.model.dtype, torch.float32))
    if batch_logits:
        logits[order] = torch.cat(batch_logits).to("cpu", logits.dtype)
    if not torch.isfinite(logits).all():
        raise M0Error(
            f"the model gave a score that is not a number in {host.model.dtype}; its weights are damaged or overflow this type."
        )
    return logits[row_of_prompt]
