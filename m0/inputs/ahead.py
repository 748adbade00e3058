"""Documents opened by threads, ahead of the model that scores them: passage by passage, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from PIL import Image
from tokenizers import Tokenizer

from m0.errors import InputError, MissingExtraError
from m0.inputs.document import Document
from m0.inputs.images import ImageSettings, Picture
from m0.inputs.lists import to_pairs
from m0.inputs.pages import Page
from m0.inputs.passages import PAGES, Passage, Passages, Span, cut_parts
from m0.inputs.prompt import Encoding, Limits, PromptEncoder
from m0.inputs.reading import pages_of, read_parts, read_parts_and_warn, warn_if_file
from m0.inputs.stream import Part
from m0.inputs.texts import is_open_file

READERS, READ_AHEAD = 2, 64
"""Threads that open documents, and how many passages they are ahead."""


@dataclass(frozen=True)
class Unit:
    """One passage of a document that can be read: what becomes one prompt."""

    passage: Passage | None
    """None: the document is not made of passages."""
    read: Callable[[], list[Part]]
    is_light: bool = False
    """Whether nothing was opened yet."""


class ReadUnit(NamedTuple):
    """One passage of a document, opened."""

    place: int
    """Of the document in the list."""
    document: Any
    """As it was given."""
    passage: Passage | None
    parts: list[Part] | InputError
    """Or why it cannot be used, and with it the document."""
    is_last: bool
    """Whether the document has no passage behind it."""


def units_of(document: Any, settings: ImageSettings, how: Passages = PAGES, tokenizer: Tokenizer | None = None) -> list[Unit]:
    """The passages of a document: its pages, and the pieces of its texts where `how` asks for them. A document of one passage is opened here.

    `tokenizer`: needed to cut texts. Raises InputError, one sentence.
    """
    content = document.content if isinstance(document, Document) else document
    pages = pages_of(content, settings)
    if pages is not None:
        return _units_of_pages(pages, settings, how, tokenizer)
    parts = read_parts(content, "document", settings)
    if how.tokens is None or tokenizer is None:
        return [_opened(None, parts)]
    cut = cut_parts(parts, how, tokenizer)
    return [_opened(Passage(number, len(cut), spans), some) for number, (spans, some) in enumerate(cut, 1)]


def _opened(passage: Passage | None, parts: list[Part]) -> Unit:
    return Unit(passage, lambda: parts)


def _units_of_pages(pages: Sequence[Page], settings: ImageSettings, how: Passages, tokenizer: Tokenizer | None) -> list[Unit]:
    if len(pages) > 1:  # many may wait to be scored: whoever shows one reads it once more
        settings = replace(settings, keep_pixels=0)
    pieces: list[tuple[Page, tuple[Span, ...], Callable[[], list[Part]]]] = []
    blank: list[Page] = []
    for page in pages:
        is_cut = how.tokens is not None and tokenizer is not None and page.as_ != "image"
        text = page.text() if is_cut or (page.as_ == "text" and len(pages) > 1) else ""
        if page.as_ == "text" and len(pages) > 1 and not text.strip():
            blank.append(page)
            continue
        if not is_cut or not text.strip() or how.tokens is None or tokenizer is None:
            pieces.append((page, (), partial(page.read, settings)))
            continue
        # Only the text decides where a page is cut; its picture goes with the first piece.
        for number, (spans, some) in enumerate(cut_parts([text], how, tokenizer)):
            pieces.append((page, spans, partial(_piece, page, settings, some, page.as_ == "both" and not number)))
    if blank and not pieces:
        raise InputError(f"{blank[0].info.file} has no text on any page; read it as pictures.")
    if blank:
        numbers = ", ".join(str(page.info.number) for page in blank)
        one = len(blank) == 1
        pieces[0][
            0
        ].left_out = f"{blank[0].info.file}: page{'' if one else 's'} {numbers} {'has' if one else 'have'} no text and {'is' if one else 'are'} left out."
    found = [
        Unit(Passage(number, len(pieces), spans, page.info_for(settings), page), read, True)
        for number, (page, spans, read) in enumerate(pieces, 1)
    ]
    return [_opened(unit.passage, unit.read()) for unit in found] if len(found) == 1 else found


def _piece(page: Page, settings: ImageSettings, text: list[Part], with_picture: bool) -> list[Part]:
    pictures = [part for part in page.read(settings) if not isinstance(part, str)] if with_picture else []
    return [*pictures, *text]


def read_ahead(
    documents: Iterable[Any], settings: ImageSettings, how: Passages = PAGES, tokenizer: Tokenizer | None = None
) -> Iterator[ReadUnit]:
    """Documents opened, or why one cannot be: by other threads, some ahead of the one that is asked for. `documents` may be an iterator,
    which is asked for no more than that. What Pillow or the user has opened already is read here, for it is not made for several threads.
    """

    def units(document: Any) -> list[Unit] | InputError:
        try:
            found = units_of(document, settings, how, tokenizer)
            return found[:1] if how.score == "first" else found
        except InputError as error:
            return error
        except MissingExtraError as error:  # of this document alone
            return InputError(str(error))

    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[tuple[int, Any, Future[list[Unit] | InputError]]] = deque()
        try:
            for index, document in enumerate(documents):
                ahead.append((index, document, _submit(pool, units, document)))
                if len(ahead) > READ_AHEAD:
                    yield from _read_document(pool, *ahead.popleft())
            while ahead:
                yield from _read_document(pool, *ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, work: Callable[[Any], Any], document: Any) -> Future[Any]:
    if isinstance(document, str) or _has_open_file(document):
        return _done(work(document))
    return pool.submit(work, document)


def _done(value: Any) -> Future[Any]:
    done: Future[Any] = Future()
    done.set_result(value)
    return done


def _read_document(
    pool: ThreadPoolExecutor, index: int, document: Any, opened: Future[list[Unit] | InputError]
) -> Iterator[ReadUnit]:
    units = opened.result()
    if isinstance(units, InputError):
        yield ReadUnit(index, document, None, units, True)
        return
    ahead: deque[Future[list[Part] | InputError]] = deque()
    waiting = iter(units)
    for number, unit in enumerate(units, 1):
        while len(ahead) < READ_AHEAD and (following := next(waiting, None)) is not None:
            ahead.append(pool.submit(_read_unit, following) if following.is_light else _done(_read_unit(following)))
        parts = ahead.popleft().result()
        failed = isinstance(parts, InputError)
        if unit.passage is not None and unit.passage.source is not None and (number == 1 or _has_picture(parts)):
            unit.passage.source.warn(of_file=number == 1 and not isinstance(document, Page))
        yield ReadUnit(index, document, unit.passage, parts, failed or number == len(units))
        if failed:
            for future in ahead:
                future.cancel()
            return


def _has_picture(parts: list[Part] | InputError) -> bool:
    return isinstance(parts, list) and any(isinstance(part, Picture) for part in parts)


def _read_unit(unit: Unit) -> list[Part] | InputError:
    try:
        return unit.read()
    except InputError as error:
        return error
    except MissingExtraError as error:
        return InputError(str(error))


def encode_document(prompt: PromptEncoder, query: Sequence[Part], read: list[Part] | InputError, limits: Limits) -> Encoding:
    """The prompt of a passage that `read_ahead` has opened. Raises InputError where it cannot be used."""
    if isinstance(read, InputError):
        raise read
    return prompt.encode(query, read, limits)


@dataclass(frozen=True)
class EncodedPairs:
    """The prompts of (query, document) pairs: one for each passage of a document."""

    encodings: list[Encoding]
    sizes: list[int]
    """How many prompts each pair has."""
    how: Passages

    def combine(self, logits: Sequence[float]) -> list[float]:
        """One logit a pair, of one a prompt: (prompts,) -> (pairs,)."""
        if len(self.sizes) == len(self.encodings):
            return list(logits)
        following = iter(logits)
        return [self.how.combine([next(following) for _ in range(size)])[0] for size in self.sizes]


def encode_pairs(
    prompt: PromptEncoder,
    pairs: Iterable[Any],
    limits: Limits,
    settings: ImageSettings,
    first: int = 0,
    how: Passages = PAGES,
) -> EncodedPairs:
    """The prompts of (query, document) pairs. `first`: number of the first pair, for messages.

    Raises InputError (of a pair with its number), one sentence.
    """
    encodings: list[Encoding] = []
    checked = to_pairs(pairs)
    sizes = [0] * len(checked)
    documents = [document for _, document in checked]
    warn_if_files(documents, settings)
    query: list[Part] = []
    for unit in read_ahead(documents, settings, how, prompt.tokenizer):
        try:
            if isinstance(unit.parts, InputError):  # before the query is opened
                raise unit.parts
            if not sizes[unit.place]:
                query = read_parts_and_warn(checked[unit.place][0], "query", settings)
            encodings.append(encode_document(prompt, query, unit.parts, limits))
        except InputError as error:
            raise type(error)(f"pair {first + unit.place}: {error}") from None
        sizes[unit.place] += 1
    return EncodedPairs(encodings, sizes, how)


def warn_if_files(documents: Sequence[Any], settings: ImageSettings) -> None:
    """Of strings that look as if a file was meant: before other threads read them, where warnings are not to be trusted."""
    for document in documents:
        content = document.content if isinstance(document, Document) else document
        if isinstance(content, str):
            warn_if_file(content, "document", settings)


def _has_open_file(document: Any) -> bool:
    """Whether there is a picture in it that Pillow has opened, or an open file."""
    if isinstance(document, Page):  # which can be read, too, and by any thread
        return False
    if isinstance(document, Document):
        return _has_open_file(document.content)
    if isinstance(document, Mapping):
        return any(_has_open_file(value) for value in document.values())
    if isinstance(document, list | tuple):
        return any(_has_open_file(value) for value in document)
    return isinstance(document, Image.Image) or is_open_file(document)
