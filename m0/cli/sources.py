"""What an argument of the command line stands for: files, folders, addresses, JSON lines -> documents."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m0.errors import InputError
from m0.inputs.texts import PICTURE_OR_TEXT, decode, kind_by_name, read_bytes
from m0.paths import literal, path_of

MAX_NAMED_KINDS = 8
"""How many kinds of files that were left out a message names."""
PLURALS = {
    "file of another kind": "files of other kinds",
    "file without a suffix": "files without a suffix",
    "hidden file": "hidden files",
    "hidden folder": "hidden folders",
    "linked folder": "linked folders",
    "device, pipe or socket": "devices, pipes or sockets",
}


@dataclass(frozen=True)
class Source:
    """One document of the command line: what to call it, and what it is or why it is not."""

    name: str
    document: Any = None
    error: str | None = None


def print_message(sentence: str) -> None:
    """Print a message on stderr, beside the result."""
    print(f"m0: {sentence}", file=sys.stderr)


def read_sources(argument: str, notify: Callable[[str], None] = print_message) -> Iterator[Source]:
    """The documents that one argument of the command line stands for. What cannot be used says why.

    Args:
        argument: a file, a folder, a .jsonl file, "-" for the standard input, or the address of a picture.
        notify: called with a sentence on what was left out of a folder.
    """
    short = argument if len(argument) <= 200 else f"{argument[:60]}..."
    if argument == "-":
        yield from _read_standard_input()
        return
    if not argument.strip():
        yield Source(argument, error="a document is named by empty text.")
        return
    if is_address(argument):
        yield Source(short, {"image": argument})
        return
    try:
        path = path_of(argument)
        is_directory, exists = path.is_dir(), path.exists()
    except InputError as error:
        yield Source(short, error=str(error))
    except (OSError, ValueError) as error:
        yield Source(argument[:60], error=f"{argument[:60]}... cannot be read: {getattr(error, 'strerror', None) or error}.")
    else:
        if is_directory:
            yield from _read_directory(path, notify)
        elif not exists:
            hint = "; give the path without file://" if argument[:7].lower() == "file://" else ""
            yield Source(argument, error=f"{argument} does not exist{hint}.")
        else:
            yield from _read_file(path, str(path) if argument.startswith("~") else argument)


def is_address(argument: str) -> bool:
    """Whether a picture is named by where it lies on the web, or is written out whole."""
    return argument[:8].lower().startswith(("http://", "https://")) or argument[:11].lower() == "data:image/"


def _read_standard_input() -> Iterator[Source]:
    if sys.stdin is None:  # as services and schedulers start programs
        yield Source("-", error="standard input is closed.")
        return
    try:
        stream = getattr(sys.stdin, "buffer", None)
        text = sys.stdin.read() if stream is None else decode(stream.read(), "standard input")
    except InputError as error:
        yield Source("-", error=str(error))
    else:
        yield from _read_json_lines(text, "-", Path(), plain_text=True)


def _read_directory(path: Path, notify: Callable[[str], None]) -> Iterator[Source]:
    """Its files and those of the folders in it, sorted. Hidden ones and links to folders, which may lead in circles, are left out."""
    files: list[Path] = []
    unreadable: list[OSError] = []
    left_out: Counter[str] = Counter()
    for folder, folders, names in os.walk(path, onerror=unreadable.append):
        left_out["hidden folder"] += sum(name.startswith(".") for name in folders)
        left_out["hidden file"] += sum(name.startswith(".") for name in names)
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_out["linked folder"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        files += [literal(Path(folder, name)) for name in names if not name.startswith(".")]
    for error in unreadable:
        yield Source(str(error.filename), error=f"{error.filename} cannot be read: {error.strerror}.")
    usable: list[Path] = []
    unknown_suffixes: Counter[str] = Counter()
    has_unreadable_file = False
    for file in sorted(files):
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                left_out["device, pipe or socket"] += 1
            elif file.suffix.lower() == ".jsonl" or kind_by_name(file):
                usable.append(file)
            else:
                unknown_suffixes[file.suffix[1:].upper()] += 1
        except OSError as error:
            has_unreadable_file = True
            is_broken_link = error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(file)
            reason = "is a link to what does not exist" if is_broken_link else f"cannot be read: {error.strerror}"
            yield Source(str(file), error=f"{file} {reason}.")
    left_out_text = _format_left_out(unknown_suffixes, left_out)
    if not usable and not unreadable and not has_unreadable_file:
        yield Source(
            str(path),
            error=f"{path} holds no text files or pictures" + (f" ({left_out_text} left out)." if left_out_text else "."),
        )
    elif left_out_text:
        notify(f"{path}: {left_out_text} left out.")
    for file in usable:
        yield from _read_file(file, str(file))


def _format_left_out(unknown_suffixes: Counter[str], others: Counter[str]) -> str:
    """In words: 3 PDF, 1 DOCX, 2 files without a suffix, 1 hidden file."""
    # A suffix is somebody else's text: what does not look like one is counted only.
    suffixes = {kind: count for kind, count in unknown_suffixes.items() if kind.isalnum() and len(kind) <= 10}
    named = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:MAX_NAMED_KINDS]
    counts = {
        "file of another kind": unknown_suffixes.total() - unknown_suffixes[""] - sum(dict(named).values()),
        "file without a suffix": unknown_suffixes[""],
        **others,
    }
    return ", ".join(
        [f"{count} {kind}" for kind, count in named]
        + [f"{count} {what if count == 1 else PLURALS[what]}" for what, count in counts.items() if count]
    )


def _read_file(path: Path, name: str) -> Iterator[Source]:
    """One file: JSON lines, a picture or a text."""
    kind = kind_by_name(path)
    if kind == "picture":
        yield Source(str(path), {"image": str(path)})
        return
    lines = path.suffix.lower() == ".jsonl"
    try:
        data = read_bytes(path, pipes=True)
        if kind is None and not lines and _is_picture(path, data):
            yield Source(str(path), {"image": str(path)})
            return
        text = decode(data, str(path), PICTURE_OR_TEXT)
    except InputError as error:
        yield Source(str(path), error=str(error))
        return
    if lines:
        yield from _read_json_lines(text, name, path.parent, plain_text=False)
    else:
        yield Source(str(path), {"text": text})


def _is_picture(path: Path, data: bytes) -> bool:
    """Of a file whose name does not tell. A pipe was read already, and what it held is gone."""
    if not path.is_file():
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        from m0.inputs.opening import looks_like_picture  # with PyTorch, which is slow to import

        return looks_like_picture(data)
    return False


def _read_json_lines(text: str, name: str, folder: Path, plain_text: bool) -> Iterator[Source]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        yield Source(name, error=f"{name} is empty.")
    for number, line in lines:
        label = f"{name}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if plain_text and not line.lstrip().startswith(("{", '"')):
                yield Source(label, {"text": line.rstrip("\r")})
            else:
                yield Source(label, error=f"{label} is not a line of JSON: {error}.")
            continue
        if isinstance(value, str | dict | list):
            yield _resolve_source(value, folder, label)
        elif plain_text:
            yield Source(label, {"text": line})
        else:
            kind = "null" if value is None else "number" if not isinstance(value, bool) else "true or false"
            yield Source(label, error=f"{label} holds a JSON {kind}, but must hold a string, object or list.")


def _resolve_source(value: Any, folder: Path, label: str) -> Source:
    try:
        return Source(label, _resolve_paths(value, folder))
    except InputError as error:
        return Source(label, error=f"{label}: {error}")
    except RecursionError:
        return Source(label, error=f"{label} holds lists in lists, too deep to read.")


def _resolve_paths(value: Any, folder: Path) -> Any:
    """Pictures named by a relative path are looked for beside the file that names them."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list):
        return [_resolve_paths(item, folder) for item in value]
    if isinstance(value, dict) and isinstance(image := value.get("image"), str):
        if image[:6].lower().startswith(("http:", "https:", "data:")):
            return value
        path = path_of(image, folder=folder)
        # False, not an error, for base64 that is too long for a path.
        if image.startswith("~") or os.path.exists(path):
            return {**value, "image": str(path)}
    return value
