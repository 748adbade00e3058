"""Cached prefixes of documents: in memory up to a limit, and on disk where a folder is given.

reranker.prepare(documents)  # ahead of time
reranker.rank("a query", documents)  # costs only the query's tokens
print(reranker.documents.counts)
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from m0.checkpoints.files import open_safetensors, write_atomically
from m0.engine.batch import CachedPrefix, Precision
from m0.errors import CheckpointError, InputError
from m0.inputs.prompt import whole_number
from m0.paths import path_of

Key = tuple[bytes, ...]
"""`Encoding.document_key`"""
DEFAULT_BYTES = 2**30
MAX_CALLS_PER_DOCUMENT = 5
"""How many of the last calls are remembered for each document seen."""
MAX_SEEN_DOCUMENTS = 100_000
"""How many documents are remembered as seen, whether or not their prefixes are cached."""
FORMAT_VERSION = 2
"""Of the files."""


@dataclass
class Counts:
    """What a cache has done since it was made or cleared."""

    hits: int = 0
    """Found in memory."""
    read: int = 0
    """Found on disk."""
    computed: int = 0
    dropped: int = 0
    """Put out of memory for lack of room, the least recently used first."""
    refused: int = 0
    """Not kept in memory for lack of room: all that were there had been asked for more recently."""
    damaged: int = 0
    """Files that were cut short or changed; they are computed and written anew."""
    unwritten: int = 0
    """Files that could not be written, for a full disk or lack of rights; the prefix was used all the same."""


@dataclass(frozen=True)
class CacheCall:
    """Identifies one call to the cache, by its model and its number."""

    owner: object
    """Stands for the model with its weights, as they were when the call began."""
    number: int
    """Calls are counted: what was last asked for in an earlier one may go."""


class DocumentCache:
    """Cached prefixes by `Encoding.document_key`, in memory up to a limit.

    Where there is no room, a document takes the place of those that have been idle for longer than it was itself between the last calls
    that asked for it (inter-reference recency, Jiang & Zhang 2002, LIRS). So a set that is a little too large and is ranked again and
    again keeps its place as far as there is room, where the least recently used would always go just before it is asked for; and a set
    that is no longer asked for makes room at the second call for new documents.

    Attributes:
        counts: hits, reads, computations, drops.
        bytes: what is in memory.
    """

    def __init__(
        self, max_bytes: int = DEFAULT_BYTES, precision: Precision = "same", folder: str | os.PathLike[str] | None = None
    ) -> None:
        """An empty cache.

        Args:
            max_bytes: memory for prefixes; 0: keep nothing there. The released model needs 28 KiB a token in bfloat16.
            precision: how prefixes are stored, see `m0.engine.batch.Precision`. "same" and, for a bfloat16 model, "bfloat16" change no
                score beyond the order of sums; int8 does.
            folder: also keep prefixes as files there, for later processes, each document from its first time on. It grows without
                limit. A file is of one document, one model with its weights, and one precision; any number of processes may
                share a folder.

        Raises InputError.
        """
        is_zero = max_bytes == 0 and not isinstance(max_bytes, bool)
        self.max_bytes = 0 if is_zero else whole_number(max_bytes, "max_bytes (if not 0)")
        if precision not in ("same", "bfloat16", "int8"):
            raise InputError(f"precision is {precision!r}, but must be 'same', 'bfloat16' or 'int8'.")
        self.precision: Precision = precision
        if folder == "":
            raise InputError("the folder for documents has no name; leave it out to keep them in memory only.")
        self.folder = None if folder is None else path_of(folder)
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{folder!r} cannot hold documents: {getattr(error, 'strerror', None) or error}.") from None
        self.counts, self.bytes = Counts(), 0
        self._prefixes: OrderedDict[Key, CachedPrefix] = OrderedDict()
        self._last_call: dict[Key, int] = {}
        """Number of the call in which each prefix in memory was last asked for."""
        self._calls_by_document: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        """Numbers of the last calls, at most `MAX_CALLS_PER_DOCUMENT` of them, in which each document was asked for."""
        self._calls = 0
        """How many calls there have been."""
        self._model: object = None
        self._owner = object()
        """Stands for `_model` in each `CacheCall`; a new one when the model changes, so that calls of the old one find nothing."""
        self._fingerprint: Callable[[], str] = str
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._prefixes)

    def clear(self) -> None:
        """Forget what is in memory, and the counts. Files stay."""
        with self._lock:
            self._forget()
            self.counts = Counts()

    def _forget(self) -> None:
        self._prefixes.clear()
        self._last_call.clear()
        self._calls_by_document.clear()
        self.bytes = 0

    def begin_call(self, model: object, fingerprint: Callable[[], str], number: int | None = None) -> CacheCall:
        """Begin a call: from now on prefixes are of this model; those of others are forgotten.

        Args:
            model: anything that equals itself only while no weight changes.
            fingerprint: the same for files, asked for only where there is a folder.
            number: of a call that goes on; None: a new one.

        Returns: the call, which the methods below take. When another model has begun a call since, as where two rerankers share the
        cache, they find and keep nothing.
        """
        with self._lock:
            if self._model != model:
                self._forget()
                self._owner = object()
            self._model, self._fingerprint = model, fingerprint
            self._calls += number is None
            return CacheCall(self._owner, self._calls if number is None else number)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has the same limits and the same folder, and nothing in memory yet."""
        return DocumentCache, (self.max_bytes, self.precision, self.folder)

    def has(self, key: Key, call: CacheCall) -> bool:
        """Whether a document is in memory or on disk."""
        with self._lock:
            if call.owner is not self._owner:
                return False
            return key in self._prefixes or (self.folder is not None and self._path(key).exists())

    def note_request(self, key: Key, call: CacheCall) -> bool:
        """Note that a document is asked for. Returns whether it was before: then it is worth caching.

        A cache that can hold nothing notes nothing, so that a ranking of ever so many documents takes no memory for them.
        """
        if not self.max_bytes and self.folder is None:
            return False
        with self._lock:
            if call.owner is not self._owner:
                return False
            short = _digest(key)  # what was only seen must not cost memory
            previous = self._calls_by_document.pop(short, ())
            earlier = tuple(number for number in previous if number < call.number)
            self._calls_by_document[short] = (*earlier[1 - MAX_CALLS_PER_DOCUMENT :], call.number)
            while len(self._calls_by_document) > MAX_SEEN_DOCUMENTS:
                self._calls_by_document.popitem(last=False)
            return bool(previous)

    def get(self, key: Key, call: CacheCall) -> CachedPrefix | None:
        """The prefix of a document from memory or disk; None: it is not there."""
        with self._lock:
            if call.owner is not self._owner:
                return None
            if (prefix := self._prefixes.get(key)) is not None:
                self._prefixes.move_to_end(key)
                self._last_call[key] = call.number
                self.counts.hits += 1
                return prefix
            if self.folder is None or (prefix := self._read(key)) is None:
                return None
            self.counts.read += 1
            self._keep_in_memory(key, prefix, call)
            return prefix

    def put(self, key: Key, prefix: CachedPrefix, call: CacheCall, explicit: bool = False) -> CachedPrefix:
        """Keep a prefix that was computed; returns it as it is stored, which is what should be used from the first time on.

        `explicit`: the user asked for it to be cached (`Reranker.prepare`), which may evict all that was last asked for before this
        call; otherwise only what was last asked for before this document was last asked for itself.
        """
        prefix = prefix.stored_as(self.precision)
        with self._lock:
            self.counts.computed += 1
            if call.owner is self._owner:
                self._keep_in_memory(key, prefix, call, explicit)
                if self.folder is not None:
                    self._write(key, prefix)
        return prefix

    def _evictable_before(self, key: Key, call: CacheCall) -> int:
        """Number of a call: what was last asked for before it may be evicted for a document. It has then been idle for longer than the document ever was
        between the last calls that asked for it. Several, for a part of a large set may be asked for a few times in a row, and then
        not until the whole set has been. -1: it was never asked for before."""
        requests = [number for number in self._calls_by_document.get(_digest(key), ()) if number < call.number]
        if not requests:
            return -1
        return call.number - max(later - earlier for earlier, later in pairwise([*requests, call.number]))

    def _keep_in_memory(self, key: Key, prefix: CachedPrefix, call: CacheCall, explicit: bool = False) -> None:
        if prefix.bytes > self.max_bytes:
            self.counts.dropped += 1
            return
        if (previous := self._prefixes.pop(key, None)) is not None:
            self.bytes -= previous.bytes
        limit = call.number if explicit else self._evictable_before(key, call)
        free_bytes, evicted = self.max_bytes - self.bytes, []
        for other_key in self._prefixes:
            if free_bytes >= prefix.bytes or self._last_call[other_key] >= limit:
                break
            free_bytes += self._prefixes[other_key].bytes
            evicted.append(other_key)
        if free_bytes < prefix.bytes:
            self.counts.refused += 1
            self._last_call.pop(key, None)
            return
        for other_key in evicted:
            self.bytes -= self._prefixes.pop(other_key).bytes
            del self._last_call[other_key]
            self.counts.dropped += 1
        self._prefixes[key] = prefix
        self._last_call[key] = call.number
        self.bytes += prefix.bytes

    # --- on disk ------------------------------------------------------------------------------------------------------

    def _path(self, key: Key) -> Path:
        assert self.folder is not None
        return self.folder / f"{_digest(key, f'{FORMAT_VERSION} {self._fingerprint()} {self.precision}').hex()}.safetensors"

    def _write(self, key: Key, prefix: CachedPrefix) -> None:
        metadata = {
            "model": self._fingerprint(),
            "runs": json.dumps(prefix.runs),
            "digests": json.dumps([d.hex() for d in prefix.digests]),
        }
        metadata["checksum"] = _checksum(prefix)
        tensors = {"token_ids": prefix.token_ids, "keys_values": prefix.keys_values.cpu().contiguous()}
        if prefix.scales is not None:
            tensors["scales"] = prefix.scales.cpu().contiguous()
        try:
            write_atomically(self._path(key), lambda path: save_file(tensors, path, metadata=metadata))
        except (OSError, SafetensorError):
            self.counts.unwritten += 1

    def _read(self, key: Key) -> CachedPrefix | None:
        path = self._path(key)
        try:
            with path.open("rb") as open_file:  # while it is open, no other file can have its number
                prefix = self._load_valid(path)
                if prefix is not None or not _is_same_file(path, open_file):
                    return prefix  # another process has taken it away or replaced it meanwhile
        except FileNotFoundError:
            return None
        except OSError:
            pass
        self.counts.damaged += 1
        with contextlib.suppress(OSError):  # in a folder of another's it may have to stay
            path.unlink(missing_ok=True)
        return None

    def _load_valid(self, path: Path) -> CachedPrefix | None:
        """The prefix in a file; None where it is cut short, changed or another model's."""
        try:
            with open_safetensors(path) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            runs = tuple(run if isinstance(run, int) else (run[0], run[1]) for run in json.loads(metadata["runs"]))
            digests = tuple(bytes.fromhex(digest) for digest in json.loads(metadata["digests"]))
            prefix = CachedPrefix(tensors["token_ids"], runs, digests, tensors["keys_values"], tensors.get("scales"))
            if metadata["model"] == self._fingerprint() and metadata["checksum"] == _checksum(prefix):
                return prefix
        except (CheckpointError, SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError):
            pass
        return None


def _is_same_file(path: Path, open_file: IO[bytes]) -> bool:
    """Whether this open file is what lies at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(open_file.fileno()))
    except OSError:
        return False


def _digest(key: Key, context: str = "") -> bytes:
    digest = blake2b(context.encode(), digest_size=20)
    for part in key:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _checksum(prefix: CachedPrefix) -> str:
    digest = blake2b(digest_size=20)
    digest.update(repr((prefix.runs, prefix.digests)).encode())
    for part in (prefix.token_ids, prefix.keys_values, prefix.scales):
        if part is not None:
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
