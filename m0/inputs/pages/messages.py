"""What goes through the pipes between a process and the workers that draw its PDFs: length-prefixed pickles."""

from __future__ import annotations

import pickle
import struct
from typing import IO, Any, NamedTuple

LENGTH = struct.Struct(">Q")


class Request(NamedTuple):
    """What is asked of which PDF."""

    key: str
    """Names the PDF as it was when its pages were listed."""
    where: str | bytes | None
    """Its path or its bytes; None: bytes that were sent before."""
    password: str | None
    what: str
    """A function of `m0.inputs.pages.worker`."""
    args: tuple[Any, ...] = ()


class Answer(NamedTuple):
    """`kind`: "value"; "refused", with the rest of a sentence; "send", where the bytes are wanted."""

    kind: str
    value: Any = None


def send(file: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    for block in (LENGTH.pack(len(data)), data):
        view = memoryview(block)
        while view:
            view = view[file.write(view) :]


def receive(file: IO[bytes]) -> Any:
    """The next message. Raises EOFError where there is none, or half of one."""
    return pickle.loads(_exactly(file, LENGTH.unpack(_exactly(file, LENGTH.size))[0]))


def _exactly(file: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        count = file.readinto(view[have:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        have += count
    return data
