"""The files of a folder that are documents, and a sentence on the others."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from m0.inputs.markup import MARKUP_SUFFIXES
from m0.inputs.records import LINE_SUFFIXES
from m0.inputs.texts import kind_by_name
from m0.paths import as_literal

PAGE_SUFFIXES = (".pdf", ".cbz")
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


class Unusable(NamedTuple):
    """What cannot be read, and why."""

    name: str
    error: str


def is_document(file: Path) -> bool:
    """Whether a file of a folder is one, by its name. Other files of records than JSON lines are so only where they are named."""
    return file.suffix.lower() in (*PAGE_SUFFIXES, *MARKUP_SUFFIXES, *LINE_SUFFIXES) or kind_by_name(file) is not None


def list_folder(path: Path, notify: Callable[[str], None]) -> Iterator[Path | Unusable]:
    """Its files and those of the folders in it, sorted. Hidden ones and links to folders, which may lead in circles, are left out.

    `notify`: called with a sentence on what was left out.
    """
    files: list[Path] = []
    unreadable: list[OSError] = []
    left_out: Counter[str] = Counter()
    for folder, folders, names in os.walk(path, onerror=unreadable.append):
        left_out["hidden folder"] += sum(name.startswith(".") for name in folders)
        left_out["hidden file"] += sum(name.startswith(".") for name in names)
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_out["linked folder"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        files += [as_literal(Path(folder, name)) for name in names if not name.startswith(".")]
    for error in unreadable:
        yield Unusable(str(error.filename), f"{error.filename} cannot be read: {error.strerror}.")
    usable: list[Path] = []
    unknown_suffixes: Counter[str] = Counter()
    has_unreadable_file = False
    for file in sorted(files):
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                left_out["device, pipe or socket"] += 1
            elif is_document(file):
                usable.append(file)
            else:
                unknown_suffixes[file.suffix[1:].upper()] += 1
        except OSError as error:
            has_unreadable_file = True
            is_broken_link = error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(file)
            reason = "is a link to what does not exist" if is_broken_link else f"cannot be read: {error.strerror}"
            yield Unusable(str(file), f"{file} {reason}.")
    left_out_text = _format_left_out(unknown_suffixes, left_out)
    if not usable and not unreadable and not has_unreadable_file:
        reason = f"{path} holds no text files, pictures or pages" + (f" ({left_out_text} left out)." if left_out_text else ".")
        yield Unusable(str(path), reason)
    elif left_out_text:
        notify(f"{path}: {left_out_text} left out.")
    yield from usable


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
