"""PDFs as PDFium has them open, in the process that draws: opened, checked, drawn, closed in order."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as raw
from numpy.typing import NDArray
from pypdfium2.version import PDFIUM_INFO, PYPDFIUM_INFO

from m0.inputs.originals import keep_original
from m0.inputs.pages.soundness import find_keys, missing_end, user_unit
from m0.inputs.resizing import resize

INERT = {raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP}
"""Kinds of annotations that add nothing to a page's text."""
DARK = 200
"""A page whose darkest pixel is lighter than this level shows nothing that could be read."""
RENDERER = f"pypdfium2 {PYPDFIUM_INFO.tag}, PDFium {PDFIUM_INFO.tag}"


class Refused(Exception):
    """Why a PDF or page cannot be used: the rest of a sentence that begins with its name."""


class Placement(NamedTuple):
    """How a page lies in the PDF's coordinates: what is shown of it, by how much it is turned (clockwise), its UserUnit."""

    box: tuple[float, float, float, float]
    turn: int
    unit: float


class Document:
    """One PDF. `where`: its path or its bytes."""

    def __init__(self, where: str | bytes, password: str | None) -> None:
        self.where, self.password = where, password
        with _bytes_of(where) as data:
            lost = missing_end(data)
            keys = find_keys(data)
        if lost is not None:
            raise Refused(
                f"is cut short: {lost} bytes follow its last end mark %%EOF, so that its newest version is not whole; "
                "it is not repaired, for pages would be missing or old."
            )
        self.layers, self._units = keys.layers, keys.units
        self.pdf = _opened(where, password)
        self._copy: pdfium.PdfDocument | None = None
        self.changed: dict[int, int] = {}
        """Pages of the copy that were made ready for their text, and by how many degrees they were turned."""

    @property
    def copy(self) -> pdfium.PdfDocument:
        """The same PDF once more, whose pages may be changed."""
        if self._copy is None:
            self._copy = _opened(self.where, self.password)
        return self._copy

    def close(self) -> None:
        for pdf in (self._copy, self.pdf):
            if pdf is not None:
                pdf.close()

    def notes(self) -> list[str]:
        if self.pdf.get_formtype() == raw.FORMTYPE_XFA_FULL:
            return ["is an XFA form, whose contents PDFium does not draw; what is seen may be a page that says so."]
        return []

    def unit(self, index: int) -> float:
        """The page's UserUnit, which PDFium keeps to itself: read off a copy of the page alone."""
        if not self._units:
            return 1.0
        single, written = pdfium.PdfDocument.new(), io.BytesIO()
        try:
            single.import_pages(self.pdf, [index])
            single.save(written)
        except pdfium.PdfiumError as error:
            raise Refused(f"cannot be read: {error}") from None
        finally:
            single.close()
        return user_unit(written.getvalue())

    def size(self, index: int) -> tuple[float, float] | None:
        """Width and height as shown, in units of 1/72 inch times UserUnit; None where the page is damaged."""
        try:
            width, height = self.pdf.get_page_size(index)
        except pdfium.PdfiumError:
            return None
        return float(width), float(height)

    def placement(self, index: int) -> Placement:
        with opened_page(self.pdf, index) as page:
            return Placement(page.get_bbox(), _turn(page), self.unit(index))

    def draw(
        self, index: int, scale: float, size: tuple[int, int], target: tuple[int, int], keep_pixels: int = 0
    ) -> tuple[NDArray[np.uint8], bytes | None, bool]:
        """The page on white paper, RGB, drawn at `scale` pixels a unit of PDFium's, `size` in all (width, height), then resized.

        Returns the pixels, (height, width, 3); the page as it was drawn, encoded, with at most `keep_pixels` pixels, None for 0; and
        whether any of it is dark.
        """
        with opened_page(self.pdf, index) as page:
            bitmap = page.render(scale=scale, rev_byteorder=True, fill_color=(255, 255, 255, 255))
            try:
                if (bitmap.width, bitmap.height) != size:
                    raise Refused(
                        f"was drawn with {bitmap.width} x {bitmap.height} pixels, but {size[0]} x {size[1]} were expected."
                    )
                image = bitmap.to_pil()
                pixels = np.array(resize(image, target))
                original = keep_original(image, keep_pixels)
                dark = int(pixels.min()) < DARK or int(np.asarray(image).min()) < DARK
            finally:
                bitmap.close()
        return pixels, original, dark


@contextmanager
def opened_page(pdf: pdfium.PdfDocument, index: int) -> Iterator[Any]:
    """A page, closed afterwards. Raises Refused where it is damaged."""
    try:
        page = pdf[index]
    except pdfium.PdfiumError as error:
        raise Refused(f"is damaged: {error}") from None
    try:
        yield page
    finally:
        page.close()


def has_annotations(page: Any) -> bool:
    """Whether form fields, notes or stamps lie on the page."""
    for number in range(raw.FPDFPage_GetAnnotCount(page)):
        note = raw.FPDFPage_GetAnnot(page, number)
        if note:
            kind = raw.FPDFAnnot_GetSubtype(note)
            raw.FPDFPage_CloseAnnot(note)
            if kind not in INERT:
                return True
    return False


def _turn(page: Any) -> int:
    return int(raw.FPDFPage_GetRotation(page)) % 4 * 90


def _opened(where: str | bytes, password: str | None) -> pdfium.PdfDocument:
    secret = password.encode("utf-8") if password else None
    if isinstance(where, bytes):
        handle = raw.FPDF_LoadMemDocument64(where, len(where), secret)
    else:
        handle = raw.FPDF_LoadDocument(where.encode("utf-8", "surrogateescape"), secret)
    if not handle:
        raise Refused(_why_not(raw.FPDF_GetLastError(), bool(password)))
    pdf = pdfium.PdfDocument(handle)
    try:
        if not raw.FPDF_DocumentHasValidCrossReferenceTable(pdf):
            raise Refused(
                "is damaged: its cross-reference table is wrong; it is not repaired, for pages could be missing or old; "
                "have the program that made it, or qpdf, write it anew."
            )
        if len(pdf) < 1:
            raise Refused("has no pages.")
        pdf.init_forms()  # before any page is opened, or what is filled in is not drawn
    except pdfium.PdfiumError as error:
        pdf.close()
        raise Refused(f"has form fields that cannot be read: {error}") from None
    except Refused:
        pdf.close()
        raise
    return pdf


def _why_not(code: int, with_password: bool) -> str:
    if code == raw.FPDF_ERR_PASSWORD:
        wrong = ", which is not the one that was given" if with_password else ""
        return f"is protected by a password{wrong}; give it by --password, or in Python as the argument password."
    if code == raw.FPDF_ERR_SECURITY:
        return "is encrypted in a way that PDFium does not know."
    if code == raw.FPDF_ERR_FILE:
        return "cannot be opened any more."
    return "is damaged, cut short or no PDF: PDFium cannot open it."


@contextmanager
def _bytes_of(where: str | bytes) -> Iterator[bytes | mmap.mmap]:
    if isinstance(where, bytes):
        yield where
        return
    try:
        with open(where, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise Refused("is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read: {getattr(error, 'strerror', None) or error}.") from None
