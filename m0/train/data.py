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

KEYS = {"query", "positive", "negative", "scores", "grades"}
PICTURE_BYTES = 2000
"""What a picture counts for in a line's length: about 500 visual tokens, at 4 bytes of text a token."""
MAX_GRADE = 30
"""A grade g gains 2^g - 1 in LambdaLoss."""
BUCKET_STEPS = 32
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

    def __init__(self, paths: Sequence[Path], on_bad_line: Literal["raise", "skip"] = "raise", taught: bool = False) -> None:
        self.bad: list[str] = []
        self.hashes: dict[str, str] = {}
        self._places: list[tuple[Path, int]] = []
        self._lines: list[int] = []
        self.contrasted = 0
        """Lines with a negative, or with positives of different grades."""
        lengths: list[int] = []
        for path in paths:
            digest, place = hashlib.sha256(), 0
            for number, line in enumerate(_lines(path), 1):
                digest.update(line)
                if line.strip():
                    try:
                        example = parse(line, path.parent)
                        if taught and example.scores is None:
                            raise InputError('lacks "scores", which a distilling loss needs.')
                    except InputError as error:
                        message = f"{path}, line {number}: {error}"
                        if on_bad_line == "raise":
                            raise InputError(message) from None
                        self.bad.append(message)
                    else:
                        self._places.append((path, place))
                        self._lines.append(number)
                        self.contrasted += bool(example.negative) or len(set(example.grades or ())) > 1
                        lengths.append(_length(example))
                place += len(line)
            self.hashes[str(path)] = digest.hexdigest()
        self.lengths = np.array(lengths)
        if not self._places:
            raise InputError(f"{', '.join(map(str, paths)) or 'the list of data files'} holds no line that can be used.")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Example:
        path, place = self._places[number]
        with path.open("rb") as file:
            file.seek(place)
            return parse(file.readline(), path.parent)

    def where(self, number: int) -> str:
        """File and line, for messages."""
        return f"{self._places[number][0]}, line {self._lines[number]}"

    def steps(self, queries: int, epoch: int, seed: int) -> list[list[int]]:
        """The order of one epoch: for each step the numbers of its queries.

        Shuffled by seed and epoch; then, within chunks of 32 steps, like lengths together, and the steps shuffled
        again. The last step is filled up from the beginning of the order.
        """
        generator = np.random.default_rng([seed, epoch])
        order = np.resize(generator.permutation(len(self)), math.ceil(len(self) / queries) * queries)
        steps: list[list[int]] = []
        for start in range(0, len(order), queries * BUCKET_STEPS):
            stretch = order[start : start + queries * BUCKET_STEPS]
            stretch = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            steps += stretch.reshape(-1, queries).tolist()
        return [steps[i] for i in generator.permutation(len(steps))]


def parse(line: bytes | str, folder: Path) -> Example:
    """One line -> an Example, pictures' paths made to lead from here. Raises InputError, one sentence."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a line of JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"holds a JSON {type(values).__name__}, but must hold an object.")
    if unknown := set(values) - KEYS:
        raise InputError(f"has the key {sorted(unknown)[0]!r}; known are {', '.join(sorted(KEYS))}.")
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
        _resolved(values["query"], folder, "query"),
        tuple(_resolved(document, folder, "positive") for document in positive),
        tuple(_resolved(document, folder, "negative") for document in negative),
        None if scores is None else tuple(map(float, scores)),
        None if grades is None else tuple(grades),
    )


def candidates(
    example: Example, positives: int, negatives: int, rng: random.Random, borrowed: Sequence[Any] = ()
) -> Candidates:
    """Choose what a query meets in one step: some of its positives, some of its negatives, and all borrowed documents
    (other queries' positives) that are neither its own positives nor the query itself. The positives are the first thing drawn:
    see `drawn_positives`."""
    best = _draw(example, positives, rng)
    rest = rng.sample(range(len(example.negative)), min(negatives, len(example.negative)))
    own = [document_key(document) for document in example.positive]
    grades = example.grades or (1,) * len(example.positive)
    chosen = [(example.positive[i], float(grades[i]), i) for i in best]
    chosen += [(example.negative[i], 0.0, len(example.positive) + i) for i in rest]
    if example.scores is None:
        known = {document_key(example.query), *own, *(document_key(example.negative[i]) for i in rest)}
        chosen += [(document, 0.0, -1) for document in borrowed if document_key(document) not in known]
    rng.shuffle(chosen)
    scores = None if example.scores is None else [example.scores[i] for _, _, i in chosen]
    return Candidates(example.query, [document for document, _, _ in chosen], [label for _, label, _ in chosen], scores)


def drawn_positives(example: Example, positives: int, rng: random.Random) -> list[Any]:
    """The positives that `candidates` draws with a generator of the same seed."""
    return [example.positive[i] for i in _draw(example, positives, rng)]


def _draw(example: Example, positives: int, rng: random.Random) -> list[int]:
    return rng.sample(range(len(example.positive)), min(positives, len(example.positive)))


def document_key(document: Any) -> str:
    """Equal for documents that say the same: text as it is, pictures by path."""
    if isinstance(document, str):
        document = {"text": document}
    return json.dumps(document if isinstance(document, list) else [document], sort_keys=True, ensure_ascii=False)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}.") from None


def _length(example: Example) -> int:
    documents = [*example.positive, *example.negative]
    return _size(example.query) + sum(map(_size, documents)) // max(len(documents), 1)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(map(_size, value))
    return sum(PICTURE_BYTES if key == "image" else _size(content) for key, content in value.items())


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


def _resolved(value: Any, folder: Path, name: str) -> Any:
    """Check the form of a query or document, and lead its pictures' paths from here."""
    if isinstance(value, str):
        if name == "query" and not value.strip():
            raise InputError('"query" is empty.')
        _check_text(value, name)
        return value
    if isinstance(value, list) and value and not any(isinstance(item, list) for item in value):
        return [_resolved(item, folder, name) for item in value]
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
