"""Scores on disk as they come, so that an evaluation that was killed goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.evaluate.cuts import Cuts, are_cuts
from m0.evaluate.dataset import Dataset
from m0.evaluate.files import format_count
from m0.evaluate.picture_hashes import UNKNOWN_HASH, hash_pictures
from m0.inputs.policy import EVERYTHING, SourcePolicy
from m0.locks import level_of_caller

DESCRIPTION_FILE = "about.json"
"""What an evaluation is of."""
DIFFERENCES = {
    "dataset": "other data",
    "model": "another model",
    "candidates": "other candidates (which documents, or whether identical ids are kept)",
    "options": "other options",
}
Pair = tuple[str, str]


@dataclass
class Scores:
    """Scores of pairs of query and document, and pairs that failed."""

    logits: dict[Pair, float] = field(default_factory=dict)
    cuts: dict[Pair, Cuts | None] = field(default_factory=dict)
    """Of the pairs of which something was cut; None: not known."""
    failed: dict[str, str] = field(default_factory=dict)
    """Documents, queries ("query ID") and pairs ("QUERY DOCUMENT") that could not be used, with the reason."""

    def add(self, others: Scores) -> None:
        """Add other scores; they replace those of the same pairs."""
        for pair in others.logits:
            self.cuts.pop(pair, None)
        self.logits |= others.logits
        self.cuts |= others.cuts
        self.failed |= others.failed


class ScoreStore:
    """Scores on disk as they come: one file a process, one line a pair.

    Lines hold [query, document, score, what was cut], [null, what failed, reason], or [true, "document ID" or "query ID", hash] for one
    that shows a picture. What failed is tried again. What shows a picture is scored anew unless the hash is there and still the
    picture's, wherever the dataset lies and however its path is spelled.

    Raises InputError where the directory holds an evaluation of something else, or cannot be used.
    """

    def __init__(
        self, directory: Path, description: Mapping[str, Any], rank: int, dataset: Dataset, policy: SourcePolicy = EVERYTHING
    ) -> None:
        self.policy = policy
        self.directory, self.path, self.dataset = directory, directory / f"scores-{rank}.jsonl", dataset
        self.written_hashes: dict[str, str] = {}
        """Hashes that this process or an earlier one has written down."""
        self.pending_hashes: dict[str, str] = {}
        """Hashes for the pairs that are being scored."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{directory} cannot be used for an evaluation: {reason}.") from None
        self._check_description(description, rank)
        if rank == 0:
            self._repair()

    def _check_description(self, description: Mapping[str, Any], rank: int) -> None:
        """Whether the folder is this evaluation's. Raises InputError."""
        path = self.directory / DESCRIPTION_FILE
        if not path.exists():
            if rank == 0:
                if any(_read(file) for file in self._files()):
                    raise InputError(
                        f"{self.directory} holds scores, but not {DESCRIPTION_FILE}, which says whose; choose another folder."
                    )
                self.write_json(DESCRIPTION_FILE, description)
            return
        content = _read(path)
        try:
            stored = json.loads(content.decode())
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict):
            raise InputError(
                f"{path} is damaged, so that nobody can tell which evaluation's scores lie beside it; choose another folder."
            )
        if differences := [name for key, name in DIFFERENCES.items() if stored.get(key) != description[key]]:
            raise InputError(f"{self.directory} holds an evaluation of {' and '.join(differences)}; choose another folder.")

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("scores-*.jsonl"))

    def _repair(self) -> None:
        """Drop lines that killed processes wrote half of, damaged ones, what failed, and what has changed since."""
        bytes_by_file = {path: _read(path) for path in self._files()}
        complete_lines = {path: data[: data.rfind(b"\n") + 1].split(b"\n")[:-1] for path, data in bytes_by_file.items()}
        rows = {path: [(line, _parse_row(line)) for line in lines] for path, lines in complete_lines.items()}
        hashes: dict[str, set[str]] = {}
        for file_rows in rows.values():
            for _, row in file_rows:
                if row is not None and row[0] is True:
                    hashes.setdefault(row[1], set()).add(row[2])
        unchanged: dict[str, bool] = {}

        def is_unchanged(what: str) -> bool:
            if what not in unchanged:
                hash_now = self._hash_now(what)
                unchanged[what] = hash_now is None or (hash_now != UNKNOWN_HASH and hashes.get(what) == {hash_now})
            return unchanged[what]

        for path, file_rows in rows.items():
            kept_lines: list[bytes] = []
            for line, row in file_rows:
                if row is None or row[0] is None:
                    continue
                if all(map(is_unchanged, [row[1]] if row[0] is True else _side_names(row[0], row[1]))):
                    kept_lines.append(line + b"\n")
            if damaged := sum(row is None and bool(line.strip()) for line, row in file_rows):
                count = f"{format_count(damaged, 'lines')} that {'is' if damaged == 1 else 'are'}"
                warnings.warn(f"{path} has {count} damaged; such pairs are scored again.", stacklevel=level_of_caller())
            if (repaired := b"".join(kept_lines)) != bytes_by_file[path]:
                _replace(path, repaired)

    def _hash_now(self, what: str) -> str | None:
        """The hash of a "document ID" or "query ID" as it is now."""
        side, _, key = what.partition(" ")
        contents = {"document": self.dataset.corpus, "query": self.dataset.queries}.get(side, {})
        return hash_pictures(contents[key], self.policy) if key in contents else UNKNOWN_HASH

    def read(self) -> Scores:
        """What all processes have scored, now or before. Raises InputError where a file cannot be read."""
        scores = Scores()
        for path in self._files():
            for row in map(_parse_row, _read(path).split(b"\n")):
                if row is None:
                    continue
                if row[0] is None:
                    scores.failed[row[1]] = row[2]
                elif row[0] is True:
                    self.written_hashes[row[1]] = row[2]
                else:
                    pair = row[0], row[1]
                    cuts = tuple(row[3]) if len(row) == 4 else None
                    scores.add(Scores({pair: row[2]}, {} if cuts == () else {pair: cuts}))
        return scores

    def begin(self, pairs: Iterable[Pair]) -> None:
        """Take note of pictures before they are opened: one that changes after that is scored anew the next time."""
        for what in dict.fromkeys(name for pair in pairs for name in _side_names(*pair)):
            if what not in self.written_hashes and (hash_now := self._hash_now(what)):
                self.pending_hashes[what] = hash_now

    def write(self, scores: Scores) -> None:
        """Raises InputError where it cannot."""
        lines = []
        for what in dict.fromkeys(name for pair in scores.logits for name in _side_names(*pair)):
            if what in self.pending_hashes:
                self.written_hashes[what] = self.pending_hashes[what]
                lines.append(json.dumps([True, what, self.written_hashes[what]]))
        self.pending_hashes.clear()
        lines += [json.dumps([*pair, logit, scores.cuts.get(pair) or ()]) for pair, logit in scores.logits.items()]
        lines += [json.dumps([None, what, reason]) for what, reason in scores.failed.items()]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}; what is there is kept.") from None

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a file whole or not at all. Raises InputError where the disk refuses."""
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        _replace(self.directory / name, text.encode("utf-8", "backslashreplace"))  # a lone surrogate, as JSON writes it


def _side_names(query: str, document: str) -> tuple[str, str]:
    """The names of a pair's two sides in the file."""
    return f"query {query}", f"document {document}"


def _parse_row(line: bytes) -> list[Any] | None:
    """What a line of scores holds; None where it is not as `ScoreStore` writes it."""
    try:
        row = json.loads(line)
        match row:
            case [None | True, str(), str()]:
                return list(row)
            case [str(), str(), int() | float() as score, *cuts] if not isinstance(score, bool) and math.isfinite(score):
                if not cuts or (len(cuts) == 1 and isinstance(cuts[0], list) and are_cuts(cuts[0])):
                    return [row[0], row[1], float(score), *cuts]
    except (ValueError, RecursionError, OverflowError):
        pass
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever finds half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None
