"""Where what a user hands in may come from: which addresses are fetched, which files are read.

A policy never changes a score: what it allows is read as it would be without it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from m0.errors import InputError, M0Error
from m0.inputs.fetching import fetch
from m0.inputs.hosts import HostPattern, host_pattern, is_public, parse_address, shown
from m0.paths import path_of

SYSTEM = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))
"""Files that are none: they show processes, and devices."""

DAY = 86_400
_NOT_THERE = "the policy allows no path there."


class _NoFile(Exception):
    """It is a device, pipe or socket."""


class _LeadsOut(Exception):
    """A link was met where none was a moment ago."""


@dataclass(frozen=True)
class SourcePolicy:
    """Where pictures, and texts that are named and not given, may come from. Raises InputError for fields that cannot be used.

    `SourcePolicy()` is for whoever works on a machine that is their own: every host and every file, within limits.
    `SourcePolicy.server()` is for what strangers send: nothing but the bytes in the request.
    """

    urls: bool = True
    """Whether http and https addresses are fetched."""
    hosts: tuple[str, ...] | None = None
    """The only hosts that are asked: "example.org", "*.example.org" (all below it), "example.org:8080" (that port alone),
    "10.0.0.7", "[::1]:8080". None: any."""
    private_addresses: bool | tuple[str, ...] | None = None
    """Whether a host may have an address that is not of the internet: private, loopback, link-local, multicast or reserved. A list:
    only these, as hosts ("pictures.intranet"), addresses or networks ("10.0.0.0/8"). None: yes, unless `hosts` is given; then only
    addresses that it writes out, and "localhost". Where some are refused, the environment's proxy is not used, since nobody
    here could see what it connects to."""
    redirects: int = 10
    """How many redirects are followed; each is checked as the first address was."""
    seconds: float = 60.0
    """How long one address may take in all: looking up its host, redirects, the whole answer."""
    max_bytes: int = 256 * 2**20
    """How large an answer may be, in bytes, also once it is unpacked."""
    paths: bool = True
    """Whether files that are named by a path are read."""
    root: Path | None = None
    """The only folder whose files are read, with the folders in it; links that lead out of it are not followed. None: any."""
    data: bool = True
    """Whether bytes, data URIs and base64 text are read. Open files, PIL images and arrays always are."""

    def __post_init__(self) -> None:
        for name in ("urls", "paths", "data"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} is {value!r}, but must be True or False.")
        for name, lowest in (("redirects", 0), ("max_bytes", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least {lowest}.")
        time = self.seconds
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 < time <= DAY:
            raise InputError(f"seconds is {time!r}, but must be a number above 0 and at most {DAY}.")
        if self.hosts is not None:
            object.__setattr__(self, "hosts", _names(self.hosts, "hosts"))
        if not (self.private_addresses is None or isinstance(self.private_addresses, bool)):
            object.__setattr__(self, "private_addresses", _names(self.private_addresses, "private_addresses", networks=True))
        if self.root is not None:
            root = Path(os.path.abspath(path_of(self.root)))
            if not root.is_dir():
                raise InputError(f"root is {str(self.root)!r}, which is not a folder.")
            object.__setattr__(self, "root", root)

    @classmethod
    def server(cls, **fields: Any) -> SourcePolicy:
        """For what strangers send: data URIs, base64 text and bytes; no address, no file, no private host.

        `fields` as those of the class. `hosts` also switches addresses on, for these hosts, and `root` files, below it.
        """
        hosts, root = fields.get("hosts"), fields.get("root")
        # Of hosts that are named, None allows the addresses that are written out.
        own = {"urls": hosts is not None, "paths": root is not None, "private_addresses": False if hosts is None else None}
        return cls(**{**own, **fields})

    # --- addresses ------------------------------------------------------------------------------------------------------

    def fetch(self, url: str, accept: str = "*/*", error: type[M0Error] = InputError) -> tuple[bytes, str]:
        """What an http or https address answers, and its type, such as "text/html; charset=utf-8".

        Args:
            url: a user's name and password in it are sent to its own host, and never shown.
            accept: the kinds that are asked for, as the header Accept has them.
            error: the class of what is raised.

        Raises `error`, one sentence, where the policy refuses the address, a redirect or the size, and where there is no answer.
        """
        if not self.urls:
            raise error(f"{shown(url)} is not fetched: the policy allows no addresses.")
        if not url[:8].lower().startswith(("http://", "https://")):
            raise error(f"{shown(url)} is not an http or https address.")
        return fetch(url, self, accept, error)

    @property
    def checks_addresses(self) -> bool:
        """Whether some addresses are refused."""
        return self.private_addresses is not True and (self.private_addresses is not None or self.hosts is not None)

    def allows_host(self, host: str, port: int) -> bool:
        """Whether a host, in the form of `m0.inputs.hosts.normal_host`, may be asked at a port."""
        return self.hosts is None or bool(self._named(host, port))

    def allows_address(self, host: str, port: int, address: str) -> bool:
        """Whether a connection for a host may go to one of its addresses."""
        if not self.checks_addresses:
            return True
        if (place := parse_address(address)) is None:
            return False
        if is_public(place):
            return True
        if isinstance(self.private_addresses, tuple):
            private = [host_pattern(text, True) for text in self.private_addresses]
            if any(one.names(host, port) or one.names_address(place) for one in private):
                return True
        return self.private_addresses is not False and any(one.names_address(place) for one in self._named(host, port))

    def _named(self, host: str, port: int) -> list[HostPattern]:
        return [one for text in self.hosts or () if (one := host_pattern(text)).names(host, port)]

    # --- files ----------------------------------------------------------------------------------------------------------

    def check_path(self, path: str | os.PathLike[str], error: type[M0Error] = InputError) -> Path:
        """Where a path leads, with `~` and, under a `root`, links resolved. It need not exist.

        Raises `error` where the policy refuses it, in words that do not depend on what is there. Since links may change between
        this and a later open(), `open_path` is what reads safely.
        """
        if not self.paths:
            raise error(f"{_short(path)} is not read: the policy allows no paths.")
        if self.root is None:
            return path_of(path, error)
        refusal = f"{_short(path)} is not read: {_NOT_THERE}"
        try:
            absolute = Path(os.path.abspath(path_of(path)))
            root = Path(os.path.realpath(self.root))
            # What does not even look as if it lay below is not looked for.
            if not (absolute.is_relative_to(self.root) or absolute.is_relative_to(root)):
                raise error(refusal)
            resolved = Path(os.path.realpath(path_of(path)))
        except (InputError, OSError, ValueError):
            raise error(refusal) from None
        if not resolved.is_relative_to(root) or _is_of_the_system(resolved, root):
            raise error(refusal)
        return resolved

    def open_path(self, path: str | os.PathLike[str], error: type[M0Error] = InputError) -> BinaryIO:
        """A file, opened for reading bytes; under a `root` so that no link that is put in its way meanwhile leads out.

        Raises `error` as `check_path`, and for what is neither a file nor a folder; OSError as open().
        """
        place = self.check_path(path, error)
        if self.root is None:
            if place.exists() and not place.is_dir() and not place.is_file():  # a pipe would block for ever
                raise error(f"{_short(place)} is not a file, but a device, pipe or socket.")
            return place.open("rb")
        root = Path(os.path.realpath(self.root))
        try:
            descriptor = (_open_below if os.open in os.supports_dir_fd else _open_and_compare)(root, place)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise _NoFile
                return os.fdopen(descriptor, "rb")
            except BaseException:
                os.close(descriptor)
                raise
        except _NoFile:
            raise error(f"{_short(path)} is not a file, but a device, pipe or socket.") from None
        except _LeadsOut:
            raise error(f"{_short(path)} is not read: {_NOT_THERE}") from None

    def check_data(self, name: str, error: type[M0Error] = InputError) -> None:
        """Raises `error` where data that is given whole (bytes, data URIs, base64 text) is not read."""
        if not self.data:
            raise error(f"{name} is not read: the policy allows no data.")


EVERYTHING = SourcePolicy()
"""What is read where nobody says otherwise."""


def _names(given: Any, field: str, networks: bool = False) -> tuple[str, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{field} is {given!r}, but must be a list of hosts.")
    names = tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{field} holds {type(name).__name__}, but must hold names of hosts as text.")
        try:
            host_pattern(name, networks)
        except ValueError as error:
            raise InputError(f"{field} holds {name!r}, which cannot be used: {error}.") from None
    return names


def _short(path: Any) -> str:
    try:
        text = os.fsdecode(path)
    except TypeError:
        return f"a path given as {type(path).__name__}"
    return text if len(text) <= 200 else f"{text[:60]}..."


def _is_of_the_system(path: Path, root: Path) -> bool:
    return any(path.is_relative_to(folder) and not root.is_relative_to(folder) for folder in SYSTEM)


def _open_below(root: Path, path: Path) -> int:
    """A descriptor of a file below a folder, neither of which holds links. Folder by folder, so that a link that was put there
    meanwhile is met and not followed. Raises _LeadsOut, _NoFile, and OSError as open()."""
    *folders, name = path.relative_to(root).parts or (".",)
    along = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
    place = os.open(root, along)
    try:
        for folder in folders:
            inner = _open_here(folder, along, place)
            os.close(place)
            place = inner
        kind = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError
        if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):  # opening some devices does something
            raise _NoFile
        return _open_here(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, place)
    finally:
        os.close(place)


def _open_here(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _LeadsOut from None
        raise


def _open_and_compare(root: Path, path: Path) -> int:
    """As `_open_below`, where a system cannot open a name in a folder that is open: what was opened must be what still lies there."""
    if path.is_dir():
        raise IsADirectoryError
    if path.exists() and not path.is_file():
        raise _NoFile
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    same = os.path.realpath(path) == str(path) and os.path.samestat(os.lstat(path), os.fstat(descriptor))
    if not (same and path.is_relative_to(root)):
        os.close(descriptor)
        raise _LeadsOut
    return descriptor
