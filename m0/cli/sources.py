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
from m0.inputs.texts import NEITHER_PICTURE_NOR_TEXT, decode, kind_by_name, read_bytes
from m0.paths import as_literal, path_of

NAMED_KINDS = 8
"""How many kinds of files that were left out are named."""
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


def say(sentence: str) -> None:
    """Tell the user, beside the result."""
    print(f"m0: {sentence}", file=sys.stderr)


def read_sources(argument: str, say: Callable[[str], None] = say) -> Iterator[Source]:
    """The documents that one argument of the command line stands for. What cannot be used says why.

    Args:
        argument: a file, a folder, a .jsonl file, "-" for the standard input, or the address of a picture.
        say: is told what was left out of folders.
    """
    short = argument if len(argument) <= 200 else f"{argument[:60]}..."
    if argument == "-":
        yield from _standard_input()
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
            yield from _directory(path, say)
        elif not exists:
            hint = "; give the path without file://" if argument[:7].lower() == "file://" else ""
            yield Source(argument, error=f"{argument} does not exist{hint}.")
        else:
            yield from _file(path, str(path) if argument.startswith("~") else argument)


def is_address(argument: str) -> bool:
    """Whether a picture is named by where it lies on the web, or is written out whole."""
    return argument[:8].lower().startswith(("http://", "https://")) or argument[:11].lower() == "data:image/"


def _standard_input() -> Iterator[Source]:
    if sys.stdin is None:  # as services and schedulers start programs
        yield Source("-", error="standard input is closed.")
        return
    try:
        stream = getattr(sys.stdin, "buffer", None)
        text = sys.stdin.read() if stream is None else decode(stream.read(), "standard input")
    except InputError as error:
        yield Source("-", error=str(error))
    else:
        yield from _json_lines(text, "-", Path(), plain_text=True)


def _directory(path: Path, say: Callable[[str], None]) -> Iterator[Source]:
    """Its files and those of the folders in it, sorted. Hidden ones and links to folders, which may lead in circles, are left out."""
    everything: list[Path] = []
    unread: list[OSError] = []
    left: Counter[str] = Counter()
    for folder, folders, names in os.walk(path, onerror=unread.append):
        left["hidden folder"] += sum(name.startswith(".") for name in folders)
        left["hidden file"] += sum(name.startswith(".") for name in names)
        folders[:] = [name for name in folders if not name.startswith(".")]
        left["linked folder"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        everything += [as_literal(Path(folder, name)) for name in names if not name.startswith(".")]
    for error in unread:
        yield Source(str(error.filename), error=f"{error.filename} cannot be read: {error.strerror}.")
    known: list[Path] = []
    kinds: Counter[str] = Counter()
    broken = False
    for file in sorted(everything):
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                left["device, pipe or socket"] += 1
            elif file.suffix.lower() == ".jsonl" or kind_by_name(file):
                known.append(file)
            else:
                kinds[file.suffix[1:].upper()] += 1
        except OSError as error:
            broken = True
            gone = error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(file)
            why = "is a link to what does not exist" if gone else f"cannot be read: {error.strerror}"
            yield Source(str(file), error=f"{file} {why}.")
    out = _left_out(kinds, left)
    if not known and not unread and not broken:
        yield Source(str(path), error=f"{path} holds no text files or pictures" + (f" ({out} left out)." if out else "."))
    elif out:
        say(f"{path}: {out} left out.")
    for file in known:
        yield from _file(file, str(file))


def _left_out(kinds: Counter[str], others: Counter[str]) -> str:
    """In words: 3 PDF, 1 DOCX, 2 files without a suffix, 1 hidden file."""
    # A suffix is somebody else's text: what does not look like one is counted only.
    plain = {kind: count for kind, count in kinds.items() if kind.isalnum() and len(kind) <= 10}
    named = sorted(plain.items(), key=lambda item: (-item[1], item[0]))[:NAMED_KINDS]
    counts = {
        "file of another kind": kinds.total() - kinds[""] - sum(dict(named).values()),
        "file without a suffix": kinds[""],
        **others,
    }
    return ", ".join(
        [f"{count} {kind}" for kind, count in named]
        + [f"{count} {what if count == 1 else PLURALS[what]}" for what, count in counts.items() if count]
    )


def _file(path: Path, name: str) -> Iterator[Source]:
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
        text = decode(data, str(path), NEITHER_PICTURE_NOR_TEXT)
    except InputError as error:
        yield Source(str(path), error=str(error))
        return
    if lines:
        yield from _json_lines(text, name, path.parent, plain_text=False)
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


def _json_lines(text: str, name: str, folder: Path, plain_text: bool) -> Iterator[Source]:
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
            yield _resolved(value, folder, label)
        elif plain_text:
            yield Source(label, {"text": line})
        else:
            kind = "null" if value is None else "number" if not isinstance(value, bool) else "true or false"
            yield Source(label, error=f"{label} holds a JSON {kind}, but must hold a string, object or list.")


def _resolved(value: Any, folder: Path, label: str) -> Source:
    try:
        return Source(label, _resolve(value, folder))
    except InputError as error:
        return Source(label, error=f"{label}: {error}")
    except RecursionError:
        return Source(label, error=f"{label} holds lists in lists, too deep to read.")


def _resolve(value: Any, folder: Path) -> Any:
    """Pictures named by a relative path are looked for beside the file that names them."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list):
        return [_resolve(item, folder) for item in value]
    if isinstance(value, dict) and isinstance(image := value.get("image"), str):
        if image[:6].lower().startswith(("http:", "https:", "data:")):
            return value
        path = path_of(image, folder=folder)
        # False, not an error, for base64 that is too long for a path.
        if image.startswith("~") or os.path.exists(path):
            return {**value, "image": str(path)}
    return value
