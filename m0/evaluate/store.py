"""Scores on disk as they come, so that an evaluation that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from m0.errors import InputError, M0Error
from m0.evaluate.dataset import Dataset

ABOUT = "about.json"
OTHERS = {
    "dataset": "other data",
    "model": "another model",
    "candidates": "other candidates (which documents, or whether identical ids are kept)",
    "options": "other options",
}


class Store:
    """Scores on disk as they come: one file a process, one line a pair.

    Lines hold [query, document, score], [null, what failed, reason], or [true, file, its hash] for a picture that was seen.
    What failed is tried again, and what showed a picture that has changed since is scored anew.

    Raises InputError where the directory holds an evaluation of something else, or cannot be used.
    """

    def __init__(self, directory: Path, about: Mapping[str, Any], rank: int, dataset: Dataset) -> None:
        self.directory, self.path, self.dataset = directory, directory / f"scores-{rank}.jsonl", dataset
        self.seen: dict[str, str] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if (directory / ABOUT).exists():
                before = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
                if before != about:
                    which = [
                        name for key, name in OTHERS.items() if not isinstance(before, dict) or before.get(key) != about[key]
                    ]
                    raise InputError(f"{directory} holds an evaluation of {' and '.join(which)}; choose another folder.")
            elif rank == 0:
                self.write_json(ABOUT, about)
            if rank == 0:
                self._mend()
        except (OSError, ValueError) as error:
            if isinstance(error, M0Error):
                raise
            raise InputError(f"{directory} cannot be used for an evaluation: {error}.") from None

    def _mend(self) -> None:
        """Drop lines that killed processes wrote half of, what failed, and what has changed since."""
        paths = sorted(self.directory.glob("scores-*.jsonl"))
        data = {path: path.read_bytes() for path in paths}
        rows = {path: [json.loads(line) for line in some[: some.rfind(b"\n") + 1].splitlines()] for path, some in data.items()}
        rows = {path: [row for row in some if isinstance(row, list) and len(row) == 3] for path, some in rows.items()}
        hashes = {file: value for some in rows.values() for first, file, value in some if first is True}
        changed = {file for file, value in hashes.items() if _file_hash(file) != value}
        for path, some in rows.items():
            kept = [
                row
                for row in some
                if row[0] is not None
                and not (row[0] is True and row[1] in changed)
                and not (row[0] is not True and changed & {*self._pictures(row[0], True), *self._pictures(row[1], False)})
            ]
            whole = "".join(json.dumps(row) + "\n" for row in kept).encode()
            if whole != data[path]:
                partial = path.with_suffix(".partial")
                partial.write_bytes(whole)
                partial.replace(path)

    def _pictures(self, key: str, query: bool) -> list[str]:
        """Files of the pictures in a query or document."""
        content = (self.dataset.queries if query else self.dataset.corpus).get(key)
        return [part["image"] for part in content if isinstance(part, dict)] if isinstance(content, list) else []

    def read(self) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
        """What all processes have scored, now or before."""
        done: dict[tuple[str, str], float] = {}
        failed: dict[str, str] = {}
        for path in sorted(self.directory.glob("scores-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                query, document, value = json.loads(line)
                if query is None:
                    failed[document] = value
                elif query is True:
                    self.seen[document] = value
                else:
                    done[query, document] = value
        return done, failed

    def write(self, scores: Mapping[tuple[str, str], float], failed: Mapping[str, str]) -> None:
        """Append scores by (query, document), and what failed with its reason. Raises InputError where the disk refuses."""
        lines = []
        for key, is_query in dict.fromkeys((k, side == 0) for pair in scores for side, k in enumerate(pair)):
            for picture in self._pictures(key, is_query):
                if picture not in self.seen:
                    self.seen[picture] = _file_hash(picture)
                    lines.append(json.dumps([True, picture, self.seen[picture]]))
        lines += [json.dumps([query, document, score]) for (query, document), score in scores.items()]
        lines += [json.dumps([None, document, reason]) for document, reason in failed.items()]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}; what is there is kept.") from None

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a file whole or not at all. Raises InputError where the disk refuses."""
        partial = self.directory / f".{name}.{os.getpid()}"
        try:
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate, as JSON writes it
            partial.replace(self.directory / name)
        except OSError as error:
            raise InputError(f"{self.directory / name} cannot be written: {error.strerror}.") from None


def _file_hash(file: str) -> str:
    """SHA-256 of a picture's file; empty where it cannot be read."""
    try:
        return sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""
