"""Documents computed once and kept: in memory up to a limit, and on disk where a folder is given.

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
REMEMBERED = 5
"""Calls that are remembered of each document that was met."""
MET = 100_000
"""How many documents are remembered as having been met, without being kept."""
VERSION = 2


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
    """Not kept in memory for lack of room, since all that were there had been asked for since these were last."""
    damaged: int = 0
    """Files that were cut short or changed; they are computed and written anew."""
    unwritten: int = 0
    """Files that could not be written, for a full disk or lack of rights; the state was used all the same."""


@dataclass(frozen=True)
class CacheCall:
    """One call's word to a cache."""

    of: object
    """Stands for the model with its weights, as they were when the call began."""
    number: int
    """Calls are counted: what was last asked for in an earlier one may go."""


class DocumentCache:
    """States of documents by what they are of, in memory up to a limit.

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
            max_bytes: memory for states; 0: keep nothing there. The released model needs 28 KiB a token in bfloat16.
            precision: how states are stored, see `m0.engine.batch.Precision`. "same" and, for a bfloat16 model, "bfloat16" change no
                score beyond the order of sums; int8 does.
            folder: also keep states as files there, for later processes, each document from its first time on. It grows without
                limit. A file is of one document, one model with its weights, and one precision; any number of processes may
                share a folder.

        Raises InputError.
        """
        nothing = max_bytes == 0 and not isinstance(max_bytes, bool)
        self.max_bytes = 0 if nothing else whole_number(max_bytes, "max_bytes (if not 0)")
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
        self._states: OrderedDict[Key, CachedPrefix] = OrderedDict()
        self._used: dict[Key, int] = {}
        """Number of the call in which each state in memory was last asked for."""
        self._met: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        """Numbers of the last calls, at most `REMEMBERED` of them, in which each document was met."""
        self._calls = 0
        """How many calls there have been."""
        self._of: object = None
        self._turn = object()
        self._fingerprint: Callable[[], str] = str
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._states)

    def clear(self) -> None:
        """Forget what is in memory, and the counts. Files stay."""
        with self._lock:
            self._forget()
            self.counts = Counts()

    def _forget(self) -> None:
        self._states.clear()
        self._used.clear()
        self._met.clear()
        self.bytes = 0

    def belongs_to(self, model: object, fingerprint: Callable[[], str], number: int | None = None) -> CacheCall:
        """From now on states are of this model; others are forgotten.

        Args:
            model: anything that equals itself only while no weight changes.
            fingerprint: the same for files, asked for only where there is a folder.
            number: of a call that goes on; None: a new one.

        Returns: what the methods below want to be shown. When the cache belongs to another model since, as where two rerankers
        share it, they find and keep nothing.
        """
        with self._lock:
            if self._of != model:
                self._forget()
                self._turn = object()
            self._of, self._fingerprint = model, fingerprint
            self._calls += number is None
            return CacheCall(self._turn, self._calls if number is None else number)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has the same limits and the same folder, and nothing in memory yet."""
        return DocumentCache, (self.max_bytes, self.precision, self.folder)

    def has(self, key: Key, call: CacheCall) -> bool:
        """Whether a document is in memory or on disk."""
        with self._lock:
            if call.of is not self._turn:
                return False
            return key in self._states or (self.folder is not None and self._path(key).exists())

    def note_asked(self, key: Key, call: CacheCall) -> bool:
        """Whether this document was met before: then it is worth keeping. It counts as met from now on."""
        with self._lock:
            if call.of is not self._turn:
                return False
            short = _digest(key)  # what was only met must not cost memory
            before = self._met.pop(short, ())
            earlier = tuple(number for number in before if number < call.number)
            self._met[short] = (*earlier[1 - REMEMBERED :], call.number)
            while len(self._met) > MET:
                self._met.popitem(last=False)
            return bool(before)

    def get(self, key: Key, call: CacheCall) -> CachedPrefix | None:
        """The state of a document from memory or disk."""
        with self._lock:
            if call.of is not self._turn:
                return None
            if (state := self._states.get(key)) is not None:
                self._states.move_to_end(key)
                self._used[key] = call.number
                self.counts.hits += 1
                return state
            if self.folder is None or (state := self._read(key)) is None:
                return None
            self.counts.read += 1
            self._keep(key, state, call)
            return state

    def put(self, key: Key, state: CachedPrefix, call: CacheCall, wanted: bool = False) -> CachedPrefix:
        """Keep a state that was computed; returns it as it is stored, which is what should be used from the first time on.

        `wanted`: the call asks for it to be kept, which may push out all that was last asked for before this call; otherwise only what
        was last asked for before this document was last asked for itself.
        """
        state = state.stored_as(self.precision)
        with self._lock:
            self.counts.computed += 1
            if call.of is self._turn:
                self._keep(key, state, call, wanted)
                if self.folder is not None:
                    self._write(key, state)
        return state

    def _since(self, key: Key, call: CacheCall) -> int:
        """What was last asked for before this call may go for a document: it has then been idle for longer than the document ever was
        between the last calls that asked for it. Several, for a part of a large set may be asked for a few times in a row, and then
        not until the whole set has been. -1: it was never asked for before."""
        asked = [number for number in self._met.get(_digest(key), ()) if number < call.number]
        if not asked:
            return -1
        return call.number - max(later - earlier for earlier, later in pairwise([*asked, call.number]))

    def _keep(self, key: Key, state: CachedPrefix, call: CacheCall, wanted: bool = False) -> None:
        if state.bytes > self.max_bytes:
            self.counts.dropped += 1
            return
        if (before := self._states.pop(key, None)) is not None:
            self.bytes -= before.bytes
        last = call.number if wanted else self._since(key, call)
        room, leaving = self.max_bytes - self.bytes, []
        for other in self._states:
            if room >= state.bytes or self._used[other] >= last:
                break
            room += self._states[other].bytes
            leaving.append(other)
        if room < state.bytes:
            self.counts.refused += 1
            self._used.pop(key, None)
            return
        for other in leaving:
            self.bytes -= self._states.pop(other).bytes
            del self._used[other]
            self.counts.dropped += 1
        self._states[key] = state
        self._used[key] = call.number
        self.bytes += state.bytes

    # --- on disk ------------------------------------------------------------------------------------------------------

    def _path(self, key: Key) -> Path:
        assert self.folder is not None
        return self.folder / f"{_digest(key, f'{VERSION} {self._fingerprint()} {self.precision}').hex()}.safetensors"

    def _write(self, key: Key, state: CachedPrefix) -> None:
        about = {
            "model": self._fingerprint(),
            "runs": json.dumps(state.runs),
            "digests": json.dumps([d.hex() for d in state.digests]),
        }
        about["checksum"] = _checksum(state)
        tensors = {"token_ids": state.token_ids, "keys_values": state.keys_values.cpu().contiguous()}
        if state.scales is not None:
            tensors["scales"] = state.scales.cpu().contiguous()
        try:
            write_atomically(self._path(key), lambda path: save_file(tensors, path, metadata=about))
        except (OSError, SafetensorError):
            self.counts.unwritten += 1

    def _read(self, key: Key) -> CachedPrefix | None:
        path = self._path(key)
        try:
            with path.open("rb") as held:  # while it is open, no other file can have its number
                state = self._whole(path)
                if state is not None or not _still_there(path, held):
                    return state  # another process has taken it away or replaced it meanwhile
        except FileNotFoundError:
            return None
        except OSError:
            pass
        self.counts.damaged += 1
        with contextlib.suppress(OSError):  # in a folder of another's it may have to stay
            path.unlink(missing_ok=True)
        return None

    def _whole(self, path: Path) -> CachedPrefix | None:
        """What a file holds; None where it is cut short, changed or another model's."""
        try:
            with open_safetensors(path) as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            runs = tuple(run if isinstance(run, int) else (run[0], run[1]) for run in json.loads(about["runs"]))
            digests = tuple(bytes.fromhex(digest) for digest in json.loads(about["digests"]))
            state = CachedPrefix(tensors["token_ids"], runs, digests, tensors["keys_values"], tensors.get("scales"))
            if about["model"] == self._fingerprint() and about["checksum"] == _checksum(state):
                return state
        except (CheckpointError, SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError):
            pass
        return None


def _still_there(path: Path, held: IO[bytes]) -> bool:
    """Whether this open file is what lies at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(held.fileno()))
    except OSError:
        return False


def _digest(key: Key, about: str = "") -> bytes:
    digest = blake2b(about.encode(), digest_size=20)
    for part in key:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _checksum(state: CachedPrefix) -> str:
    digest = blake2b(digest_size=20)
    digest.update(repr((state.runs, state.digests)).encode())
    for part in (state.token_ids, state.keys_values, state.scales):
        if part is not None:
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
