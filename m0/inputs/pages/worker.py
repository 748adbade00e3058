"""The process that opens and draws PDFs. PDFium serves one thread, and a file that crashes it must not take the model along.

It is started by `m0.inputs.pages.pool`, and speaks through its pipes: length-prefixed pickles, one answer for each request. It ends when
its input does, or when the process that started it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from m0.inputs.pages.messages import Answer, Request, receive, send

if TYPE_CHECKING:
    from m0.inputs.pages.documents import Document

OPEN_DOCUMENTS = 4
"""How many PDFs stay open; the one that was asked for longest ago is closed first."""
ORPHAN_SECONDS = 1.0


# --- what may be asked ----------------------------------------------------------------------------------------------------


def count(document: Document) -> tuple[int, list[str], str]:
    """How many pages there are, what is to be known of the file, and what it is drawn with."""
    from m0.inputs.pages.documents import RENDERER

    return len(document.pdf), document.notes(), RENDERER


def look(document: Document, indices: list[int]) -> list[tuple[tuple[float, float] | None, float, str]]:
    """Of pages: size, None where the page is damaged; UserUnit; label."""
    found: list[tuple[tuple[float, float] | None, float, str]] = []
    for index in indices:
        size = document.size(index)
        found.append((size, 1.0 if size is None else document.unit(index), document.pdf.get_page_label(index)))
    return found


def draw(
    document: Document,
    index: int,
    scale: float,
    size: tuple[int, int],
    target: tuple[int, int],
    with_text: bool,
    keep_pixels: int = 0,
) -> Any:
    """Of a page: pixels, the same before it was resized or None, text or None, whether it has text although none of it is dark."""
    from m0.inputs.pages.text_layer import has_text, page_text, text_layer

    pixels, original, dark = document.draw(index, scale, size, target, keep_pixels)
    if dark and not with_text:
        return pixels, original, None, False
    with text_layer(document, index) as layer:
        return pixels, original, page_text(layer) if with_text else None, not dark and has_text(layer)


def text(document: Document, index: int) -> str:
    from m0.inputs.pages.text_layer import page_text, text_layer

    with text_layer(document, index) as layer:
        return page_text(layer)


def words(document: Document, index: int) -> list[tuple[str, Any, Any]]:
    """Of each word: text, box on the page as shown, box in the PDF."""
    from m0.inputs.pages.text_layer import page_words, shown, text_layer

    placement = document.placement(index)
    with text_layer(document, index) as layer:
        return [(piece.text, shown(piece.box, placement), piece.box) for piece in page_words(layer)]


def wants_text(document: Document, index: int) -> bool:
    from m0.inputs.pages.text_layer import wants_text as wanted

    return wanted(document, index)


def pdf_box(document: Document, index: int, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    from m0.inputs.pages.text_layer import unshown

    return unshown(box, document.placement(index))


ASKED = {function.__name__: function for function in (count, look, draw, text, words, wants_text, pdf_box)}


# --- the loop -------------------------------------------------------------------------------------------------------------


class Desk:
    """The PDFs that are open."""

    def __init__(self) -> None:
        self.documents: OrderedDict[str, Document] = OrderedDict()

    def answer(self, request: Request) -> Answer:
        from m0.inputs.pages.documents import Refused

        try:
            document = self._document(request)
            if document is None:
                return Answer("send")
            return Answer("value", ASKED[request.what](document, *request.args))
        except Refused as error:
            return Answer("refused", str(error))
        except MemoryError:
            return Answer("refused", "needs more memory than there is.")
        except Exception as error:  # of a damaged file there is no end of what may go wrong
            return Answer("refused", f"cannot be read: {' '.join(str(error).split()).rstrip('.') or type(error).__name__}.")

    def _document(self, request: Request) -> Document | None:
        from m0.inputs.pages.documents import Document

        if request.key in self.documents:
            self.documents.move_to_end(request.key)
            return self.documents[request.key]
        if request.where is None:
            return None
        while len(self.documents) >= OPEN_DOCUMENTS:
            self.documents.popitem(last=False)[1].close()
        self.documents[request.key] = document = Document(request.where, request.password)
        return document

    def close(self) -> None:
        while self.documents:
            self.documents.popitem()[1].close()


def _end_with(parent: int) -> None:
    """Its input stays open where a fork of the parent has it, too."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def main(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever presses Ctrl-C means the parent, which ends this process
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what a library prints must not come between the answers
    if hasattr(os, "getppid") and os.name == "posix":
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        import m0.inputs.pages.text_layer  # noqa: F401, with all that it needs
    except Exception as error:
        send(answers, Answer("refused", f"{type(error).__name__}: {error}"))
        return
    send(answers, Answer("value"))
    desk = Desk()
    try:
        while True:
            send(answers, desk.answer(receive(requests)))
    except (EOFError, OSError):
        desk.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
