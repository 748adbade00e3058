"""How much of a text is tokenized, and where it may be cut.

Of a long text only a beginning is tokenized. Its tokens are the first ones of the whole text because it ends where the tokenizer's
pre-tokenizer splits whatever stands further left and right, and because no merge of byte-pair encoding crosses such a split.
That was proved for the two pre-tokenizers in PLACES; with any other the whole text is tokenized.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import OrderedDict
from typing import Any

from tokenizers import Encoding as Tokenized
from tokenizers import Tokenizer

from m0.errors import InputError
from m0.inputs.graphemes import MAX_CLUSTER_CODE_POINTS, cluster_bounds

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NANO_PATTERN = r"[\p{Han}]| ?[^\s\p{Han}\p{P}\p{S}\p{N}]+|\p{N}| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NORMALIZERS = ("NFC", "Lowercase", "Replace")
NANO_LINE_STARTS = r"\n(?=[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Khmer}\p{Myanmar}\p{P}\p{S}\p{N}])"
"""Where m0-nano's normalizer inserts a blank."""

# Only characters that are old enough to be the same in every library's version of Unicode.
HAN_CHARACTERS = r"\u3400-\u4db5\u4e00-\u9fa5"
LETTER_CHARACTERS = (
    r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0391-\u03a1\u03a3-\u03ce\u0400-\u0481\u048a-\u0523\u0531-\u0556\u0561-\u0586"
    r"\u05d0-\u05ea\u0621-\u064a\u0904-\u0939\u0e01-\u0e30"
    r"\u0f40-\u0f42\u0f44-\u0f47\u0f49-\u0f4c\u0f4e-\u0f51\u0f53-\u0f56\u0f58-\u0f5b\u0f5d-\u0f68\u10d0-\u10f0\u3041-\u3094\u30a1-\u30fa\uac00-\ud7a3"
    + HAN_CHARACTERS
)
PUNCTUATION_CHARACTERS = (
    r"!-/:-@\[-`{-~\u00a1\u00ab\u00bb\u00bf\u060c\u061b\u061f\u0964\u0965\u0f0b\u0f0d\u2010-\u2027\u3001-\u3003\u3008-\u3011"
    r"\uff01-\uff0f\uff1a-\uff20"
)
"""Punctuation marks and symbols."""
COMMON_CUT_POINTS = "|".join(
    [
        # No alternative holds a blank behind anything but blanks, and none looks further than one.
        r"(?<=\S)(?=[ \t\u3000])",
        # Line ends are the last of a match, and look at what follows only to see that it is no blank.
        r"(?<=[\r\n])(?=\S)",
        # Letters are matched as far as they go, digits one by one.
        f"(?<=[0-9{LETTER_CHARACTERS}])(?=[{PUNCTUATION_CHARACTERS}])",
        f"(?<=[0-9])(?=[0-9{LETTER_CHARACTERS}])",
        f"(?<=[{LETTER_CHARACTERS}])(?=[0-9])",
    ]
)
CUT_POINTS = {
    QWEN2_PATTERN: re.compile(COMMON_CUT_POINTS),
    NANO_PATTERN: re.compile(f"{COMMON_CUT_POINTS}|(?<=[{HAN_CHARACTERS}])(?=[{HAN_CHARACTERS}])"),
}
"""By the pre-tokenizer's pattern, where a text may end so that its tokens are the first ones of the whole text."""

MAX_WHOLE_CHARACTERS, MAX_WHOLE_CHARACTERS_PER_TOKEN = 8192, 8
"""A text of at most so many characters, or so many for each token asked for, is tokenized whole, and how much was cut is known."""
FIRST_CHARACTERS_PER_TOKEN = 6
"""Characters that are tried first for each token asked for, of a longer text; twice as many where they do not suffice."""

MAX_CACHE_BYTES, MAX_ENTRY_BYTES = 4 << 20, 128 << 10
BYTES_PER_TOKEN, BYTES_PER_ENTRY = 90, 900
"""What one token and one text's record take in memory, as measured (tests/inputs/test_truncation.py)."""


class FirstTokens:
    """The first tokens of a text: all of them, or more than were asked for."""

    def __init__(self, encoded: Tokenized, is_complete: bool) -> None:
        self.encoded, self.is_complete = encoded, is_complete
        self.count = len(encoded)

    def cut(self, text: str, keep: int) -> tuple[int, int]:
        """At most `keep` tokens, which are fewer than there are, and the characters they take, by whole characters
        (see `m0.inputs.graphemes`): one made of several tokens is kept whole or not at all."""
        offsets = self.encoded.offsets
        # Where a cluster ends can be seen from there on: a longer one is taken apart.
        if (bounds := cluster_bounds(text[: offsets[keep][1] + 2 * MAX_CLUSTER_CODE_POINTS])) is None:
            while keep > 0 and offsets[keep][0] < offsets[keep - 1][1]:
                keep -= 1
            return keep, offsets[keep][0] if keep else 0
        before, behind = bounds
        while keep > 0 and before[offsets[keep][0]] < behind[offsets[keep - 1][1]]:
            keep -= 1
        return keep, int(before[offsets[keep][0]]) if keep else 0


class FirstTokensEncoder:
    """Tokenizes only as much of a text as is needed, with a cache: a query is tokenized once for each document.

    Any number of threads may use it.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_whole_characters: int = MAX_WHOLE_CHARACTERS, cache_bytes: int = MAX_CACHE_BYTES
    ) -> None:
        self.tokenizer, self.max_whole_characters, self.cache_bytes = tokenizer, max_whole_characters, cache_bytes
        self.cut_points = _cut_points(tokenizer)
        self.cached_bytes = 0
        self._cache: OrderedDict[str, Tokenized] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, text: str, num_tokens: int) -> FirstTokens:
        """All tokens of a text, or more than `num_tokens` of them where it has more: how many depends on these two alone."""
        size = len(text)
        if self.cut_points and size > max(self.max_whole_characters, MAX_WHOLE_CHARACTERS_PER_TOKEN * num_tokens):
            size = FIRST_CHARACTERS_PER_TOKEN * num_tokens + MAX_CLUSTER_CODE_POINTS
        while self.cut_points and size < len(text):
            place = self.cut_points.search(text, size)
            if place is None:
                break
            size = place.start()
            encoded = self._encode(text[:size])
            if len(encoded) > num_tokens:
                return FirstTokens(encoded, False)
            size *= 2
        return FirstTokens(self._encode(text), True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes begin with an empty cache and a lock of their own."""
        return FirstTokensEncoder, (self.tokenizer, self.max_whole_characters, self.cache_bytes)

    def cache_clear(self) -> None:
        with self._lock:
            self._cache.clear()
            self.cached_bytes = 0

    def _encode(self, text: str) -> Tokenized:
        """All of a text, remembered where it is short."""
        if sys.getsizeof(text) > MAX_ENTRY_BYTES:
            return encode_text(self.tokenizer, text)
        with self._lock:
            if (found := self._cache.get(text)) is not None:
                self._cache.move_to_end(text)
                return found
        found = encode_text(self.tokenizer, text)
        entry_bytes = _entry_bytes(text, found)
        if entry_bytes > min(MAX_ENTRY_BYTES, self.cache_bytes):
            return found
        with self._lock:
            if text not in self._cache:  # another thread may have been faster
                self._cache[text] = found
                self.cached_bytes += entry_bytes
            while self.cached_bytes > self.cache_bytes:
                self.cached_bytes -= _entry_bytes(*self._cache.popitem(last=False))
        return found


def encode_text(tokenizer: Tokenizer, text: str) -> Tokenized:
    """All tokens of a text.

    Raises InputError where the tokenizer's regular expressions give up, as they do on millions of blanks in a row; its own error is no
    Exception, so that it would end a ranking whatever is to be skipped.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"a text of {len(text)} characters cannot be tokenized: it has too long a run of blank space, or of one kind of character."
        ) from None


def _entry_bytes(text: str, encoded: Tokenized) -> int:
    return BYTES_PER_ENTRY + sys.getsizeof(text) + BYTES_PER_TOKEN * len(encoded)


def _cut_points(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may end before it is tokenized; None where nothing is known of such a tokenizer."""
    normalizer, splitter = (
        json.loads(part.__getstate__()) if part is not None else {} for part in (tokenizer.normalizer, tokenizer.pre_tokenizer)
    )
    for step in normalizer.get("normalizers", [normalizer]) if normalizer else []:
        if step["type"] not in NORMALIZERS or step.get("pattern", {}).get("Regex", NANO_LINE_STARTS) != NANO_LINE_STARTS:
            return None
    steps = splitter.get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, to_bytes = steps
    if (split["behavior"], split["invert"], to_bytes["add_prefix_space"], to_bytes["use_regex"]) != (
        "Isolated",
        False,
        False,
        False,
    ):
        return None
    return CUT_POINTS.get(split["pattern"].get("Regex"))
