"""Query + document -> token ids, where every token knows where it came from.

The prompt is `**Document**:\\n{document}\\n**Query**:\\n{query}` and then the score token, nothing else. A picture stands
as `<|vision_start|>`, one `<|image_pad|>` a visual token, `<|vision_end|>`. The document comes first: with causal attention
its states do not depend on the query.

What users write is text and nothing but text: the tokenizer is loaded without its special tokens, so `<|image_pad|>` typed
in a document is thirteen characters, not a picture.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from m0.errors import CheckpointError, InputError, TooLongError
from m0.inputs.images import Picture
from m0.inputs.stream import TEMPLATE, Origin, Part, Side, Stream
from m0.inputs.truncation import FirstTokens, FirstTokensEncoder
from m0.model.config import RerankerConfig
from m0.model.missing_keys import note_file_defaults
from m0.model.rotary import Grid, mrope_positions

DOCUMENT_LEAD = "**Document**:\n"
QUERY_LEAD = "\n**Query**:\n"
FINE_SEARCH_TOKENS = 8
"""Where a prompt is too long by at most so many tokens, the limit is lowered by one token at a time."""


@dataclass(frozen=True)
class Cut:
    """What was cut from one text part to keep within the length limits: everything from character `kept` on."""

    side: Side
    part: int
    kept: int
    characters: int
    tokens: int | None
    """Tokens cut away, counted on the part alone; None where the rest was not tokenized (see `m0.inputs.truncation`)."""

    def __str__(self) -> str:
        kept = f"{self.side} part {self.part}: {self.kept} of {self.characters} characters kept"
        return kept if self.tokens is None else f"{kept}, {self.tokens} tokens cut"


@dataclass(frozen=True)
class CutPages:
    """What was left out of one picture's file: its other pages, or frames of an animation, for a picture is one of them."""

    side: Side
    part: int
    kept: int
    """How many were read: 1."""
    pages: int
    """How many there are."""
    page: int = 1
    """Which was read, counted from 1."""

    def __str__(self) -> str:
        return f"{self.side} part {self.part}: only page or frame {self.page} of {self.pages} was read"


def whole_number(value: Any, name: str) -> int:
    """An argument that counts something, NumPy's integers included. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")
    return int(value)


@dataclass(frozen=True)
class Limits:
    """How long a prompt may be, in tokens.

    The lengths of the two sides are counted on each text by itself. In the prompt, where it follows the template, it may take a token or two
    more; `max_length` counts the prompt itself and is never exceeded. Text is cut from the end of its side, by whole tokens and whole characters (`m0.inputs.graphemes`); a picture is never cut or dropped.
    """

    max_length: int = 10240
    """The whole prompt, template and score token included."""
    max_query_length: int = 512
    """The query's text."""
    max_doc_length: int | None = None
    """The document's text; None: max_length - max_query_length, at least max_query_length."""

    def __post_init__(self) -> None:
        for name in ("max_length", "max_query_length", "max_doc_length"):
            value = getattr(self, name)
            if value is None and name == "max_doc_length":
                continue
            object.__setattr__(self, name, whole_number(value, name))

    @property
    def document(self) -> int:
        """The limit of the document's text."""
        return self.max_doc_length or max(self.max_length - self.max_query_length, self.max_query_length)


@dataclass(frozen=True)
class Encoding:
    """One prompt as the model reads it."""

    token_ids: Tensor
    """(tokens,), int64"""
    origins: list[Origin]
    pictures: list[Picture]
    """In the order of their tokens: the document's, then the query's."""
    runs: list[int | Grid] = field(repr=False)
    """Text tokens and picture grids in order, as `mrope_positions` takes them."""
    cut: tuple[Cut | CutPages, ...] = ()
    parts: Mapping[Side, Sequence[Part]] = field(default_factory=dict, repr=False)
    """What each side holds, as far as it was kept: what `Origin.part`, `start` and `end` count in."""

    def __len__(self) -> int:
        return len(self.origins)

    @cached_property
    def positions(self) -> Tensor:
        """M-RoPE positions, (3, tokens), int64."""
        return mrope_positions(self.runs)

    @cached_property
    def digests(self) -> list[bytes]:
        """Of the pictures."""
        return [picture.digest for picture in self.pictures]

    @cached_property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the query's first, in template and document: the shared prefix of all prompts of this document (but for a merge of
        characters across the border, which only matching by token can see)."""
        query_start = next((i for i, origin in enumerate(self.origins) if origin.side == "query"), len(self.origins) - 1)
        # A picture's frame belongs to it.
        return query_start - (self.origins[query_start].kind == "image")

    @property
    def document_tokens(self) -> int:
        """The old name of `num_prefix_tokens`, with a DeprecationWarning."""
        message = "Encoding.document_tokens is now num_prefix_tokens; the old name goes with the next version."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.num_prefix_tokens

    @cached_property
    def document_pictures(self) -> int:
        """How many of the pictures are the document's."""
        return sum(isinstance(part, Picture) for part in self.parts.get("document", ()))

    @cached_property
    def key(self) -> tuple[bytes, ...]:
        """Equal for prompts that are equal in every token and pixel."""
        return self.token_ids.numpy().tobytes(), *(picture.digest for picture in self.pictures)

    @cached_property
    def document_key(self) -> tuple[bytes, ...]:
        """Equal for prompts of the same document, cut at the same place, whatever the query: all before its last token."""
        last = max((i for i, origin in enumerate(self.origins) if origin.side == "document"), default=0)
        num_pictures = sum(origin == (origin.side, origin.part, None, None, 0, 0) for origin in self.origins[: last + 1])
        return self.token_ids[:last].numpy().tobytes(), *(picture.digest for picture in self.pictures[:num_pictures])

    @cached_property
    def counts(self) -> dict[str, int]:
        """Tokens by side: "document", "query", "template" (picture frames and score token included), and "total"."""
        counts = {"document": 0, "query": 0, "template": 0}
        for origin in self.origins:
            counts[origin.side] += 1
        return {**counts, "total": len(self.origins)}


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json` without its special tokens, so that no text can become one. Raises CheckpointError."""
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
        description["added_tokens"] = []
        description["truncation"] = description["padding"] = None
        return Tokenizer.from_str(json.dumps(description, ensure_ascii=False))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except Exception as error:  # tokenizers raises a bare Exception on a description it cannot read
        raise CheckpointError(f"{path} is not a readable tokenizer: {' '.join(str(error).split())}.") from None


class PromptEncoder:
    """Turns pairs into Encodings with one tokenizer and one model's token ids."""

    def __init__(self, tokenizer: Tokenizer, config: RerankerConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._tokenize = FirstTokensEncoder(tokenizer)

    def __reduce__(self) -> tuple[Any, ...]:
        """The cache of tokenized texts stays behind."""
        return PromptEncoder, (self.tokenizer, self.config)

    def check(self, limits: Limits) -> None:
        """Raises InputError where a prompt of that length has no positions."""
        if limits.max_length > self.config.decoder.max_positions:
            raise InputError(
                f"max_length is {limits.max_length}, but the model has {self.config.decoder.max_positions} positions."
            )

    def check_tokenizer(self, path: Path) -> None:
        """Raises CheckpointError where the tokenizer cannot write the prompt, or takes a picture's token ids for text."""
        if not self._tokenize(DOCUMENT_LEAD, 1).count:
            raise CheckpointError(f"{path} is not the tokenizer of such a model: it makes no tokens of the prompt's own words.")
        if (size := self.tokenizer.get_vocab_size()) > self.config.decoder.vocab_size:
            raise CheckpointError(f"{path} has {size} tokens, but the model only {self.config.decoder.vocab_size}.")
        for name in ("vision_start_token_id", "vision_end_token_id", "image_token_id"):
            if (token := self.tokenizer.id_to_token(getattr(self.config, name))) is not None:
                message = (
                    f"{path} does not fit config.json: {name} is {getattr(self.config, name)}, which is the text {token!r}."
                )
                raise CheckpointError(note_file_defaults(message, path.parent / "config.json", [f"top.{name}"]))

    def encode(self, query: Sequence[Part], document: Sequence[Part], limits: Limits | None = None) -> Encoding:
        """Write the prompt, cutting text where it is too long.

        Raises TooLongError where the pictures alone exceed the limit, or leave no room for a token of a side's text.
        """
        limits = limits or Limits()
        self.check(limits)
        sides: dict[Side, list[Part]] = {"query": list(query), "document": list(document)}
        max_tokens: dict[Side, int] = {"query": limits.max_query_length, "document": limits.document}
        first_tokens = {
            side: self._first_tokens(parts, min(max_tokens[side], limits.max_length)) for side, parts in sides.items()
        }
        tokens = {side: sum(text.count for text in texts if text) for side, texts in first_tokens.items()}
        num_fixed = self._num_fixed_tokens(sides)
        wanted_query = min(tokens["query"], limits.max_query_length)
        wanted_document = min(tokens["document"], limits.document)
        free = min(limits.max_length - num_fixed, wanted_query + wanted_document)
        # Counts are taken part by part; in the prompt a merge across a border may make one token more or fewer, and small parts come
        # with many separators.
        for _ in range(64):
            keep_query = min(wanted_query, max(free - wanted_document, free // 2))
            keep_document = min(wanted_document, free - keep_query)
            if keep_query < min(wanted_query, 1) or keep_document < min(wanted_document, 1):
                break
            kept_query, query_cuts = _cut_parts(sides["query"], first_tokens["query"], "query", keep_query)
            kept_document, document_cuts = _cut_parts(sides["document"], first_tokens["document"], "document", keep_document)
            # A character of several tokens that does not fit is left out whole, and with it perhaps all there was.
            cut_sides: tuple[tuple[Side, list[Part]], ...] = (("query", kept_query), ("document", kept_document))
            for side, kept in cut_sides:
                if tokens[side] and not any(part for part in kept if isinstance(part, str)):
                    raise TooLongError(
                        f"max_length {limits.max_length}, max_query_length {limits.max_query_length} and max_doc_length "
                        f"{limits.document} leave no room for a character of the {side}'s text."
                    )
            encoding = self._write(kept_query, kept_document, (*document_cuts, *query_cuts))
            if len(encoding) <= limits.max_length:
                return encoding
            over = len(encoding) - limits.max_length
            share = (keep_query + keep_document) / (len(encoding) - num_fixed)
            free -= 1 if over <= FINE_SEARCH_TOKENS else max(1, int(0.9 * share * over))
        pictures = [part for parts in sides.values() for part in parts if isinstance(part, Picture)]
        raise TooLongError(
            f"max_length is {limits.max_length}, but the template"
            + (f" and {len(pictures)} picture{'s' * (len(pictures) > 1)} take" if pictures else " takes")
            + f" {num_fixed} tokens, which leaves no room for the text"
            + ("; raise max_length or lower max_pixels." if pictures else ".")
        )

    def _first_tokens(self, parts: Sequence[Part], most: int) -> list[FirstTokens | None]:
        """The first tokens of each text, until there are `most`; None for pictures, and for texts that cannot get any."""
        found: list[FirstTokens | None] = []
        for part in parts:
            first_tokens = self._tokenize(part, most) if isinstance(part, str) and most > 0 else None
            most -= first_tokens.count if first_tokens else 0
            found.append(first_tokens)
        return found

    def _num_fixed_tokens(self, sides: Mapping[Side, Sequence[Part]]) -> int:
        """Tokens that cannot be cut: the template, the score token, pictures with their frames."""
        query, document = ([part for part in sides[side] if isinstance(part, Picture)] for side in ("query", "document"))
        return len(self._write(query, document, ())) if query or document else self._num_template_tokens

    @cached_property
    def _num_template_tokens(self) -> int:
        return len(self._write([], [], ()))

    def _write(self, query: Sequence[Part], document: Sequence[Part], cut: tuple[Cut | CutPages, ...]) -> Encoding:
        """The prompt's tokens with their origins."""
        ends: dict[Side, int] = {}  # the first part that has no text left: it and those behind it leave no separator either
        for one in cut:
            if isinstance(one, Cut):
                ends.setdefault(one.side, one.part + (one.kept > 0))
        stream = Stream(self.tokenizer, self.config)
        stream.add_text(DOCUMENT_LEAD)
        stream.add_parts(document, "document", ends.get("document"))
        stream.add_text(QUERY_LEAD)
        stream.add_parts(query, "query", ends.get("query"))
        stream.flush()
        stream.add_tokens([self.config.score_token_id], [TEMPLATE])
        parts: dict[Side, Sequence[Part]] = {"document": document, "query": query}
        return Encoding(torch.tensor(stream.ids), stream.origins, stream.pictures, stream.runs, cut, parts)


def _cut_parts(
    parts: Sequence[Part], first_tokens: Sequence[FirstTokens | None], side: Side, keep: int
) -> tuple[list[Part], list[Cut | CutPages]]:
    """The same parts with at most `keep` tokens of text, counted from the start; and what is left out, of pictures' files too."""
    kept: list[Part] = []
    cuts: list[Cut | CutPages] = []
    for number, (part, some) in enumerate(zip(parts, first_tokens, strict=True)):
        if isinstance(part, Picture):
            kept.append(part)
            if part.frame.pages > 1:
                cuts.append(CutPages(side, number, 1, part.frame.pages, part.frame.page))
        elif not part:
            kept.append(part)
        elif some and some.is_complete and some.count <= keep:
            kept.append(part)
            keep -= some.count
        else:
            taken, end = some.cut(part, keep) if some and keep else (0, 0)
            kept.append(part[:end])
            cuts.append(Cut(side, number, end, len(part), some.count - taken if some and some.is_complete else None))
            keep = 0
    return kept, cuts
