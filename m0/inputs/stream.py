"""What a prompt is made of, and where each of its tokens came from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import gt
from typing import Literal, NamedTuple

from tokenizers import Tokenizer

from m0.inputs.graphemes import cluster_bounds
from m0.inputs.images import Picture
from m0.model.config import RerankerConfig
from m0.model.rotary import Grid

Part = str | Picture
"""A text, or a picture that is ready for the vision tower."""
Side = Literal["query", "document"]

PART_SEPARATOR = "\n"
"""Between two text parts that follow one another; pictures need none."""


class Origin(NamedTuple):
    """Where one token came from."""

    side: Literal["template", "query", "document"]
    part: int | None = None
    """Which part of that side (0 for a plain text or picture)."""
    start: int | None = None
    """First character in the part's text, and `end` the one after the last. Whole characters as a reader sees them
    (`m0.inputs.graphemes`): one made of several tokens is in each, and each is in at least one."""
    end: int | None = None
    row: int | None = None
    """Row and column of the visual token in its picture's grid."""
    column: int | None = None

    @property
    def kind(self) -> Literal["template", "text", "image"]:
        return "template" if self.part is None else "text" if self.row is None else "image"


TEMPLATE = Origin("template")


class Stream:
    """Collects text until a picture or the end, so that it is tokenized in one go, as merges may cross borders."""

    def __init__(self, tokenizer: Tokenizer, config: RerankerConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.ids: list[int] = []
        self.origins: list[Origin] = []
        self.pictures: list[Picture] = []
        self.runs: list[int | Grid] = []
        self.texts: list[str] = []
        self.length = 0
        """Of the collected texts, in characters."""
        self.spans: list[tuple[int, int, Side, int]] = []
        """Spans of the collected text that users wrote: start, end, side, part."""

    def add_text(self, text: str, side: Side | None = None, part: int = 0) -> None:
        if side is not None:
            self.spans.append((self.length, self.length + len(text), side, part))
        self.texts.append(text)
        self.length += len(text)

    def add_parts(self, parts: Sequence[Part], side: Side, end: int | None = None) -> None:
        """All pictures, and the texts before part `end`."""
        for number, part in enumerate(parts):
            if isinstance(part, Picture):
                self.flush()
                self._add_picture(part, side, number)
            elif end is None or number < end:
                if number and isinstance(parts[number - 1], str):
                    self.add_text(PART_SEPARATOR)
                self.add_text(part, side, number)

    def add_tokens(self, ids: list[int], origins: list[Origin]) -> None:
        self.ids += ids
        self.origins += origins
        if self.runs and isinstance(self.runs[-1], int):
            self.runs[-1] += len(ids)
        else:
            self.runs.append(len(ids))

    def _add_picture(self, picture: Picture, side: Side, part: int) -> None:
        config, (rows, columns) = self.config, picture.token_grid
        self.add_tokens([config.vision_start_token_id], [TEMPLATE])
        self.ids += [config.image_token_id] * (rows * columns)
        self.origins += [Origin(side, part, row=row, column=column) for row in range(rows) for column in range(columns)]
        self.runs.append((rows, columns))
        self.pictures.append(picture)
        self.add_tokens([config.vision_end_token_id], [TEMPLATE])

    def flush(self) -> None:
        """Tokenize what was collected. A token that reaches into a user's text belongs to it, else to the template."""
        if not self.length:
            return
        text = "".join(self.texts)
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        starts, ends = zip(*encoded.offsets, strict=True) if len(encoded) else ((), ())
        origins: list[Origin] = []
        for first, stop, side, part in self.spans:
            begin = bisect_right(ends, first, len(origins))
            end = bisect_left(starts, stop, begin)
            if first == stop or begin == end:
                continue
            origins += [TEMPLATE] * (begin - len(origins))
            columns = _align_to_characters(
                text[first:stop],
                [start - first if start > first else 0 for start in starts[begin:end]],
                [(end if end < stop else stop) - first for end in ends[begin:end]],
            )
            rows = zip(repeat(side), repeat(part), *columns, repeat(None), repeat(None), strict=False)
            origins += map(Origin._make, rows)
        origins += [TEMPLATE] * (len(encoded) - len(origins))
        self.add_tokens(encoded.ids, origins)
        self.texts, self.length, self.spans = [], 0, []


def _align_to_characters(text: str, starts: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    """Where tokens stand in a text -> the same by whole characters, and so that no character is left over: a tokenizer that
    composes characters says of its token that it is the first of those which went into it."""
    if (bounds := cluster_bounds(text)) is not None:
        starts, ends = bounds[0][starts].tolist(), bounds[1][ends].tolist()
    starts[0] = 0
    if any(map(gt, starts[1:], ends)):
        max_ends = list(accumulate(ends, max))
        ends = [
            max(end, start) if start > max_end else end
            for end, start, max_end in zip(ends, [*starts[1:], 0], max_ends, strict=True)
        ]
    ends[-1] = max(ends[-1], len(text)) if max(ends) < len(text) else ends[-1]
    return starts, ends
