"""Bytes of a page or of a text -> its characters, by byte order mark, by what is declared, as UTF-8, or by a guess."""

from __future__ import annotations

import codecs
import contextlib
import re

from m0.errors import InputError, MissingExtraError
from m0.inputs.texts import BYTE_ORDER_MARKS, check_text

HEAD_BYTES = 1 << 16
"""How far into a page a declaration is looked for."""
WIDER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "cp1252": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "x-sjis": "cp932",
    "x-gbk": "gb18030",
    "x-user-defined": "cp1252",
}
"""What browsers read in place of what a page declares (WHATWG Encoding Standard, section 4.2): each holds what the other holds."""
OF_THE_WEB = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "koi8_r", "cp866"),
    *("cp932", "euc_jp", "gb18030", "big5hkscs", "cp949"),
)
"""What is guessed among: those that pages are written in."""
LATIN = {
    "cp1252": "äöüßéèêëàâçîïôœùûñáíóúåøæãõìò",
    "cp1250": "áéíóúýčďěňřšťůžąćęłńśźżőűöüäăâîşţđ",
    "cp1254": "çğıöşüâîû\u0307",
    "cp1257": "āčēėęģīįķļņšūųžõäöüąćłńóśźż",
}
"""Letters that are frequent in what is written in each. charset-normalizer takes French for Polish, as few bytes tell them apart."""
SIGNS = set("«»“”„‘’‚–—…•·°€§©®™¿¡×\xa0\xad")
NOT_DECLARABLE = {"utf-7", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
UTF_16_AND_32 = {"utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"}
_XML = re.compile(rb"^\s*<\?xml\b[^>]*?\bencoding\s*=\s*[\"']\s*([A-Za-z0-9._:-]+)")
_ASIDE = re.compile(rb"<!--|<(script|style|title)\b", re.IGNORECASE)
_META = re.compile(rb"<meta\b[^>]*>", re.IGNORECASE)
_CHARSET = re.compile(rb"[\s\"'/;]charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]+)", re.IGNORECASE)


def decode_any(data: bytes, name: str, encoding: str | None = None, declared: str | None = None) -> str:
    """Text in any encoding.

    Args:
        data: what a file holds.
        name: what to call it in messages.
        encoding: the one that the user says it has; nothing else is tried, but a byte order mark counts more.
        declared: the one that the file or its envelope says it has; where the bytes are others it is not believed.

    Without `encoding`: what the byte order mark says, `declared` as browsers take it (iso-8859-1 means cp1252), UTF-8, and then
    charset-normalizer's guess. A page that is declared UTF-8 and has some bytes that are not gets U+FFFD for these.

    Raises InputError, one sentence, for an unknown encoding, for bytes that are not in it, and for what holds a NUL character;
    MissingExtraError where the encoding must be guessed without charset-normalizer.
    """
    for mark, called, codec in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return check_text(_strictly(data[len(mark) :], name, codec, called, len(mark)), name)
    if encoding is not None:
        return check_text(_strictly(data, name, _codec(encoding), encoding), name)
    if declared is not None and (text := _as_declared(data, declared)) is not None:
        return check_text(text, name)
    try:
        return check_text(data.decode("utf-8"), name)
    except UnicodeDecodeError:
        return check_text(_guessed(data, name), name)


def declared_encoding(data: bytes) -> str | None:
    """What a page's XML declaration or its meta elements say; None: nothing."""
    head = data[:HEAD_BYTES]
    if found := _XML.match(head):
        return found[1].decode("ascii")
    head = re.split(rb"<body\b", _without_asides(head.lower()), maxsplit=1)[0]
    for meta in _META.findall(head):
        plain = re.search(rb"http-equiv|\bcontent\s*=", meta, re.IGNORECASE) is None
        if (plain or re.search(rb"content-type", meta, re.IGNORECASE)) and (found := _CHARSET.search(meta)):
            return found[1].decode("ascii")
    return None


def _without_asides(head: bytes) -> bytes:
    """Without comments, scripts, styles and titles. What does not end takes the rest with it."""
    kept, at = [], 0
    while found := _ASIDE.search(head, at):
        kept.append(head[at : found.start()])
        end = re.compile(b"</" + found[1] if found[1] else b"-->", re.IGNORECASE).search(head, found.end())
        if end is None:
            return b"".join(kept)
        at = end.end()
    return b"".join([*kept, head[at:]])


def _codec(encoding: str) -> str:
    try:
        info = codecs.lookup(encoding)
        if info._is_text_encoding and info.name != "undefined":
            return info.name
    except (LookupError, TypeError, ValueError):  # ValueError: a NUL in the name
        pass
    raise InputError(
        f"{encoding!r} is not an encoding that Python knows; known are such as utf-8, cp1252, latin-1, utf-16, shift_jis, gb18030."
    )


def _strictly(data: bytes, name: str, codec: str, called: str, before: int = 0) -> str:
    try:
        text = data.decode(codec)
        text.encode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not text in {called} at byte {error.start + before}.") from None
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not text in {called}: character {error.start} is a lone surrogate.") from None
    except UnicodeError as error:  # utf-16 with an odd byte at its end, and others that say less
        raise InputError(f"{name} is not text in {called}: {error}.") from None
    return text[1:] if text.startswith("\ufeff") else text


def _as_declared(data: bytes, declared: str) -> str | None:
    """None where it is not what it is declared to be."""
    try:
        info = codecs.lookup(WIDER.get(declared.lower(), declared))
    except (LookupError, ValueError):
        return None
    codec = WIDER.get(info.name, info.name)
    if not info._is_text_encoding or codec in NOT_DECLARABLE:
        return None
    if codec in UTF_16_AND_32:  # a declaration that could be read byte by byte is wrong
        codec = "utf-8"
    try:
        return data.decode(codec)
    except UnicodeError:
        pass
    if codec == "cp1252":  # five bytes are undefined; browsers take them for control characters
        return data.decode("cp1252", "replace")
    if codec == "utf-8":
        text = data.decode("utf-8", "replace")
        wrong = text.count("\ufffd")
        if sum(character > "\x7f" for character in text) >= 2 * wrong:
            return text
    return None


def _likeliest(data: bytes) -> str:
    """The one of LATIN in which most of the letters are frequent ones, the first of equals."""
    shares = {}
    for codec, frequent in LATIN.items():
        letters = [letter for letter in data.decode(codec, "replace").lower() if letter > "\x7f" and letter not in SIGNS]
        shares[codec] = sum(letter in frequent for letter in letters) / max(len(letters), 1)
    return max(shares, key=lambda codec: shares[codec])


def _guessed(data: bytes, name: str) -> str:
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        raise MissingExtraError(
            f"{name} is not in UTF-8 and declares no encoding; guessing it needs charset-normalizer: "
            "pip install 'm0-reranker[html]'; or give the encoding."
        ) from None
    plain = b" ".join(re.sub(rb"<[^>]*>", b" ", _without_asides(data)).split())  # markup is ASCII and hides what is to be seen
    best = from_bytes(plain, cp_isolation=list(OF_THE_WEB)).best()
    if best is not None:
        with contextlib.suppress(UnicodeError):
            return data.decode(_likeliest(plain) if best.encoding in LATIN else best.encoding)
    raise InputError(f"{name} is not text in UTF-8, and no other encoding is declared or recognised; give its encoding.")
