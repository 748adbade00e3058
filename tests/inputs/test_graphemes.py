"""Characters as a reader sees them: the rules of Unicode Standard Annex 29, against another implementation of it."""

import random
import sys
import unicodedata

import numpy as np
import pytest

from m0.inputs import graphemes
from m0.inputs.graphemes import BREAK_CLASSES, MAX_CLUSTER_CODE_POINTS, cluster_bounds, clusters, find_continuations

EXAMPLES = {
    "latin": ["e\u0301", "x\u0302\u0323", "ﬁ"],
    "hangul": ["\u1112\u1161\u11ab", "\u1100\u116e\u11a8", "국", "국\u11a8", "가\u11a8"],
    "archaic hangul": ["\u1113\u1175\u11f0", "\ua960\ud7b0\ud7cb"],
    "kana": ["カ\u3099", "タ", "は\u309a", "ﾊﾟ"],
    "devanagari": ["क्षि", "त्र", "हि", "न्दी", "क\u093c"],
    "tamil": ["நி", "க்", "ஷ"],
    "thai": ["ที่", "นี่", "ก", "กำ"],
    "tibetan": ["བོ", "ད", "སྐྱེ"],
    "hebrew": ["שָׁ", "ל", "וֹ", "ם"],
    "arabic": ["مَ", "رْ", "حَ", "بً", "ا"],
    "emoji": ["👩‍👩‍👧", "👍🏽", "❤️", "1️⃣", "🏳️‍🌈", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👨🏽‍❤️‍💋‍👨🏿"],
    "flags": ["🇨🇭", "🇩🇪", "🇫🇷"],
    "line ends": ["a", "\r\n", "\n", "\u0301", "\r", "\t"],
    "variation": ["。\ufe00", "葛\U000e0100", "♥︎"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    expected = EXAMPLES[name]
    text = "".join(expected)
    assert clusters(text) == expected
    before, behind = cluster_bounds(text)
    starts = [len("".join(expected[:number])) for number in range(len(expected) + 1)]
    assert sorted(set(before.tolist())) == sorted(set(behind.tolist())) == starts
    for place in range(len(text) + 1):
        assert before[place] == max(start for start in starts if start <= place)
        assert behind[place] == min(start for start in starts if start >= place)


@pytest.fixture
def normalized(monkeypatch):
    """How long the texts are that Python is asked to normalize, which is what could take long."""
    lengths, normalize = [], unicodedata.normalize

    def counted(form, text):
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr(graphemes.unicodedata, "normalize", counted)
    return lengths


def test_plain_texts_take_no_work(normalized):
    for text in ("", "plain", "two\nlines", "Größe", "東京", "한국어", "Ελλάδα"):
        assert cluster_bounds(text) is None
        assert clusters(text) == list(text)
    assert clusters("a\r\nb") == ["a", "\r\n", "b"]
    text = "山里的天气变化很快。" * 100_000
    assert find_continuations(text) is None
    assert not normalized


@pytest.fixture(scope="module")
def reference():
    """The package regex and, by our classes, the characters of which it says the same: its Unicode may be another."""
    regex = pytest.importorskip("regex", reason="comes with transformers, which needs the extra 'parity'")
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)

    def codes(name):
        return np.array([ord(character) for character in regex.findall(rf"\p{{{name}}}", every)], dtype=np.int64)

    theirs = np.zeros(0x110000, dtype=np.uint8)
    for name, kind in [
        ("GCB=CR", graphemes.CR), ("GCB=LF", graphemes.LF), ("GCB=Control", graphemes.CONTROL), ("GCB=Extend", graphemes.EXTEND),
        ("GCB=ZWJ", graphemes.ZWJ), ("GCB=Regional_Indicator", graphemes.REGIONAL_INDICATOR), ("GCB=Prepend", graphemes.PREPEND),
        ("GCB=SpacingMark", graphemes.SPACING_MARK), ("GCB=L", graphemes.L), ("GCB=V", graphemes.V), ("GCB=T", graphemes.T),
        ("GCB=LV", graphemes.LV), ("GCB=LVT", graphemes.LVT), ("Extended_Pictographic", graphemes.PICTOGRAPH),
        ("InCB=Consonant", graphemes.CONSONANT),
    ]:  # fmt: skip
        theirs[codes(name)] = kind
    linkers = codes("InCB=Linker")
    theirs[linkers] = np.where(theirs[linkers] == graphemes.EXTEND, graphemes.LINKER, graphemes.LONE_LINKER)
    theirs[0x200C] = graphemes.ZWNJ
    same = theirs == BREAK_CLASSES
    same[0xD800:0xE000] = False
    if len(regex.findall(r"\X", "\u094d\u0915")) == 1:  # Unicode 18 and later
        assert same.sum() > 0x110000 - 2048 - 3000, "new characters of a newer Unicode, but no more than that"
    else:  # another rule for conjuncts, or none
        same &= ~np.isin(BREAK_CLASSES, [graphemes.LINKER, graphemes.LONE_LINKER])
    pools = [np.flatnonzero(same & (kind == BREAK_CLASSES)).tolist() for kind in range(19)]
    return regex, [pool for pool in pools if pool]


def test_random_texts_break_where_another_implementation_breaks_them(reference):
    regex, pools = reference
    draw = random.Random(0)
    for _ in range(20_000):
        some = draw.choices(pools, k=draw.randint(1, 5))
        text = "".join(chr(draw.choice(draw.choice(some))) for _ in range(draw.randint(1, 12)))
        assert clusters(text) == regex.findall(r"\X", text), ascii(text)


def test_long_texts_break_where_another_implementation_breaks_them(reference):
    regex, pools = reference
    draw = random.Random(1)
    text = "".join(chr(draw.choice(draw.choice(pools))) for _ in range(200_000))
    expected = regex.findall(r"\X", text)
    assert max(map(len, expected)) <= MAX_CLUSTER_CODE_POINTS // 2
    assert clusters(text) == expected


def test_nothing_composes_or_is_reordered_across_an_edge():
    """So a text that is cut at an edge becomes the beginning of what the whole text becomes in NFC and NFD."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if 0xD800 <= code < 0xE000:
            continue
        if unicodedata.combining(character):
            assert len(clusters("a" + character)) == 1, hex(code)
        decomposed = unicodedata.normalize("NFD", character)
        if len(decomposed) > 1:
            assert len(clusters(decomposed)) == len(clusters(character)) or code in (0x1D15E, 0x1D15F), hex(code)
            for place in range(1, len(decomposed)):
                pair = decomposed[place - 1 : place + 1]
                if len(unicodedata.normalize("NFC", pair)) == 1:
                    assert len(clusters(pair)) == 1, hex(code)


def test_what_nobody_reads_as_one_character_is_taken_apart():
    for text in ("a" + "\u0301" * 500, "\u1100" * 500, "\u200d".join(["👩"] * 100), "क्" * 300 + "क", "\u0600" * 90 + "1"):
        found = clusters(text)
        assert "".join(found) == text
        assert len(found) > len(text) // 2
        # What composes stays together.
        assert [unicodedata.normalize("NFC", part) for part in found] == list(unicodedata.normalize("NFC", text))
    syllable = unicodedata.normalize("NFD", "각")
    assert clusters("\u1100" * 40 + syllable)[-1] == syllable
    assert clusters("a" + "\u0301" * (MAX_CLUSTER_CODE_POINTS - 1)) == ["a" + "\u0301" * (MAX_CLUSTER_CODE_POINTS - 1)]
    assert len(clusters("á" + "\u0301" * (MAX_CLUSTER_CODE_POINTS - 2))) == 1  # the same text, composed
    assert len(clusters("á" + "\u0301" * (MAX_CLUSTER_CODE_POINTS - 1))) == MAX_CLUSTER_CODE_POINTS


@pytest.mark.parametrize("unit", ["\u0301", "\u1100", "👩\u200d", "🇨", "क्", "\u0600", "\u0327\u0301"])
def test_work_grows_with_the_length_and_not_faster(unit, normalized):
    work = []
    for count in (5_000, 50_000):
        assert "".join(clusters(unit * count)) == unit * count
        work.append(sum(normalized))
        normalized.clear()
    assert work[1] <= 10.1 * work[0]
    assert work[1] <= 20 * 50_000 * len(unit)
