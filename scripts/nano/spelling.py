"""Spelling as vectors: where visual tokens and words meet.

A word is a bag of letter trigrams, borders included, lower case and without accents ("Ab" is ^ab, ab$). Each trigram has a vector of
its own, fixed and random, with a part that trigrams share which share two letters, so that one misread letter does not lose three
trigrams. A word's spelling is the sum of its trigrams' vectors, each weighted by how rare it is, brought to length 1. A token's is the
same of what surrounds its letters in the training texts: " net" sees ^ne, net, and as last trigram what mostly follows.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SPELLING_SIZE = 128
SHARED_PART = 0.5
"""The length of each of its two bigrams' parts of a trigram's vector; the trigram's own part has length 1."""
BORDER = "^"
KNOWN_TRIGRAMS = 16_000
WORD_PIECE = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f\u0900-\u0dff\u05b0-\u05c7\u064b-\u0652])*")
"""A word as it is written, marks included."""
UNSPACED = re.compile(r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


@lru_cache(maxsize=400_000)
def fold(text: str) -> str:
    """Lower case, compatible forms, accents of letters that have them left out. Marks of scripts that need them (Hindi, Thai) stay."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    kept = [c for c in decomposed if not ("\u0300" <= c <= "\u036f" or c == "\u0640" or "\u064b" <= c <= "\u0652")]
    return unicodedata.normalize("NFC", "".join(kept)).replace("ı", "i").replace("ł", "l").replace("ø", "o").replace("đ", "d")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, folded; characters one by one where a script has no blanks."""
    spaced = UNSPACED.sub(r" \1 ", fold(text))
    return re.findall(r"[^\W_](?:[^\W_]|[\u0900-\u0dff\u05b0-\u05c7])*", spaced)


@lru_cache(maxsize=400_000)
def trigrams_of(word: str) -> tuple[str, ...]:
    """The trigram around each letter of a folded word."""
    padded = f"{BORDER}{word}{BORDER}"
    return tuple(padded[i : i + 3] for i in range(len(word)))


@lru_cache(maxsize=200_000)
def _unit_vector(name: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    vector = np.random.Generator(np.random.PCG64(seed)).standard_normal(SPELLING_SIZE, dtype=np.float32)
    return vector / np.linalg.norm(vector)


@lru_cache(maxsize=200_000)
def trigram_vector(trigram: str) -> np.ndarray:
    """Of length 1, the same on every machine, (128,)."""
    vector = _unit_vector(trigram) + SHARED_PART * (_unit_vector(f"{trigram[:2]}?") + _unit_vector(f"?{trigram[1:]}"))
    return vector / np.linalg.norm(vector)


class Spelling:
    """Trigrams of the training texts, their rarity, and the spelling of words and tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        words: Counter[str] = Counter()
        for text in texts:
            words.update(words_of(text))
        self.word_counts = words
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for trigram in set(trigrams_of(word)):
                counts[trigram] += min(count, 20)  # a word like "the" is one word, not a thousand
        self.total = sum(counts.values())
        self.counts = counts
        self.trigrams = [trigram for trigram, _ in counts.most_common(KNOWN_TRIGRAMS)]
        self.number = {trigram: number for number, trigram in enumerate(self.trigrams)}
        self.vectors = torch.from_numpy(np.stack([trigram_vector(trigram) for trigram in self.trigrams]))
        """Of the known trigrams, of length 1, (trigrams, 128)."""
        self._of_word: dict[str, np.ndarray] = {}

    def weight(self, trigram: str) -> float:
        """Rarity: 1 for the rarest, about 0.35 for "ing"."""
        return math.log(self.total / (self.counts.get(trigram, 0) + 1)) / math.log(self.total)

    def of_word(self, word: str) -> np.ndarray:
        """Spelling of a folded word, of length 1, (128,)."""
        if (found := self._of_word.get(word)) is None:
            vector = sum((self.weight(t) * trigram_vector(t) for t in trigrams_of(word)), np.zeros(SPELLING_SIZE, np.float32))
            found = self._of_word[word] = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return found

    def of_words(self, words: list[str]) -> Tensor:
        """(words, 128)."""
        return torch.from_numpy(np.stack([self.of_word(word) for word in words]))

    def of_tokens(self, tokenizer, texts: Iterable[str], size: int) -> Tensor:
        """Spelling of every token by what surrounds its letters in these texts, of length 1 or 0, (size, 128)."""
        around: dict[int, Counter[str]] = defaultdict(Counter)
        words: Counter[str] = Counter()
        for text in texts:
            words.update(raw_words(text))
        for word, count in words.items():
            folded = fold(word)
            encoding = tokenizer.encode(f"\n{word}")
            trigrams = trigrams_of(folded)
            if len(folded) == len(word.casefold()) and words_of(word) == [folded]:
                for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                    for trigram in trigrams[max(start - 1, 0) : max(end - 1, 0)]:
                        around[token][trigram] += count
        table = np.zeros((size, SPELLING_SIZE), np.float32)
        for token in range(size):
            if token in around:
                counts = around[token]
                full = max(counts.values())
                for trigram, count in counts.most_common(64):
                    table[token] += self.weight(trigram) * (count / full) * trigram_vector(trigram)
            else:
                piece = fold(tokenizer.decode([token]))
                inner = [
                    f"{BORDER}{p[1:]}"[:3] if p.startswith(" ") else p
                    for p in (piece[i : i + 3] for i in range(len(piece) - 2))
                ]
                for trigram in inner:
                    if re.fullmatch(r"\^?[^\W_]+", trigram):
                        table[token] += self.weight(trigram) * trigram_vector(trigram)
        lengths = np.linalg.norm(table, axis=1, keepdims=True)
        return torch.from_numpy(table / np.where(lengths > 1e-6, lengths, 1.0))


def raw_words(text: str) -> list[str]:
    """Words as they are written, as `words_of` divides a text."""
    return WORD_PIECE.findall(UNSPACED.sub(r" \1 ", text))
