"""Zip archives of pictures, comic books (CBZ) among them: the pictures in natural order are the pages."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from m0.errors import ImageError, InputError
from m0.inputs.opening import one_line
from m0.inputs.pages.page import As, Content, PageFile, PageInfo, PageLimits
from m0.inputs.pages.tiff import picture_of
from m0.inputs.policy import EVERYTHING
from m0.inputs.resizing import ImageSettings
from m0.inputs.texts import picture_suffixes

MOST_DIRECTORY_BYTES = 64 * 2**20
"""Of an archive's list of files, which is read whole: about 600,000 files."""
MOST_PICTURE_BYTES = EVERYTHING.max_bytes
OFFICE = {"[content_types].xml", "mimetype", "meta-inf/manifest.mf"}
"""Files that make a zip archive a document, a book or a program."""
NOT_SHOWN = ("__macosx",)
END, END_64 = b"PK\x05\x06", b"PK\x06\x06"


class ArchiveFile(PageFile):
    """A zip archive of pictures. `where`: its path or its bytes. Raises InputError where it is damaged, or is a bomb."""

    kind = "zip"

    def __init__(self, name: str, where: Path | bytes, password: str | None, limits: PageLimits) -> None:
        self.name, self._where, self._password = name, where, password
        with self._opened() as archive:
            self._members = pictures_in(archive)
            unpacked = sum(archive.getinfo(member).file_size for member in self._members)
        self.pages = len(self._members)
        if not self.pages:
            raise InputError(f"{name} holds no pictures.")
        if unpacked > limits.max_file_bytes:
            raise InputError(
                f"the pictures in {name} are {unpacked} bytes when unpacked, above the limit of {limits.max_file_bytes}; "
                "raise max_file_bytes if it is no bomb."
            )

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with io.BytesIO(self._where) if isinstance(self._where, bytes) else open(self._where, "rb") as file:
                check_directory(file, self.name)
                with zipfile.ZipFile(file) as archive:
                    yield archive
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}.") from None
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
            raise InputError(f"{self.name} is damaged or cut short: {one_line(error)}.") from None

    def infos(self, numbers: Sequence[int], as_: As, settings: ImageSettings) -> list[PageInfo]:
        return [PageInfo(self.name, number, self.pages, self._members[number - 1]) for number in numbers]

    def read(self, number: int, as_: As, settings: ImageSettings) -> Content:
        from m0.inputs.images import open_image  # here, since it brings PyTorch

        member = self._members[number - 1]
        called = f"{self.name}#{number} ({member})"
        if as_ == "text":
            raise InputError(f"{called} is a picture, which has no text; read it as one.")
        data = self._bytes(member, called)
        try:
            opened = open_image(data, settings.max_image_pixels, settings.background, settings.as_reference)
        except ImageError as error:
            raise ImageError(str(error).replace(f"the picture of {len(data)} bytes", called, 1)) from None
        content = Content(picture_of(opened.image, called, settings))
        if opened.frame.pages > 1:
            content.notes.append(f"{called} has {opened.frame.pages} pages or frames, of which the first is read.")
        return content

    def _bytes(self, member: str, called: str) -> bytes:
        with self._opened() as archive:
            info = archive.getinfo(member)
            if info.file_size > MOST_PICTURE_BYTES:
                raise ImageError(f"{called} is {info.file_size} bytes when unpacked, above the limit of {MOST_PICTURE_BYTES}.")
            if info.flag_bits & 1 and not self._password:
                raise ImageError(
                    f"{called} is protected by a password; give it by --password, or in Python as the argument password."
                )
            try:
                return archive.read(info, self._password.encode() if self._password else None)
            except RuntimeError as error:  # also NotImplementedError
                if "password" in str(error).lower():
                    raise ImageError(
                        f"{called} is protected by a password, which is not the one that was given; give it by --password, "
                        "or in Python as the argument password."
                    ) from None
                raise ImageError(f"{called} cannot be unpacked: {one_line(error)}.") from None
            except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
                raise ImageError(f"{called} is damaged: {one_line(error)}.") from None


def check_directory(file: IO[bytes], name: str) -> None:
    """Raises InputError where an archive's list of files is too long to be read (APPNOTE 4.3.14 and 4.3.16)."""
    length = file.seek(0, 2)
    file.seek(max(0, length - 2**16 - 128))
    tail = file.read()
    file.seek(0)
    size = 0
    if (end := tail.rfind(END)) >= 0 and end + 16 <= len(tail):
        (size,) = struct.unpack_from("<I", tail, end + 12)
    if (end := tail.rfind(END_64)) >= 0 and end + 48 <= len(tail):
        size = max(size if size != 2**32 - 1 else 0, *struct.unpack_from("<Q", tail, end + 40))
    if size > MOST_DIRECTORY_BYTES and size != 2**32 - 1:
        raise InputError(f"{name} has a list of files of {size} bytes, above the limit of {MOST_DIRECTORY_BYTES}.")


def pictures_in(archive: zipfile.ZipFile) -> list[str]:
    """The names of the pictures, in natural order. Hidden files and what other programs leave beside are none."""
    return sorted((name for name in _files(archive) if _is_picture(name)), key=natural)


def is_of_pictures(archive: zipfile.ZipFile) -> bool:
    """Whether at least half of the files are pictures, and none says that this is a document or a program."""
    files = _files(archive)
    if any(name.lower() in OFFICE for name in files):
        return False
    return 0 < len(files) <= 2 * sum(map(_is_picture, files))


def _files(archive: zipfile.ZipFile) -> list[str]:
    return [
        info.filename
        for info in archive.infolist()
        if not info.is_dir()
        and not any(part.startswith(".") or part.lower() in NOT_SHOWN for part in PurePosixPath(info.filename).parts)
    ]


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in picture_suffixes()


def natural(name: str) -> Any:
    """A key that sorts page 2 before page 10, folder by folder."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece.casefold()) for piece in re.split(r"(\d+)", part) if piece]
        for part in name.split("/")
    ], name
