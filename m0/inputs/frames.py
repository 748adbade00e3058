"""How many pages or frames a picture's file holds, of which one is read."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

from PIL.GifImagePlugin import GifImageFile

SINGLE_PICTURE_FORMATS = ("MPO", "PSD")
"""Formats whose further frames are other views, previews or layers of the same picture, not pages."""
SUBFILE_TAGS = SUBFILE, OLD_SUBFILE = 254, 255  # TIFF 6.0's tags for what a directory shows
REDUCED, MASK, OLD_REDUCED = 1, 4, 2


class Frame(NamedTuple):
    """Which page or frame of a file a picture is."""

    page: int = 1
    """Counted from 1."""
    pages: int = 1
    """Pages or frames in the file. Thumbnails, masks, layers, and the sizes of an icon are none."""


SINGLE_FRAME = Frame()
_reading_lock = threading.Lock()


def frame_of(image: Any) -> Frame:
    """Where an opened picture stands in its file. Neither its pixels nor the frame it stands at change.

    A picture whose file was closed, or that was copied from one of several frames, counts as the only one.
    """
    if image.format not in ("TIFF", "GIF"):
        return SINGLE_FRAME if image.format in SINGLE_PICTURE_FORMATS else _current_frame(image, getattr(image, "n_frames", 1))
    # Pillow counts these by moving on and back, which throws away what the picture's owner has painted on it.
    with _reading_lock:
        try:
            file = getattr(image, "_fp", None) or image.fp
            place = file.tell()
        except Exception:  # closed, which Pillow tells in ways of its own
            return SINGLE_FRAME
        try:
            file.seek(0)
            pages = _tiff_pages(file) if image.format == "TIFF" else _gif_frames(file)
        finally:
            file.seek(place)
    return _current_frame(image, pages)


def _current_frame(image: Any, pages: int) -> Frame:
    page = image.tell() + 1
    return Frame(page, max(page, pages))


def _gif_frames(file: IO[bytes]) -> int:
    image = GifImageFile(file)
    try:
        return int(image.n_frames)
    except Exception:  # damaged behind the first frame: as many as can be found
        return int(image.tell()) + 1


def _tiff_pages(file: IO[bytes]) -> int:
    """Pages of a TIFF: always the first directory, and of the others those that are pages. A damaged one ends the count."""
    kinds = list(tiff_directories(file))
    return max(1, sum(not place or kind == "page" for place, kind in enumerate(kinds) if kind != "broken"))


def tiff_directories(file: IO[bytes]) -> Iterator[Literal["page", "extra", "broken"]]:
    """What each directory of a TIFF is (TIFF 6.0, section 2; also BigTIFF), in order: a page, or a reduced picture or mask.

    "broken" is the last where the chain leads to what is none: behind the file's end, or back to where it has been.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_of, entry_of, offset_of = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    entry, number, offset = (struct.Struct(order + kind) for kind in (entry_of, count_of, offset_of))
    first = 8 if big else 4
    if len(head) < first + offset.size:
        yield "broken"
        return
    (place,) = offset.unpack_from(head, first)
    room = file.seek(0, 2)  # sound directories do not overlap, so all of them together are no longer than the file
    seen: set[int] = set()
    while place:
        if place in seen:
            yield "broken"
            return
        seen.add(place)
        file.seek(place)
        start = file.read(number.size)
        size = number.unpack(start)[0] * entry.size if len(start) == number.size else room + 1
        room -= number.size + size
        if room < 0 or len(entries := file.read(size)) < size:
            yield "broken"
            return
        kinds = {
            tag: _entry_value(value, kind, order) for tag, kind, _, value in entry.iter_unpack(entries) if tag in SUBFILE_TAGS
        }
        yield "extra" if kinds.get(SUBFILE, 0) & (REDUCED | MASK) or kinds.get(OLD_SUBFILE) == OLD_REDUCED else "page"
        following = file.read(offset.size)
        if len(following) < offset.size:
            yield "broken"
            return
        (place,) = offset.unpack(following)


def _entry_value(value: bytes, kind: int, order: str) -> int:
    """A short (type 3) or long number; either stands at the start of its field."""
    return int(struct.unpack_from(order + ("H" if kind == 3 else "I"), value)[0])
