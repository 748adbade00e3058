"""What is held out, and small things that all sources share."""

from __future__ import annotations

import hashlib
import re

HELD_OUT_SHARE = 0.10
SPLIT_SEED = "m0-nano split 1"
# The manuals' languages and others that many people write; CLDR locale codes.
LANGUAGES = """
    af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fil fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko
    lt lv mk ml mn mr ms my ne nl no pa pl pt ro ru si sk sl sq sr sv sw ta te th tr uk ur uz vi zh zh-Hant
""".split()
CODES = {"nb": "no", "zh-cn": "zh", "zh-tw": "zh-Hant", "zh-hk": "zh-Hant", "c": "en"}
"""The manuals' codes that CLDR writes otherwise."""


def held_out(*parts: str) -> bool:
    """Whether a thing of this name is held out: a tenth is, and what is does not change when material is added."""
    digest = hashlib.sha256("\x1f".join((SPLIT_SEED, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def language_code(folder: str) -> str:
    """CLDR's code for a folder such as "zh_CN", "pt-BR", "nb-NO" or "C"."""
    lower = folder.lower().replace("_", "-")
    return CODES.get(lower) or CODES.get(lower.split("-")[0]) or lower.split("-")[0]
