"""What an explanation is: a signed relevance for every token of a prompt, summed to words and laid over pictures."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m0.errors import InputError
from m0.explain.page_words import PageWord, sum_in_boxes
from m0.inputs.images import Picture
from m0.inputs.passages import Passage
from m0.inputs.prompt import Encoding, Side
from m0.interp.positions import picture_tokens
from m0.interp.words import Span, assign_tokens_to_spans, find_words

if TYPE_CHECKING:
    from m0.inputs.pages import PageInfo
    from m0.inputs.pages import Word as TextLayerWord

FORMATTERS: dict[str, Callable[..., Any]] = {}
"""What shows an explanation, by name: `m0.explain.show` and `m0.explain.html` put themselves in, for they come after this file."""


@dataclass(frozen=True)
class Word:
    """A word and its relevance."""

    span: Span
    relevance: float

    @property
    def text(self) -> str:
        """The word as the text has it."""
        return self.span.text

    @property
    def side(self) -> Side:
        """Whether the query or the document holds it."""
        return self.span.side


@dataclass(frozen=True)
class PictureRelevance:
    """One picture of the prompt and the relevance of its cells."""

    side: Side
    part: int
    picture: Picture
    cells: Tensor
    """Of each visual token, (rows, columns), float64."""
    pixel_relevance: Tensor | None = None
    """Of each pixel of the resized picture, (height, width), where the method went down to pixels."""

    @property
    def fine(self) -> Tensor | None:
        """`pixel_relevance`, (height, width), by its old name."""
        _warn_of_fine()
        return self.pixel_relevance

    @property
    def relevance(self) -> float:
        """The sum over all cells."""
        return float(self.cells.sum())

    @property
    def pixels(self) -> NDArray[np.float64]:
        """The relevance laid over the original picture, (height, width): what falls on each pixel, so that all pixels add up to
        what all cells do. A cell covers the pixels that were resized into it, those on its border in part."""
        grid = self.cells if self.pixel_relevance is None else self.pixel_relevance
        width, height = self.picture.original_size
        down, across = _pixel_shares(grid.shape[0], height), _pixel_shares(grid.shape[1], width)
        return down.T @ grid.numpy() @ across


def _warn_of_fine() -> None:
    warnings.warn("fine is now pixel_relevance; the old name goes with the next version.", DeprecationWarning, stacklevel=3)


def _pixel_shares(cells: int, pixels: int) -> NDArray[np.float64]:
    """What part of each cell falls on each pixel of a side, (cells, pixels); rows add up to 1."""
    edges = np.arange(cells + 1) * pixels / cells
    starts, ends = edges[:-1, None], edges[1:, None]
    places = np.arange(pixels)[None, :]
    shared = np.minimum(ends, places + 1) - np.maximum(starts, places)
    return np.clip(shared, 0, None) / (pixels / cells)


@dataclass(frozen=True)
class Interaction:
    """Which parts of the document answer which part of the query: query tokens x document tokens."""

    values: Tensor
    query_tokens: list[int]
    document_tokens: list[int]

    def by_word(self, encoding: Encoding) -> tuple[list[Span], list[Span], Tensor]:
        """Words of the query, words of the document, and their matrix, (query words, document words). A picture of the
        query has one row, behind the words'."""
        spans = find_words(encoding)
        shown = [n for n, span in enumerate(spans) if span.side == "document"]
        query_spans, rows = self._query_rows(encoding, spans)
        owners = assign_tokens_to_spans(encoding, spans)
        places = {number: column for column, number in enumerate(shown)}
        columns = [places.get(owners[token]) for token in self.document_tokens]  # type: ignore[arg-type]
        values = _sum_by_group(_sum_by_group(self.values.double(), rows, len(query_spans)).T, columns, len(shown)).T
        return query_spans, [spans[n] for n in shown], values

    def on_picture(self, encoding: Encoding, picture: int) -> tuple[list[Span], Tensor]:
        """Words of the query (a picture of it behind them), and what of each falls on each cell of a document's picture,
        (words, rows, columns). Raises InputError for a picture of the query."""
        shown, tokens = picture_tokens(encoding, picture)
        if tokens[0] not in self.document_tokens:
            raise InputError(f"picture {picture} is the query's; what answers it lies in the document.")
        query_spans, rows = self._query_rows(encoding, find_words(encoding))
        place = {token: column for column, token in enumerate(self.document_tokens)}
        values = self.values.double()[:, [place[token] for token in tokens]]
        return query_spans, _sum_by_group(values, rows, len(query_spans)).unflatten(-1, shown.token_grid)

    def _query_rows(self, encoding: Encoding, spans: Sequence[Span]) -> tuple[list[Span], list[int | None]]:
        """What the rows of the query are, and to which of them each of its tokens belongs."""
        words = [n for n, span in enumerate(spans) if span.side == "query"]
        owners, names = assign_tokens_to_spans(encoding, spans), [spans[n] for n in words]
        places = {number: row for row, number in enumerate(words)}
        rows = {token: row for token in self.query_tokens if (row := places.get(owners[token])) is not None}  # type: ignore[arg-type]
        for number in range(len(encoding.pictures)):
            _, tokens = picture_tokens(encoding, number)
            origin = encoding.origins[tokens[0]]
            if origin.side == "query":
                assert origin.part is not None
                rows |= dict.fromkeys(tokens, len(names))
                names.append(Span("query", origin.part, 0, 0, f"picture {number}"))
        return names, [rows.get(token) for token in self.query_tokens]


def _sum_by_group(values: Tensor, groups: Sequence[int | None], count: int) -> Tensor:
    """Sums of the rows of each group, (groups, ...); rows of no group are left out."""
    known = [row for row, group in enumerate(groups) if group is not None]
    places = torch.tensor([group for group in groups if group is not None], dtype=torch.long)
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, places, values[known])


class PageBox(NamedTuple):
    """A cell of a page's picture as a place on the page."""

    page: tuple[float, float, float, float]
    """Left, top, right, bottom in points (1/72 inch) of the page as it is shown, from its top left corner, as in `PageInfo.size`."""
    pdf: tuple[float, float, float, float]
    """Left, bottom, right, top in the PDF's own coordinates: the page not turned, not cropped, UserUnit not applied."""


@dataclass(frozen=True)
class Explanation:
    """Why a document got its score."""

    method: str
    encoding: Encoding = field(repr=False)
    logit: float
    score: float
    tokens: Tensor = field(repr=False)
    """Relevance of each token, float64, in units of `target` (attention: shares of 1)."""
    signed: bool
    """Whether negative relevance has a meaning here: what speaks against."""
    target: str = "logit"
    ledger: dict[str, float] = field(default_factory=dict)
    """What adds up to what, where the method promises a sum; "gap" is what is missing."""
    notes: tuple[str, ...] = ()
    """What the reader should know of this one: a sum that was not met, a model in 16 bits."""
    interaction: Interaction | None = field(default=None, repr=False)
    pixel_relevance: tuple[Tensor, ...] | None = field(default=None, repr=False)
    """Relevance of each picture's pixels after resizing, where the method went that far."""
    errors: Tensor | None = field(default=None, repr=False)
    """Standard error of each token's relevance, where it was sampled."""
    passage: Passage | None = None
    """Which page or piece of the document is explained; None: the document is one piece."""
    page_text: tuple[TextLayerWord, ...] = field(default=(), repr=False)
    """The words of the text layer, where a page of a PDF is explained that was read as a picture."""

    @property
    def fine(self) -> tuple[Tensor, ...] | None:
        """`pixel_relevance`, (height, width) of each picture, by its old name."""
        _warn_of_fine()
        return self.pixel_relevance

    @cached_property
    def words(self) -> list[Word]:
        """The words of both sides, the document's first, and their relevance. Every text token counts in full."""
        spans = find_words(self.encoding)
        totals = [0.0] * len(spans)
        for value, owner in zip(self.tokens.tolist(), assign_tokens_to_spans(self.encoding, spans), strict=True):
            if owner is not None:
                totals[owner] += value
        return [Word(span, total) for span, total in zip(spans, totals, strict=True)]

    @cached_property
    def pictures(self) -> list[PictureRelevance]:
        """The prompt's pictures, the document's first."""
        found = []
        for number, picture in enumerate(self.encoding.pictures):
            _, tokens = picture_tokens(self.encoding, number)
            origin = self.encoding.origins[tokens[0]]
            assert origin.side != "template"
            assert origin.part is not None
            cells = self.tokens[tokens].view(picture.token_grid)
            found.append(
                PictureRelevance(
                    origin.side,
                    origin.part,
                    picture,
                    cells,
                    None if self.pixel_relevance is None else self.pixel_relevance[number],
                )
            )
        return found

    @cached_property
    def page_words(self) -> list[PageWord]:
        """The words of the text layer of a PDF's page that was read as a picture, in reading order, and what of the picture's relevance
        falls on each; empty for anything else."""
        page = self.page_of(self.pictures[0]) if self.page_text else None
        if page is None or page.scale is None:
            return []
        shown = self.pictures[0]
        width, height = shown.picture.original_size
        (rows, columns), scale = shown.cells.shape, page.scale
        cells = np.array([word.box for word in self.page_text]) * np.array([columns / width, rows / height] * 2) * scale
        grid = (shown.cells if shown.pixel_relevance is None else shown.pixel_relevance).double().numpy()
        values = sum_in_boxes(grid, cells * np.array([grid.shape[1] / columns, grid.shape[0] / rows] * 2))
        return [
            PageWord(word.text, word.box, word.pdf_box, page.number, 0, (box[0], box[1], box[2], box[3]), value)
            for word, box, value in zip(self.page_text, cells.tolist(), values.tolist(), strict=True)
        ]

    def page_box(self, picture: int, row: int, column: int) -> PageBox:
        """Where a cell of a page's picture lies on the page.

        Args:
            picture: its number in `pictures`.
            row, column: of the cell, from 0 at the top left.

        Raises InputError for a picture that is no page with a size in points, and ImageError for a cell outside the picture.
        """
        if isinstance(picture, bool) or not isinstance(picture, int) or not 0 <= picture < len(self.pictures):
            raise InputError(f"picture is {picture!r}, but there are {len(self.pictures)} pictures, counted from 0.")
        page = self.page_of(self.pictures[picture])
        if page is None or page.size is None or page.scale is None or self.passage is None or self.passage.source is None:
            raise InputError(f"picture {picture} is no page of a PDF; Picture.cell_box gives boxes in a picture's own pixels.")
        # What is begun of a pixel is drawn, so that the picture may reach a little beyond the page.
        left, top, right, bottom = (edge / page.scale for edge in self.pictures[picture].picture.cell_box(row, column))
        width, height = page.size
        box = min(left, width), min(top, height), min(right, width), min(bottom, height)
        return PageBox(box, self.passage.source.pdf_box(box))

    def page_of(self, picture: PictureRelevance) -> PageInfo | None:
        """The page that a picture of the document shows; None: it shows none, or the document is a list of several."""
        return None if self.passage is None or picture.side == "query" else self.passage.page

    @property
    def shares(self) -> dict[str, float]:
        """What share of all absolute relevance went to "document", "query" and "template" (score token included)."""
        total = float(self.tokens.abs().sum()) or 1.0
        shares = {"document": 0.0, "query": 0.0, "template": 0.0}
        for value, origin in zip(self.tokens.abs().tolist(), self.encoding.origins, strict=True):
            shares[origin.side] += value / total
        return shares

    def top(self, count: int = 10, side: Side = "document") -> list[Word]:
        """The words of a side that weigh most, in order."""
        return sorted((word for word in self.words if word.side == side), key=lambda word: -abs(word.relevance))[:count]

    # --- showing ------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """In colour on a terminal, unless NO_COLOR is set."""
        return self.to_terminal(sys.stdout.isatty() and "NO_COLOR" not in os.environ)

    def to_terminal(self, color: bool = True) -> str:
        """Text with words shaded, and pictures as small maps. `color` False: signs and numbers instead of colours."""
        return FORMATTERS["to_terminal"](self, color)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers and strings."""
        return FORMATTERS["to_json"](self)

    def to_html(self, path: Any = None) -> str:
        """A self-contained page; written to `path` where one is given."""
        return FORMATTERS["page"]([self], path)

    def to_png(self, folder: Any) -> list[Any]:
        """Each picture of the prompt with its heat map over it, as files in a folder; returns their paths."""
        return FORMATTERS["to_png"](self, folder)

    def _repr_html_(self) -> str:
        return FORMATTERS["fragment"](self)
