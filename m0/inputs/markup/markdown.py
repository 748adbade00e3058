"""A tidy tree -> Markdown, by markdownify: no escapes, no marks inside words, no words joined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from m0.errors import InputError, MissingExtraError

DEEPEST = 200
"""Levels of elements in elements that are read: markdownify calls itself three times a level, and Python allows 1,000 calls."""
_SPACES = str.maketrans({"\xa0": " ", "\u202f": " ", "\u2007": " ", "\xad": None, "\u2060": None, "\ufeff": None})
# In scripts that are written without spaces it stands between words.
_ZERO_WIDTH = re.compile("(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b")
_OPENING = re.compile(r"(?:- |\d+\. |:   )*\s*(`{3,})")
_FENCE = re.compile(r"^\s*(`{3,})", re.MULTILINE)


@cache
def _converter() -> Any:
    try:
        from bs4 import BeautifulSoup, Tag
        from markdownify import ATX, MarkdownConverter
    except ImportError:
        raise MissingExtraError("HTML needs lxml and markdownify: pip install 'm0-reranker[html]'.") from None

    class Element(Tag):
        def find_parent(self, name: Any = None, *_: Any, **__: Any) -> Any:
            """Asked of every element whether it is inside a pre, where a tidy tree has no elements; Beautiful Soup's takes long."""
            return next((parent for parent in self.parents if parent.name == name), None)

    class Converter(MarkdownConverter):
        def convert_br(self, el: Any, text: str, parent_tags: set[str]) -> str:
            return " " if "_inline" in parent_tags else "\n"

        def convert_pre(self, el: Any, text: str, parent_tags: set[str]) -> str:
            """As it is, with a fence that is longer than any inside."""
            text = text.strip("\n").rstrip()
            fence = "`" * max([3, *(len(run) + 1 for run in _FENCE.findall(text))])
            return f"\n\n{fence}\n{text}\n{fence}\n\n" if text else "\n\n"

        def convert_li(self, el: Any, text: str, parent_tags: set[str]) -> str:
            """The number was worked out for all items of a list at once: markdownify counts anew at each."""
            text = text.strip()
            if not text:
                return "\n"
            bullet = f"{number}. " if (number := el.get("number")) else "- "
            lines = text.split("\n")
            return "\n".join([bullet + lines[0], *(" " * len(bullet) + line if line else "" for line in lines[1:])]) + "\n"

        def convert_tr(self, el: Any, text: str, parent_tags: set[str]) -> str:
            columns = el.get("columns")
            return f"|{text}\n" + ("|" + " --- |" * int(columns) + "\n" if columns else "")

    settings: dict[str, Any] = {
        "escape_asterisks": False,
        "escape_underscores": False,
        "heading_style": ATX,
        "wrap": True,
        "wrap_width": None,
    }
    return Converter(**settings), partial(BeautifulSoup, features="html.parser", element_classes={Tag: Element})


def write_markdown(page: bytes, name: str) -> str:
    """A page that was pruned and tidied, as HTML in UTF-8 -> Markdown. Raises InputError where it is too deep to be written."""
    converter, parse = _converter()
    try:
        text = converter.convert_soup(parse(page.decode("utf-8")))
    except RecursionError:
        raise too_deep(name) from None
    text = _ZERO_WIDTH.sub("", text.translate(_SPACES))
    return "\n".join(_one_blank_line(text.split("\n"))).strip("\n")


def _one_blank_line(lines: list[str]) -> Iterator[str]:
    """Of several between blocks. Code keeps its own."""
    fence, blank = "", False
    for line in map(str.rstrip, lines):
        if line or fence or not blank:
            yield line
        blank = not line
        mark = line.lstrip()
        if fence:
            fence = "" if mark == fence else fence
        elif opening := _OPENING.fullmatch(mark):
            fence = opening[1]


def too_deep(name: str) -> InputError:
    return InputError(f"{name} has elements in elements, more than {DEEPEST} levels deep, which is too deep to read.")
