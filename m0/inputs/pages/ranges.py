"""Which pages are meant: "1-3,7" and the like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from m0.errors import InputError

FORM = "numbers from 1 and ranges, such as '1-3,7' or '5-'"


def parse_page_range(pages: str | int | Iterable[int] | None, count: int) -> list[int]:
    """Page numbers, from 1, in the order given.

    Args:
        pages: "1-3,7"; "5-" goes on to the last; a number, or several; None: all.
        count: how many there are.

    Raises InputError for what is no range, and for pages that there are not.
    """
    if pages is None:
        return list(range(1, count + 1))
    if isinstance(pages, str):
        return _of_text(pages, count)
    if isinstance(pages, int):
        return [_checked(pages, count)]
    try:
        numbers = [_checked(number, count) for number in pages]
    except TypeError:
        raise InputError(f"pages is {type(pages).__name__}, but must be {FORM}, or a list of numbers.") from None
    if not numbers:
        raise InputError("pages is an empty list.")
    return numbers


def _of_text(text: str, count: int) -> list[int]:
    numbers: list[int] = []
    for piece in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:(-)\s*([0-9]{1,9})?\s*)?", piece)
        if found is None:
            raise InputError(f"the pages {text!r} cannot be read: give {FORM}.")
        first = _checked(int(found[1]), count)
        last = first if found[2] is None else count if found[3] is None else _checked(int(found[3]), count)
        if last < first:
            raise InputError(f"the pages {piece.strip()!r} run backwards; give the smaller number first.")
        numbers += range(first, last + 1)
    return numbers


def _checked(number: Any, count: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"a page is given as {number!r}, but must be a whole number from 1.")
    if number < 1:
        raise InputError(f"a page is given as {number}, but pages count from 1.")
    if number > count:
        raise InputError(f"page {number} was asked for, but there {'is 1 page' if count == 1 else f'are {count} pages'}.")
    return number
