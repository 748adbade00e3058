"""Paths as users give them: `~` stands for a home directory wherever a path may be given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m0.errors import InputError, M0Error


def path_of(value: Any, error: type[M0Error] = InputError, folder: Path | None = None) -> Path:
    """A path that a user gave, with a leading `~` or `~user` made the home directory that it stands for.

    Args:
        value: text, bytes or a path object.
        error: the class of what is raised.
        folder: where a relative path starts; None: the working directory.

    As for a shell, `~x` is a file of that name where there is no user x. Whatever comes back may be given here again. Raises
    `error`, one sentence, where there is neither such a user nor such a file, and where `value` is no path.
    """
    try:
        text = os.fsdecode(value)
    except TypeError:
        raise error(f"a path is given as {type(value).__name__}, but must be text or a pathlib.Path.") from None
    path = Path(text)
    if text.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError:
            if not exists(path if folder is None else folder / path):
                shortened = text if len(text) <= 100 else f"{text[:60]}..."
                raise error(f"{shortened} begins in the home directory of somebody whom this machine does not know.") from None
    return as_literal(path if folder is None else folder / path)


def as_literal(path: Path) -> Path:
    """The same path in a form that `path_of` leaves alone, so that its `~` is a name and no home directory: for names that were found and not typed."""
    return path.absolute() if str(path).startswith("~") else path


def exists(path: Path) -> bool:
    """Whether there is something of that name; False, too, where no file could have it."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
