"""Pictures and pages at their own resolution, for whoever looks at an explanation: the model's pixels are too few to read."""

from __future__ import annotations

from dataclasses import replace

from m0.errors import InputError
from m0.explain.explanation import Explanation
from m0.inputs.images import ImageSettings, Picture
from m0.inputs.pages import Page, Word

KEPT_PIXELS = 2_000_000
"""Of a picture that is shown: an A4 page has 144 pixels an inch then, so that 10-point text can be read."""


def keep_originals(settings: ImageSettings) -> ImageSettings:
    """The same settings, with which pictures are kept to be shown, too."""
    return replace(settings, keep_pixels=KEPT_PIXELS)


def attach_page(explanation: Explanation, page: Page) -> Explanation:
    """With the words of the page's text layer, and the page's picture at its own resolution, where the page was read as a picture.

    Where the page cannot be read once more, a note says so.
    """
    encoding = explanation.encoding
    if not encoding.document_pictures:
        return explanation
    picture, problem = encoding.pictures[0], ""
    words: tuple[Word, ...] = ()
    try:
        words = page.words()
        if picture.original is None:
            fresh = next(part for part in page.read(keep_originals(picture.settings)) if isinstance(part, Picture))
            if fresh.digest != picture.digest:
                problem = f"{page.name} has changed since it was explained."
            picture = replace(picture, original=fresh.original)
    except InputError as error:
        problem = str(error)
    if problem:
        return replace(
            explanation, notes=(*explanation.notes, f"the page is shown as the model saw it, without words: {problem}")
        )
    shown = [picture if part is encoding.pictures[0] else part for part in encoding.parts.get("document", ())]
    encoding = replace(
        encoding, pictures=[picture, *encoding.pictures[1:]], parts={**encoding.parts, **({"document": shown} if shown else {})}
    )
    return replace(explanation, encoding=encoding, page_text=words)
