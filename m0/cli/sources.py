"""What an argument of the command line stands for: files, pages, folders, addresses, records -> documents, one after the other."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from m0.cli.folders import Unusable, list_folder
from m0.cli.policy import policy_of
from m0.errors import InputError, MissingExtraError
from m0.inputs.hosts import shown
from m0.inputs.markup import MARKUP_SUFFIXES, read_markup
from m0.inputs.markup.encodings import decode_any
from m0.inputs.pages import has_pages, read_pages
from m0.inputs.records import (
    LINE_SUFFIXES,
    RECORD_SUFFIXES,
    Fields,
    Record,
    UnusableRecords,
    document_of,
    iterate_records,
    read_json_lines,
)
from m0.inputs.resizing import ImageSettings
from m0.inputs.texts import NEITHER_PICTURE_NOR_TEXT, decode, kind_by_name, read_bytes

PAGE_RANGE = re.compile(r"[0-9][0-9, -]*")


@dataclass(frozen=True)
class Source:
    """One document of the command line: what to call it, and what it is or why it is not."""

    name: str
    document: Any = None
    error: str | None = None
    id: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ReadingOptions:
    """How what the command line names is read."""

    fields: Fields = field(default_factory=Fields)
    encoding: str | None = None
    pages: str | None = None
    as_: Literal["image", "text", "both", "auto"] = "image"
    password: str | None = None
    whole: bool = False
    """Whether a file of pages is one document, scored by its best page."""
    settings: ImageSettings = field(default_factory=ImageSettings)
    """Of pictures, with the policy that says what may be read."""

    @classmethod
    def of(cls, options: argparse.Namespace) -> ReadingOptions:
        """As the arguments say. Raises InputError."""
        policy = policy_of(options)
        settings = ImageSettings(policy=policy)
        if options.max_image_pixels is not None:
            settings = ImageSettings(policy=policy, max_image_pixels=options.max_image_pixels)
        fields = Fields(options.text_field, options.image_field, options.id_field)
        return cls(fields, options.encoding, options.pages, options.as_, options.password, options.whole, settings)


PLAIN = ReadingOptions()


def print_message(sentence: str) -> None:
    """Print a message on stderr, beside the result."""
    print(f"m0: {sentence}", file=sys.stderr)


def read_sources(
    argument: str, notify: Callable[[str], None] = print_message, reading: ReadingOptions = PLAIN
) -> Iterator[Source]:
    """The documents that one argument of the command line stands for, one after the other. What cannot be used says why.

    Args:
        argument: a file, some of its pages ("report.pdf#2-5,7"), a folder, a file of records, "-" for the standard input, or the address of a
            picture.
        notify: called with a sentence on what was left out of a folder.
        reading: how files are read.
    """
    short = argument if len(argument) <= 200 else f"{argument[:60]}..."
    if argument == "-":
        yield from _read_standard_input(reading)
        return
    if not argument.strip():
        yield Source(argument, error="a document is named by empty text.")
        return
    if is_address(argument):
        yield Source(short if argument[:5].lower() == "data:" else shown(argument), {"image": argument})
        return
    try:
        path = reading.settings.policy.check_path(argument)
        is_directory, exists = path.is_dir(), path.exists()
        pages = reading.pages
        if not exists and (named := _split_pages(argument, reading)) is not None:
            path, pages, exists = *named, True
    except InputError as error:
        yield Source(short, error=str(error))
    except (OSError, ValueError) as error:
        yield Source(argument[:60], error=f"{argument[:60]}... cannot be read: {getattr(error, 'strerror', None) or error}.")
    else:
        if is_directory:
            yield from _read_folder(path, notify, reading)
        elif not exists:
            hint = "; give the path without file://" if argument[:7].lower() == "file://" else ""
            yield Source(argument, error=f"{argument} does not exist{hint}.")
        else:
            name = str(path) if argument.startswith("~") or pages != reading.pages else argument
            yield from _read_file(path, name, reading, pages, named=True)


def is_address(argument: str) -> bool:
    """Whether a picture is named by where it lies on the web, or is written out whole."""
    return argument[:8].lower().startswith(("http://", "https://")) or argument[:11].lower() == "data:image/"


def _split_pages(argument: str, reading: ReadingOptions) -> tuple[Path, str] | None:
    """The file and the pages of FILE#PAGES."""
    file, _, pages = argument.rpartition("#")
    if not file or not PAGE_RANGE.fullmatch(pages):
        return None
    path = reading.settings.policy.check_path(file)
    return (path, pages) if path.is_file() and has_pages(path) else None


def _read_standard_input(reading: ReadingOptions) -> Iterator[Source]:
    if sys.stdin is None:  # as services and schedulers start programs
        yield Source("-", error="standard input is closed.")
        return
    make = partial(document_of, fields=reading.fields, folder=Path())
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        import io

        stream = io.BytesIO(sys.stdin.read().encode("utf-8", "surrogatepass"))
    yield from _of_records(read_json_lines(stream, make, reading.encoding, plain_text=True), "-")


def _read_folder(path: Path, notify: Callable[[str], None], reading: ReadingOptions) -> Iterator[Source]:
    for file in list_folder(path, notify):
        if isinstance(file, Unusable):
            yield Source(file.name, error=file.error)
        else:
            yield from _read_file(file, str(file), reading, reading.pages, named=False)


def _read_file(path: Path, name: str, reading: ReadingOptions, pages: str | None, named: bool) -> Iterator[Source]:
    """One file: records, pages, a picture or a text. `named`: by the user, not found in a folder."""
    suffix = path.suffix.lower()
    try:
        path = reading.settings.policy.check_path(path)
        if suffix in (RECORD_SUFFIXES if named else LINE_SUFFIXES):
            yield from _of_records(iterate_records(path, reading.fields, reading.encoding), name)
        elif has_pages(path):
            yield from _read_pages(path, name, reading, pages)
        elif kind_by_name(path) == "picture":
            yield Source(str(path), {"image": str(path)})
        else:
            yield _read_text(path, reading)
    except (InputError, MissingExtraError) as error:
        yield Source(str(path), error=str(error))


def _read_pages(path: Path, name: str, reading: ReadingOptions, pages: str | None) -> Iterator[Source]:
    if reading.whole:
        whole = {"pdf": str(path), "as": reading.as_}
        more = {key: value for key, value in (("pages", pages), ("password", reading.password)) if value is not None}
        next(read_pages(path, pages, reading.as_, reading.password, reading.settings))  # what is wrong with it shows here
        yield Source(name, {**whole, **more})
        return
    for page in read_pages(path, pages, reading.as_, reading.password, reading.settings):
        yield Source(f"{name}#{page.info.number}", page)


def _of_records(records: Iterator[Record], name: str) -> Iterator[Source]:
    """The records of a file that are documents, and one sentence on the others."""
    unusable = UnusableRecords(name)
    for record in records:
        unusable.add(record)
        found = record.document
        if not isinstance(found, InputError):
            yield Source(f"{name}:{record.number}", found.content, id=found.id, metadata=found.metadata)
    if unusable.count:
        yield Source(name, error=str(unusable))


def _read_text(path: Path, reading: ReadingOptions) -> Source:
    data = read_bytes(path, pipes=True)
    if path.suffix.lower() in MARKUP_SUFFIXES:
        return Source(str(path), {"text": read_markup(data, str(path), reading.encoding)})
    if kind_by_name(path) is None and _is_picture(path, data):
        return Source(str(path), {"image": str(path)})
    if reading.encoding is not None:
        return Source(str(path), {"text": decode_any(data, str(path), reading.encoding)})
    return Source(str(path), {"text": decode(data, str(path), NEITHER_PICTURE_NOR_TEXT)})


def _is_picture(path: Path, data: bytes) -> bool:
    """Of a file whose name does not tell. A pipe was read already, and what it held is gone."""
    if not path.is_file():
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        from m0.inputs.opening import looks_like_picture

        return looks_like_picture(data)
    return False
