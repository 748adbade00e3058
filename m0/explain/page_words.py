"""The words of a page's text layer, each with the relevance of the cells beneath it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m0.inputs.pages.page import Box


@dataclass(frozen=True)
class PageWord:
    """A word that a page's picture shows, and what of the picture's relevance falls on it."""

    text: str
    box: Box
    """Left, top, right, bottom in points (1/72 inch) of the page as it is shown, from its top left corner, as in `PageInfo.size`."""
    pdf_box: Box
    """Left, bottom, right, top in the PDF's own coordinates."""
    page: int
    """From 1, as in `PageInfo.number`."""
    picture: int
    """The number of the page's picture in `Explanation.pictures`."""
    cells: Box
    """The box in cells of that picture: left, top, right, bottom, in columns and rows."""
    relevance: float
    """The sum over the cells beneath the box, each by the share of its area that the box covers. What falls between the words is no
    word's, so words do not add up to what the picture has."""


def sum_in_boxes(grid: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of a grid (rows, columns) falls into boxes (boxes, 4) of left, top, right, bottom in columns and rows, by area: (boxes,)."""
    rows, columns = grid.shape
    across = _covered(boxes[:, 0], boxes[:, 2], columns)
    down = _covered(boxes[:, 1], boxes[:, 3], rows)
    found: NDArray[np.float64] = ((down @ grid) * across).sum(1)
    return found


def _covered(starts: NDArray[np.float64], ends: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """What part of each of `count` cells along a side lies between start and end, (boxes, count)."""
    places = np.arange(count)[None, :]
    return np.clip(np.minimum(ends[:, None], places + 1) - np.maximum(starts[:, None], places), 0, None)
