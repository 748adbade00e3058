"""Cached prefixes of the prompts that are scored: looked up, computed where they are worth it, and told apart by weights."""

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
from m0.inputs.prompt import Encoding, Limits
from m0.inputs.reading import encode_document, read_ahead, warn_if_files
from m0.model.attention import group_equal

MIN_CACHED_TOKENS = 64
"""Shorter prefixes are not cached without being told so."""
QUARTERS, SAMPLED = 4, 4
"""Numbers of each weight that are looked at to see whether it has changed: so many in so many places."""


@dataclass(frozen=True)
class CacheLookup:
    """One call's use of the prefix cache."""

    documents: DocumentCache
    weights: object
    """As they were when it began, see `weights_key`."""
    shown: CacheCall
    """To the cache, see `DocumentCache.belongs_to`."""
    wanted: bool = False
    """Whether it asks for prefixes to be kept, see `DocumentCache.put`."""
    latest: dict[Key, CachedPrefix] = field(default_factory=dict)
    """What the last batch used."""


def begin_lookup(host: Host, pictures: VisualFeatures, wanted: bool = False) -> CacheLookup:
    """Begin a call that uses the prefix cache, or go on with the one that `pictures` are of; prefixes of other weights are forgotten.

    `wanted`: a call that asks for its prefixes to be kept.
    """
    documents, weights = host.documents, weights_key(host)

    def fingerprint() -> str:
        """Reads every weight, so once for each state of them."""
        if host.known_fingerprint is None or host.known_fingerprint[0] != weights:
            host.known_fingerprint = (weights, fingerprint_of(host))
        return host.known_fingerprint[1]

    cache, number = pictures.asked
    shown = documents.belongs_to(weights, fingerprint, number if cache is documents else None)
    pictures.asked = documents, shown.number
    return CacheLookup(documents, weights, shown, wanted)


def cached_or_worth_it(encodings: list[Encoding], lookup: CacheLookup) -> set[Key]:
    """Keys of the prefixes that are cached or worth caching: long enough, and seen in an earlier call, kept on disk anyway, or asked for
    by many queries."""
    documents, shown = lookup.documents, lookup.shown
    lengths = {encoding.document_key: encoding.num_prefix_tokens for encoding in encodings}
    own: Counter[Key] = Counter()
    for encoding in encodings:
        own[encoding.document_key] += len(encoding) - encoding.num_prefix_tokens
    met = {key for key in lengths if documents.note_asked(key, shown)}

    def worth(key: Key) -> bool:
        # With more queries than read one copy of it, each portion of them would compute it anew.
        return key in met or documents.folder is not None or own[key] > MAX_GROUP_QUERY_TOKENS

    return {key for key, length in lengths.items() if documents.has(key, shown) or (length >= MIN_CACHED_TOKENS and worth(key))}


def get_or_compute_prefixes(
    host: Host, encodings: list[Encoding], batch_tokens: int, pictures: VisualFeatures, lookup: CacheLookup
) -> dict[Key, CachedPrefix]:
    """Prefixes of these prompts, each computed where it is not cached."""
    by_key = {encoding.document_key: encoding for encoding in encodings}
    found = {}
    for key in by_key:
        # Queries of one document that do not fit into one batch follow one another, whether or not there is room to keep it.
        state = lookup.documents.get(key, lookup.shown)
        if (state := lookup.latest.get(key) if state is None else state) is not None:
            found[key] = state
    left = [encoding for key, encoding in by_key.items() if key not in found]
    while left:
        count, size = 0, 0
        while count < len(left) and (not count or size + left[count].num_prefix_tokens <= batch_tokens):
            size += left[count].num_prefix_tokens
            count += 1
        some, left = left[:count], left[count:]
        features = pictures.gather([p for e in some for p in e.pictures[: e.document_pictures]])
        states = compute_prefixes(host.model, some, features)
        # What was computed while somebody changed the weights is nobody's.
        shown = lookup.shown if weights_key(host) == lookup.weights else replace(lookup.shown, of=None)
        for encoding, state in zip(some, states, strict=True):
            found[encoding.document_key] = lookup.documents.put(encoding.document_key, state, shown, lookup.wanted)
    lookup.latest.clear()
    lookup.latest.update(found)
    return found


def prepare(host: Host, documents: Sequence[Any], limits: Limits, run: RunOptions) -> int:
    """As `Reranker.prepare`."""
    batch_tokens = run.tokens(host.model.device)
    if host.sessions:
        raise InputError("documents cannot be prepared inside record() or edit(), which see every pair from its first token.")
    if not host.documents.max_bytes and host.documents.folder is None:
        raise InputError("there is no room to keep documents: max_bytes is 0 and there is no folder.")
    pictures = VisualFeatures(host.model, host.sessions)
    lookup = begin_lookup(host, pictures, wanted=True)
    warn_if_files(documents)
    before = host.documents.counts.computed
    bar = Progress(len(documents), "reading", run.progress)
    with torch.inference_mode():
        chunk: list[Encoding] = []
        for index, parts in enumerate(read_ahead(documents, host.image_settings)):
            try:
                chunk.append(encode_document(host.prompt, ["?"], parts, limits))
            except InputError as error:
                raise type(error)(f"document {index}: {error}") from None
            if sum(map(len, chunk)) >= batch_tokens or index == len(documents) - 1:
                get_or_compute_prefixes(host, chunk, batch_tokens, pictures, lookup)
                bar.advance(len(chunk))
                chunk = []
    bar.close()
    return host.documents.counts.computed - before


def weights_key(host: Host) -> object:
    """Another one after any weight, the active adapter or the picture settings have changed. PyTorch counts changes, but not
    those of fused optimizers or through `.data`, so a few numbers of each weight are looked at as well."""
    # Of a split model, the part that is here.
    parameters = [p.to_local() if hasattr(p, "to_local") else p for p in host.model.parameters()]
    versions = tuple((p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in parameters)
    with torch.no_grad():
        samples = [
            torch.cat([part for i in some for part in _sampled(parameters[i])]).tolist()
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


def _sampled(weight: Tensor) -> tuple[Tensor, ...]:
    """A few numbers of each quarter, side by side, as a GPU gathers them in few steps."""
    flat = weight.flatten()
    if len(flat) <= QUARTERS * SAMPLED:
        return (flat,)
    return flat[: len(flat) // QUARTERS * QUARTERS].view(QUARTERS, -1)[:, :SAMPLED].unbind()
