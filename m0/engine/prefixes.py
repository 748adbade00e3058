"""Cached prefixes of the prompts that are scored: found, or computed where that is worth it, and told apart by the model's weights.

When is a prefix reused? Four steps decide, in this order, for each call that scores:

1. `m0.engine.scoring._score_locally` decides whether the call uses the cache at all: not during `record` and `edit`, not for the draft
   scores of a cascade, and not where the cache has neither memory nor a folder. `begin_lookup` then forgets prefixes of other weights.
2. `find_cacheable` decides which documents of the call are cached or worth caching: those in the cache, and of the others those that are
   long enough and were seen in an earlier call, or have a folder to go to, or have more queries than one batch takes.
3. `m0.engine.batching.batches` decides which prompts go through the model together: those of one document stay together, and tokens of
   documents from step 2 do not count. For each batch, `get_or_compute_prefixes` then takes these documents' prefixes from the cache, or
   computes and caches them.
4. `m0.engine.batch.Batch.of` decides how many tokens of a prompt come from a prefix: `_common_tokens` compares the prompts of a document,
   and its cached prefix if there is one, token by token and picture by picture. Below MIN_SHARED_TOKENS nothing is shared. Without a
   cached prefix, what two or more prompts have in common is computed once within the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from m0.engine.batch import CachedPrefix, compute_prefixes
from m0.engine.batching import MAX_GROUP_QUERY_TOKENS
from m0.engine.host import Host
from m0.engine.options import RunOptions
from m0.engine.parallel import is_split
from m0.engine.prefix_cache import CacheCall, DocumentCache, Key
from m0.engine.progress import Progress
from m0.engine.visual_features import VisualFeatures
from m0.errors import InputError
from m0.inputs.ahead import encode_document, read_ahead, warn_if_files
from m0.inputs.passages import PAGES, Passages
from m0.inputs.prompt import Encoding, Limits
from m0.model.attention import group_equal

MIN_CACHED_TOKENS = 64
"""Shorter prefixes are cached only by `Reranker.prepare`."""
WEIGHT_SAMPLE_PLACES, WEIGHT_SAMPLES_PER_PLACE = 4, 4
"""How many numbers of each weight tell whether it has changed: so many side by side, in so many places."""


@dataclass(frozen=True)
class CacheLookup:
    """One call's use of the prefix cache."""

    documents: DocumentCache
    weights: object
    """`weights_key` when it began."""
    call: CacheCall
    """What `DocumentCache.begin_call` gave."""
    explicit: bool = False
    """Whether the user asked for caching (`Reranker.prepare`), see `DocumentCache.put`."""
    last_batch: dict[Key, CachedPrefix] = field(default_factory=dict)
    """Prefixes that the last batch used."""


def begin_lookup(host: Host, pictures: VisualFeatures, explicit: bool = False) -> CacheLookup:
    """Begin a call that uses the prefix cache, or go on with the one that `pictures` are of; prefixes of other weights are forgotten.

    `explicit`: see `CacheLookup`.
    """
    documents, weights = host.documents, weights_key(host)

    def fingerprint() -> str:
        """Reads every weight, so once for each state of them."""
        if host.known_fingerprint is None or host.known_fingerprint[0] != weights:
            host.known_fingerprint = (weights, fingerprint_of(host))
        return host.known_fingerprint[1]

    cache, number = pictures.document_cache_call
    call = documents.begin_call(weights, fingerprint, number if cache is documents else None)
    pictures.document_cache_call = documents, call.number
    return CacheLookup(documents, weights, call, explicit)


def find_cacheable(encodings: list[Encoding], lookup: CacheLookup) -> set[Key]:
    """Keys of the prefixes that are cached or worth caching: long enough, and seen in an earlier call, kept on disk anyway, or asked for
    by many queries."""
    documents, call = lookup.documents, lookup.call
    lengths = {encoding.document_key: encoding.num_prefix_tokens for encoding in encodings}
    query_tokens: Counter[Key] = Counter()
    for encoding in encodings:
        query_tokens[encoding.document_key] += len(encoding) - encoding.num_prefix_tokens
    seen_before = {key for key in lengths if documents.note_request(key, call)}

    def is_worth_caching(key: Key) -> bool:
        # With more queries than one batch takes, each part of them would compute it anew.
        return key in seen_before or documents.folder is not None or query_tokens[key] > MAX_GROUP_QUERY_TOKENS

    return {
        key
        for key, length in lengths.items()
        if documents.has(key, call) or (length >= MIN_CACHED_TOKENS and is_worth_caching(key))
    }


def get_or_compute_prefixes(
    host: Host, encodings: list[Encoding], batch_tokens: int, pictures: VisualFeatures, lookup: CacheLookup
) -> dict[Key, CachedPrefix]:
    """Prefixes of these prompts, each computed where it is not cached."""
    by_key = {encoding.document_key: encoding for encoding in encodings}
    prefixes_by_key = {}
    for key in by_key:
        # Queries of one document that do not fit into one batch follow one another, whether or not there is room to cache it.
        prefix = lookup.documents.get(key, lookup.call)
        if (prefix := lookup.last_batch.get(key) if prefix is None else prefix) is not None:
            prefixes_by_key[key] = prefix
    missing = [encoding for key, encoding in by_key.items() if key not in prefixes_by_key]
    while missing:
        count, size = 0, 0
        while count < len(missing) and (not count or size + missing[count].num_prefix_tokens <= batch_tokens):
            size += missing[count].num_prefix_tokens
            count += 1
        chunk, missing = missing[:count], missing[count:]
        features = pictures.get_or_compute([p for e in chunk for p in e.pictures[: e.document_pictures]])
        computed = compute_prefixes(host.model, chunk, features)
        # What was computed while the weights changed belongs to no model, and is not cached.
        call = lookup.call if weights_key(host) == lookup.weights else replace(lookup.call, owner=None)
        for encoding, prefix in zip(chunk, computed, strict=True):
            prefixes_by_key[encoding.document_key] = lookup.documents.put(encoding.document_key, prefix, call, lookup.explicit)
    lookup.last_batch.clear()
    lookup.last_batch.update(prefixes_by_key)
    return prefixes_by_key


def prepare(host: Host, documents: Sequence[Any], limits: Limits, run: RunOptions, passages: Passages = PAGES) -> int:
    """As `Reranker.prepare`."""
    batch_tokens = run.tokens(host.model.device)
    if host.sessions:
        raise InputError("documents cannot be prepared inside record() or edit(), which see every pair from its first token.")
    if not host.documents.max_bytes and host.documents.folder is None:
        raise InputError("there is no room to keep documents: max_bytes is 0 and there is no folder.")
    pictures = VisualFeatures(host.model, host.sessions)
    lookup = begin_lookup(host, pictures, explicit=True)
    warn_if_files(documents, host.image_settings)
    computed_before = host.documents.counts.computed
    bar = Progress(len(documents), "reading", run.progress)
    with torch.inference_mode():
        chunk: list[Encoding] = []
        complete = 0
        for index, _, _, parts, is_last in read_ahead(documents, host.image_settings, passages, host.prompt.tokenizer):
            try:
                chunk.append(encode_document(host.prompt, ["?"], parts, limits))
            except InputError as error:
                raise type(error)(f"document {index}: {error}") from None
            complete += is_last
            if sum(map(len, chunk)) >= batch_tokens or (is_last and index == len(documents) - 1):
                get_or_compute_prefixes(host, chunk, batch_tokens, pictures, lookup)
                bar.advance(complete)
                chunk, complete = [], 0
    bar.close()
    return host.documents.counts.computed - computed_before


def weights_key(host: Host) -> object:
    """Another one after any weight, the active adapter or the picture settings have changed. PyTorch counts changes, but not
    those of fused optimizers or through `.data`, so a few numbers of each weight are looked at as well."""
    # Of a split model, the part that is here.
    parameters = [p.to_local() if hasattr(p, "to_local") else p for p in host.model.parameters()]
    versions = tuple((p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in parameters)
    with torch.no_grad():
        samples = [
            torch.cat([part for i in some for part in _sample_weight(parameters[i])]).tolist()
            for some in group_equal(p.dtype for p in parameters).values()
        ]
    return (*_adapter_state(host), host.image_settings, versions, samples)


def fingerprint_of(host: Host) -> str:
    """SHA-256 of everything that decides a score: config, every weight, the active adapter, tokenizer, picture settings.

    Raises InputError for a split model.
    """
    if is_split(host.model):
        raise InputError("a split model has no fingerprint, since no process holds all of it; keep documents in memory only.")
    digest = sha256(repr((host.model.config, host.image_settings, *_adapter_state(host))).encode())
    digest.update(host.prompt.tokenizer.to_str().encode())
    for name, value in host.model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _adapter_state(host: Host) -> tuple[object, ...]:
    adapters = host.adapters
    return adapters.active, adapters.merged, repr(adapters.configs.get(adapters.active or ""))


def _sample_weight(weight: Tensor) -> tuple[Tensor, ...]:
    """A few numbers of each quarter, side by side, as a GPU gathers them in few steps."""
    flat = weight.flatten()
    if len(flat) <= WEIGHT_SAMPLE_PLACES * WEIGHT_SAMPLES_PER_PLACE:
        return (flat,)
    return (
        flat[: len(flat) // WEIGHT_SAMPLE_PLACES * WEIGHT_SAMPLE_PLACES]
        .view(WEIGHT_SAMPLE_PLACES, -1)[:, :WEIGHT_SAMPLES_PER_PLACE]
        .unbind()
    )
