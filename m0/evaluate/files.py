"""Lines of a dataset's files: text in whatever Unicode encoding, objects with an id, judgements."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.inputs.opening import looks_like_picture, read_encoded
from m0.inputs.texts import encoding_of
from m0.paths import as_literal, exists, path_of

MAX_GRADE = 1000
"""Highest grade of a judgement; trec_eval makes tables as long as that."""
HEADER_COLUMNS = ("query-id", "query", "qid", "queryid", "topic", "topic-id"), ("score", "relevance", "rel", "label", "grade")
"""Names that header lines of judgements have for the first and for the last column."""
MAX_NAMED_IDS = 5
"""Ids that a sentence names before it counts the rest."""
BASE64_PATTERN = re.compile(r"[A-Za-z0-9+/_\s-]{60,}={0,2}\s*")


def read_text(path: Path, digest: Any = None) -> str:
    """A file's text: UTF-8, or UTF-16 or UTF-32 with a byte order mark, as Windows tools write it. `digest`: takes the bytes up.

    Raises InputError, one sentence.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}.") from None
    if digest is not None:
        digest.update(data)
    mark, encoding, codec = encoding_of(data)
    try:
        return data[len(mark) :].decode(codec)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} at byte {error.start + len(mark)}.") from None


def read_rows(path: Path, digest: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Id, content and place of each line. Raises InputError naming the line."""
    has_rows = False
    for number, line in enumerate(read_text(path, digest).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not a line of JSON: {error}.") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be a JSON object.")
        key = row.get("_id", row.get("id"))
        if key is None:
            raise InputError(f'{where}: lacks "_id".')
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise InputError(f'{where}: "_id" is {key!r}, but must be text or a whole number.')
        if not (key := str(key)) or not is_id(key):
            raise InputError(
                f"{where}: the id {key!r} is empty or holds blanks or lone surrogates, which TREC files cannot keep."
            )
        has_rows = True
        yield key, row, where
    if not has_rows:
        raise InputError(f"{path} is empty.")


def is_id(key: str) -> bool:
    """Whether a TREC file can keep it."""
    return bool(key) and not any(character.isspace() or "\ud800" <= character <= "\udfff" for character in key)


def row_content(row: dict[str, Any], directory: Path, where: str) -> Any:
    """A line's query or document as `Reranker.rank` takes it; None where it has neither words nor a picture. Raises InputError."""
    title, text, image, pdf = (_text(row.get(name), name, where) for name in ("title", "text", "image", "pdf"))
    words = f"{title}\n{text}".strip() if title else text
    if pdf:
        if words.strip() or image:
            raise InputError(f'{where}: has "pdf" beside other content; a PDF is a document by itself.')
        file = {"pdf": resolve_picture(pdf, directory)}
        return file if row.get("pages") is None else {**file, "pages": row["pages"]}
    if not image:
        return words if words.strip() else None
    image_part = {"image": resolve_picture(image, directory)}
    return [words, image_part] if words.strip() else [image_part]


def resolve_picture(image: str, directory: Path, ending: str = "") -> str:
    """A picture that a line names, as `Reranker.rank` takes it: an http(s) URL, a data URI or base64 text as it is, all else as the path
    of a file, relative to the dataset. `ending`: of files whose names have none.

    Whether there is such a picture shows when it is opened, so that one that is not there refuses no others.
    """
    if image[:8].lower().startswith(("http://", "https://")) or image[:5].lower() == "data:":
        return image
    try:
        path = path_of(image, folder=directory)
    except InputError:  # of a user whom nobody knows: then it is a file of that name, as for a shell, and it is not there
        path = as_literal(directory / image)
    if ending and path.name and not path.suffix:
        path = path.with_suffix(ending)
    return image if BASE64_PATTERN.fullmatch(image) and not exists(path) and _is_picture(image) else str(path)


def _is_picture(base64: str) -> bool:
    try:
        return looks_like_picture(read_encoded(base64)[0])
    except InputError:
        return False


def row_language(row: dict[str, Any]) -> str:
    """Empty where a line names none."""
    metadata = row.get("metadata")
    for value in (row.get("language"), metadata.get("language") if isinstance(metadata, dict) else None):
        if value and not _is_nan(value):
            return str(value)
    return ""


def read_judgements(path: Path, digest: Any) -> dict[str, dict[str, int]]:
    """Grades by query and document, from BEIR's three columns or TREC's four, with a header line or without.

    Raises InputError naming the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    has_begun = False
    for number, line in enumerate(read_text(path, digest).split("\n"), 1):
        if not line.strip():
            continue
        is_first, has_begun, where = not has_begun, True, f"{path}, line {number}"
        cells = [cell.strip() for cell in line.rstrip().split("\t")] if "\t" in line.strip() else line.split()
        if is_first and _is_header(cells):
            continue
        if len(cells) == 4:  # TREC's second column says nothing
            del cells[1]
        if len(cells) != 3 or not cells[0] or not cells[1]:
            raise InputError(f"{where}: {JUDGEMENT_FORMAT}.")
        query, document, grade = cells[0], cells[1], _grade(cells[2], where)
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise InputError(
                f"{where}: judges {document} for {query} as {grade}, but an earlier line as {qrels[query][document]}."
            )
    if not qrels:
        raise InputError(f"{path} has no judgements.")
    return qrels


JUDGEMENT_FORMAT = "must be query-id, corpus-id and a whole number, by tabs, or TREC's query, 0, document and a whole number"


def format_count(number: int, noun: str, kind: str = "") -> str:
    """As "1 judged query", "3 documents"; `noun` is a plural."""
    singular = noun.removesuffix("ies") + "y" if noun.endswith("ies") else noun.removesuffix("s")
    return " ".join(word for word in (f"{number:,}", kind, singular if number == 1 else noun) if word)


def format_ids(ids: Iterable[str]) -> str:
    """Some ids in a sentence: the first ones, and how many more."""
    ids = list(ids)
    more = len(ids) - MAX_NAMED_IDS
    return ", ".join(ids) if more <= 1 else f"{', '.join(ids[:MAX_NAMED_IDS])} and {more} more"


def _is_header(cells: list[str]) -> bool:
    names = [cell.lower().replace("_", "-") for cell in cells]
    if len(names) < 3 or _is_number(names[-1]):
        return False
    return names[0] in HEADER_COLUMNS[0] or names[-1] in HEADER_COLUMNS[1]


def parse_number(text: str) -> float:
    """A number as files hold it: Python would take 1_0 for ten and other scripts' digits, too. Raises ValueError."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def _is_number(text: str) -> bool:
    try:
        parse_number(text)
    except ValueError:
        return False
    return True


def _grade(text: str, where: str) -> int:
    if not _is_number(text):
        raise InputError(f"{where}: {JUDGEMENT_FORMAT}.")
    value = parse_number(text)
    if not abs(value) <= MAX_GRADE:
        raise InputError(f"{where}: the score is {text}, but must lie between -{MAX_GRADE} and {MAX_GRADE}.")
    if value != math.floor(value):
        raise InputError(f"{where}: the score is {text}, but must be a whole number.")
    return int(value)


def _text(value: Any, name: str, where: str) -> str:
    if value is None or _is_nan(value):
        return ""
    if not isinstance(value, str):
        raise InputError(f'{where}: "{name}" is {str(value)[:60]}, but must be text.')
    return value


def _is_nan(value: Any) -> bool:
    """What is left out, as pandas writes it."""
    return isinstance(value, float) and math.isnan(value)
