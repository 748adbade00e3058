"""Scripts that are written without spaces."""

from __future__ import annotations

import re
import unicodedata

HAN = re.compile("[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
HIRAGANA, KATAKANA = re.compile("[\u3040-\u309f]"), re.compile("[\u30a0-\u30ff]")
UNSPACED_SCRIPTS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Burmese, Khmer: written without blanks, and cut where the tokenizer cuts."""
LEADING_VOWELS = re.compile("[\u0e40-\u0e44\u0ec0-\u0ec4\u1039\u17d2]")
"""Vowels that Thai and Lao write before their consonant, and the stacking signs of Burmese and Khmer."""
TRAILING_VOWELS = re.compile("[\u0e30\u0e32\u0e33\u0eb0\u0eb2\u0eb3]")
"""Vowels that Thai and Lao write behind their consonant and that are letters, not marks."""


def uses_spaces(character: str) -> bool:
    """Whether it is a letter or digit of a script that puts spaces between words."""
    if any(script.match(character) for script in (HAN, HIRAGANA, KATAKANA, UNSPACED_SCRIPTS)):
        return False
    return unicodedata.category(character)[0] in "LN"


def can_break_before(text: str, index: int) -> bool:
    """Whether a text without spaces may be cut before this character: not between a consonant and its vowel or mark, nor behind a
    sign that stacks the next one."""
    character, previous = text[index], text[index - 1]
    return (
        unicodedata.category(character)[0] != "M"
        and not TRAILING_VOWELS.match(character)
        and not LEADING_VOWELS.match(previous)
    )
