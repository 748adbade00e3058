"""Text on layers that are switched off: PDFium leaves it out of the picture, but not out of the text.

Which layers are on is not to be asked for, so it is tried: what stands on a layer is drawn by itself.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as raw

SIDE = 1200
"""Pixels of the longer side of the page that is drawn to see."""
SHAPES = [raw.FPDF_PAGEOBJ_TEXT, raw.FPDF_PAGEOBJ_PATH, raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_SHADING]


class Section(NamedTuple):
    """What text on layers hangs on: the form objects it stands in, and the marks that name layers, both by address."""

    forms: tuple[int, ...]
    marks: tuple[int, ...]


def remove_hidden(page: Any) -> None:
    """Take text that stands on a layer which is off out of a page, as it is open."""
    sections: dict[Section, list[Any]] = {}
    everything = list(page.get_objects(filter=SHAPES))
    for thing in everything:
        if thing.type == raw.FPDF_PAGEOBJ_TEXT and (section := _section(thing)) != Section((), ()):
            sections.setdefault(section, []).append(thing)
    if not sections:
        return
    for thing in everything:
        raw.FPDFPageObj_SetIsActive(thing, False)
    hidden = [texts for section, texts in sections.items() if _is_hidden(page, section, texts)]
    for thing in everything:
        raw.FPDFPageObj_SetIsActive(thing, True)
    for texts in hidden:
        for thing in texts:
            page.remove_obj(thing)


def _section(thing: Any) -> Section:
    forms, marks = [], []
    holder = thing
    while holder is not None:
        marks += [_address(mark) for mark in _layer_marks(holder)]
        holder = holder.container
        if holder is not None:
            forms.append(_address(holder.raw))
    return Section(tuple(forms), tuple(marks))


def _is_hidden(page: Any, section: Section, texts: list[Any]) -> bool:
    """Whether nothing is drawn of texts, made black, that is drawn without their marks. Text in a form object is hidden where
    nothing of it is drawn."""
    for thing in texts:
        raw.FPDFPageObj_SetIsActive(thing, True)
        raw.FPDFPageObj_SetFillColor(thing, 0, 0, 0, 255)
        raw.FPDFTextObj_SetTextRenderMode(thing, raw.FPDF_TEXTRENDERMODE_FILL)
    try:
        if _shows(page):
            return False
        for thing in texts:
            for mark in _layer_marks(thing):
                raw.FPDFPageObj_RemoveMark(thing, mark)
        return bool(section.forms) or _shows(page)
    finally:
        for thing in texts:
            raw.FPDFPageObj_SetIsActive(thing, False)


def _shows(page: Any) -> bool:
    bitmap = page.render(scale=SIDE / max(*page.get_size(), 1), may_draw_forms=False, draw_annots=False)
    try:
        return bool(np.asarray(bitmap.to_numpy()).min() < 255)
    finally:
        bitmap.close()


def _layer_marks(thing: Any) -> list[Any]:
    """The marks of an object that put it on a layer (ISO 32000-1, 8.11.3.2)."""
    marks = [raw.FPDFPageObj_GetMark(thing, number) for number in range(raw.FPDFPageObj_CountMarks(thing))]
    return [mark for mark in marks if mark and _name(mark) == "OC"]


def _name(mark: Any) -> str:
    size, buffer = ctypes.c_ulong(), (ctypes.c_ushort * 32)()
    if not raw.FPDFPageObjMark_GetName(mark, buffer, ctypes.sizeof(buffer), size):
        return ""
    return bytes(buffer)[: max(0, size.value - 2)].decode("utf-16-le", "replace")


def _address(pointer: Any) -> int:
    return ctypes.addressof(pointer.contents)
