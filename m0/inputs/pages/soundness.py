"""What PDFium does not tell of a PDF, read off its bytes: whether its end is missing, and two keys that PDFium keeps to itself."""

from __future__ import annotations

import mmap
import re
import zlib
from typing import NamedTuple

END = b"%%EOF"
MOST_UNPACKED = 64 * 2**20
"""Of one object stream: a larger one is taken to hold everything that is looked for."""
Bytes = bytes | mmap.mmap


class Keys(NamedTuple):
    """Which keys a file may hold (ISO 32000-1, 7.7.3.3 and 8.11.4)."""

    units: bool
    """A UserUnit other than 1."""
    layers: bool
    """Optional content."""


def missing_end(data: Bytes) -> int | None:
    """How many bytes of a version stand behind the last end mark, where that version lacks its own; None: the file is whole.

    Readers go back to the version before and show that, without a word. What is no part of a PDF may follow the mark.
    """
    last = data.rfind(END)
    if last < 0:
        return None  # the reader decides
    tail = data[last + len(END) :]
    return len(tail) if re.search(rb"(^|[\r\n])\s*(\d+\s+\d+\s+obj\b|xref\s|trailer\b)", tail) else None


def find_keys(data: Bytes) -> Keys:
    """Looked for in the open and in object streams; where one of these cannot be unpacked, everything may be there."""
    units, layers = _keys(data)
    place = 0
    while not (units and layers) and (place := data.find(b"/ObjStm", place)) >= 0:
        place += 7
        begin = data.find(b"stream", place)
        if begin < 0:
            break
        begin += 8 if data[begin + 6 : begin + 8] == b"\r\n" else 7
        unpacked = _unpacked(data, begin)
        if unpacked is None:
            return Keys(True, True)
        inner = _keys(unpacked)
        units, layers = units or inner.units, layers or inner.layers
    return Keys(units, layers)


def _keys(data: Bytes) -> Keys:
    values = re.finditer(rb"/UserUnit(?:\s*(\d+\.?\d*)(?![\d.]|\s+\d+\s+R))?", data)
    units = any(value[1] is None or float(value[1]) != 1 for value in values)
    return Keys(units, data.find(b"/OCProperties") >= 0)


def _unpacked(data: Bytes, begin: int) -> bytes | None:
    unpacker = zlib.decompressobj()
    found, size = [], 0
    try:
        for start in range(begin, len(data), 2**16):
            found.append(unpacker.decompress(data[start : start + 2**16], MOST_UNPACKED))
            size += len(found[-1])
            if unpacker.eof:
                return b"".join(found)
            if size >= MOST_UNPACKED or unpacker.unconsumed_tail:
                return None
    except zlib.error:  # encrypted, or packed in another way
        return None
    return None


def user_unit(single: bytes) -> float:
    """The UserUnit of a PDF of one page that PDFium has written, plain. 1 where it has none, or none that can be used."""
    for chunk in single.split(b"endobj"):
        if re.search(rb"/Type\s*/Page(?![A-Za-z])", chunk) and (
            found := re.search(rb"/UserUnit\s*(\d*\.?\d+)(\s+\d+\s+R)?", chunk)
        ):
            value = found[1]
            if found[2]:
                pointed = re.search(rb"[\r\n]%d 0 obj\s+(\d*\.?\d+)" % int(value), single)
                value = pointed[1] if pointed else b"1"
            unit = float(value)
            return unit if unit > 0 else 1.0
    return 1.0
