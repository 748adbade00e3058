"""Training data: JSON lines, one query each, read when needed.

    {"query": ..., "positive": [document, ...], "negative": [document, ...], "scores": [number, ...]}

A query or document is text, {"image": path, relative to the file}, {"text": ...}, or a list of these. "negative" may be
left out where lists are filled from other queries' documents. "scores" are a teacher's, of the positives, then of the
negatives. "grades" may replace the relevance 1 of each positive by a whole number of at least 1.

Lines stay on disk: only where each one begins, and about how long it is, is kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from m0.errors import InputError
from m0.paths import path_of

LINE_KEYS = {"query", "positive", "negative", "scores", "grades"}
ASSUMED_PICTURE_BYTES = 2000
"""What a picture counts for in a line's length: about 500 visual tokens, at 4 bytes of text a token."""
MAX_GRADE = 30
"""A grade g gains 2^g - 1 in LambdaLoss."""
STEPS_PER_BUCKET = 32
"""Steps whose queries are sorted by length together."""


@dataclass(frozen=True)
class Example:
    """One line."""

    query: Any
    positive: tuple[Any, ...]
    negative: tuple[Any, ...]
    scores: tuple[float, ...] | None = None
    grades: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Candidates:
    """One query with the documents it meets in one step, shuffled."""

    query: Any
    documents: list[Any]
    labels: list[float]
    scores: list[float] | None


class Examples:
    """All lines of some files, by number.

    Args:
        paths: JSONL files.
        on_bad_line: "raise" an InputError at the first line that cannot be used, or "skip" it and note it in `bad`.
        taught: whether every line must have a teacher's "scores".

    Attributes:
        bad: one sentence for each line left out.
        hashes: SHA-256 of each file, by path.

    Raises InputError where a file cannot be read, or no line can be used.
    """

    def __init__(
        self, paths: Sequence[Path], on_bad_line: Literal["raise", "skip"] = "raise", needs_scores: bool = False
    ) -> None:
        self.bad: list[str] = []
        self.hashes: dict[str, str] = {}
        self._line_offsets: list[tuple[Path, int]] = []
        self._line_numbers: list[int] = []
        self.num_rankable = 0
        """Lines with a negative, or with positives of different grades."""
        lengths: list[int] = []
        for path in paths:
            digest, offset = hashlib.sha256(), 0
            for number, line in enumerate(_read_lines(path), 1):
                digest.update(line)
                if line.strip():
                    try:
                        example = parse_line(line, path.parent)
                        if needs_scores and example.scores is None:
                            raise InputError('lacks "scores", which a distilling loss needs.')
                    except InputError as error:
                        message = f"{path}, line {number}: {error}"
                        if on_bad_line == "raise":
                            raise InputError(message) from None
                        self.bad.append(message)
                    else:
                        self._line_offsets.append((path, offset))
                        self._line_numbers.append(number)
                        self.num_rankable += bool(example.negative) or len(set(example.grades or ())) > 1
                        lengths.append(_estimate_length(example))
                offset += len(line)
            self.hashes[str(path)] = digest.hexdigest()
        self.lengths = np.array(lengths)
        if not self._line_offsets:
            raise InputError(f"{', '.join(map(str, paths)) or 'the list of data files'} holds no line that can be used.")

    def __len__(self) -> int:
        return len(self._line_offsets)

    def __getitem__(self, number: int) -> Example:
        path, offset = self._line_offsets[number]
        with path.open("rb") as file:
            file.seek(offset)
            return parse_line(file.readline(), path.parent)

    def location(self, number: int) -> str:
        """File and line, for messages."""
        return f"{self._line_offsets[number][0]}, line {self._line_numbers[number]}"

    def steps(self, queries: int, epoch: int, seed: int) -> list[list[int]]:
        """The order of one epoch: for each step the numbers of its queries.

        Shuffled by seed and epoch; then, within chunks of 32 steps, like lengths together, and the steps shuffled
        again. The last step is filled up from the beginning of the order.
        """
        generator = np.random.default_rng([seed, epoch])
        order = np.resize(generator.permutation(len(self)), math.ceil(len(self) / queries) * queries)
        steps: list[list[int]] = []
        for start in range(0, len(order), queries * STEPS_PER_BUCKET):
            bucket = order[start : start + queries * STEPS_PER_BUCKET]
            bucket = bucket[np.argsort(self.lengths[bucket], kind="stable")]
            steps += bucket.reshape(-1, queries).tolist()
        return [steps[i] for i in generator.permutation(len(steps))]


def parse_line(line: bytes | str, folder: Path) -> Example:
    """One line -> an Example, pictures' paths made to lead from here. Raises InputError, one sentence."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a line of JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"holds a JSON {type(values).__name__}, but must hold an object.")
    if unknown := set(values) - LINE_KEYS:
        raise InputError(f"has the key {sorted(unknown)[0]!r}; known are {', '.join(sorted(LINE_KEYS))}.")
    if "query" not in values:
        raise InputError('lacks "query".')
    positive, negative = values.get("positive"), values.get("negative", [])
    for name, documents in (("positive", positive), ("negative", negative)):
        if not isinstance(documents, list):
            raise InputError(f'"{name}" is {"missing" if documents is None else type(documents).__name__}, but must be a list.')
    if not positive:
        raise InputError('"positive" is empty.')
    scores, grades = values.get("scores"), values.get("grades")
    if scores is not None:
        _check_numbers(scores, "scores", len(positive) + len(negative), (int, float))
    if grades is not None:
        _check_numbers(grades, "grades", len(positive), (int,))
        if not 1 <= min(grades) <= max(grades) <= MAX_GRADE:
            raise InputError(f'"grades" of positives must lie between 1 and {MAX_GRADE}.')
    return Example(
        _resolve_paths(values["query"], folder, "query"),
        tuple(_resolve_paths(document, folder, "positive") for document in positive),
        tuple(_resolve_paths(document, folder, "negative") for document in negative),
        None if scores is None else tuple(map(float, scores)),
        None if grades is None else tuple(grades),
    )


def draw_candidates(
    example: Example, positives: int, negatives: int, rng: random.Random, borrowed: Sequence[Any] = ()
) -> Candidates:
    """Choose what a query meets in one step: some of its positives, some of its negatives, and all borrowed documents
    (other queries' positives) that are neither its own positives nor the query itself. The positives are the first thing drawn:
    see `draw_positives`."""
    positive_indices = _draw_positive_indices(example, positives, rng)
    negative_indices = rng.sample(range(len(example.negative)), min(negatives, len(example.negative)))
    positive_keys = [document_key(document) for document in example.positive]
    grades = example.grades or (1,) * len(example.positive)
    chosen = [(example.positive[i], float(grades[i]), i) for i in positive_indices]
    chosen += [(example.negative[i], 0.0, len(example.positive) + i) for i in negative_indices]
    if example.scores is None:
        known = {document_key(example.query), *positive_keys, *(document_key(example.negative[i]) for i in negative_indices)}
        chosen += [(document, 0.0, -1) for document in borrowed if document_key(document) not in known]
    rng.shuffle(chosen)
    scores = None if example.scores is None else [example.scores[i] for _, _, i in chosen]
    return Candidates(example.query, [document for document, _, _ in chosen], [label for _, label, _ in chosen], scores)


def draw_positives(example: Example, positives: int, rng: random.Random) -> list[Any]:
    """The positives that `draw_candidates` draws with a generator of the same seed."""
    return [example.positive[i] for i in _draw_positive_indices(example, positives, rng)]


def _draw_positive_indices(example: Example, positives: int, rng: random.Random) -> list[int]:
    return rng.sample(range(len(example.positive)), min(positives, len(example.positive)))


def document_key(document: Any) -> str:
    """Equal for documents that say the same: text as it is, pictures by path."""
    if isinstance(document, str):
        document = {"text": document}
    return json.dumps(document if isinstance(document, list) else [document], sort_keys=True, ensure_ascii=False)


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}.") from None


def _estimate_length(example: Example) -> int:
    documents = [*example.positive, *example.negative]
    return _estimate_bytes(example.query) + sum(map(_estimate_bytes, documents)) // max(len(documents), 1)


def _estimate_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(map(_estimate_bytes, value))
    return sum(ASSUMED_PICTURE_BYTES if key == "image" else _estimate_bytes(content) for key, content in value.items())


def _check_numbers(values: Any, name: str, count: int, types: Any) -> None:
    if not isinstance(values, list) or len(values) != count:
        given = len(values) if isinstance(values, list) else type(values).__name__
        raise InputError(f'"{name}" must be a list of {count} numbers, one a document, but is {given}.')
    for value in values:
        if isinstance(value, bool) or not isinstance(value, types) or not -1e300 < value < 1e300:
            raise InputError(f'"{name}" holds {value!r}, but must hold {"whole " if types == (int,) else ""}numbers.')


def _check_text(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f'"{name}" is not valid Unicode (a lone surrogate).') from None


def _resolve_paths(value: Any, folder: Path, name: str) -> Any:
    """Check the form of a query or document, and lead its pictures' paths from here."""
    if isinstance(value, str):
        if name == "query" and not value.strip():
            raise InputError('"query" is empty.')
        _check_text(value, name)
        return value
    if isinstance(value, list) and value and not any(isinstance(item, list) for item in value):
        return [_resolve_paths(item, folder, name) for item in value]
    if (
        isinstance(value, dict)
        and value
        and set(value) <= {"text", "image"}
        and all(isinstance(v, str) for v in value.values())
    ):
        for text in value.values():
            _check_text(text, name)
        image = value.get("image")
        if name == "query" and image is None and not value["text"].strip():
            raise InputError('"query" is empty.')
        if image is None or image[:6].lower().startswith(("http:", "https:", "data:")):
            return value
        path = path_of(image, folder=folder)
        try:
            found = path.is_file()
        except (OSError, ValueError):
            found = False
        if not found:
            raise InputError(f'the picture {path} of "{name}" does not exist.')
        return {**value, "image": str(path)}
    raise InputError(f'"{name}" must hold text, {{"text": ...}}, {{"image": path}} or a list of these.')
