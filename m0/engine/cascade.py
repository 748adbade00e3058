"""Fewer full scores: a cheap draft score of all documents, the full model for the best of them.

reranker.rank(query, documents, cascade=Cascade(keep=20, depth=14))

The draft score reads the ranking head after some of the decoder's layers (as `m0.interp.score_lens` does), shows pictures smaller,
or both. It is an approximation: a document that it places too low is not scored in full, and results say which were not.
scripts/bench/cascade.py measures what it costs and saves on m0-nano.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from m0.errors import ImageError, InputError
from m0.inputs.images import Picture, prepare_picture
from m0.inputs.prompt import Part, whole_number


@dataclass(frozen=True)
class Cascade:
    """How draft scores are made, and how many documents are scored in full after them. Raises InputError for fields that cannot be used."""

    keep: int = 10
    depth: int | None = None
    """Read the score after so many of the decoder's layers; None: after all. The released model has 28."""
    max_pixels: int | None = None
    """Show pictures with at most so many pixels; None: as large as in full."""

    def __post_init__(self) -> None:
        for name in ("keep", "depth", "max_pixels"):
            value = getattr(self, name)
            if value is not None or name == "keep":
                object.__setattr__(self, name, whole_number(value, name))
        if self.depth is None and self.max_pixels is None:
            raise InputError("a cascade needs depth or max_pixels, else its draft score is as dear as the full score.")
        if self.max_pixels is not None and self.max_pixels < 28 * 28:
            raise InputError(f"the cascade's max_pixels is {self.max_pixels}, but one visual token takes {28 * 28} pixels.")

    def smaller(self, parts: Sequence[Part]) -> list[Part]:
        """The same parts with their pictures reduced; one that is too long and narrow for that stays as it is."""
        return [self._shrink(part) if isinstance(part, Picture) else part for part in parts]

    def _shrink(self, picture: Picture) -> Picture:
        if self.max_pixels is None or picture.pixels.shape[0] * picture.pixels.shape[1] <= self.max_pixels:
            return picture
        settings = replace(
            picture.settings, max_pixels=self.max_pixels, min_pixels=min(picture.settings.min_pixels, self.max_pixels)
        )
        try:
            shrunk = prepare_picture(picture.pixels, settings)
            return replace(shrunk, original_size=picture.original_size, frame=picture.frame)
        except ImageError:
            return picture
