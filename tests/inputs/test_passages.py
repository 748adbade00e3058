"""Cutting: every piece keeps to its tokens, nothing is lost, and characters stay whole."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m0.errors import InputError
from m0.inputs.graphemes import cluster_bounds
from m0.inputs.images import prepare_picture
from m0.inputs.passages import Passage, Passages, Span, cut_parts
from m0.inputs.truncation import encode_text
from tests.conftest import noise

LOREM = "the network must be configured after the installation of the system, and before its first use. "
TEXTS = {
    "words": LOREM * 40,
    "lines": "\n\n".join(f"Chapter {number}\n{LOREM * 3}" for number in range(12)),
    "chinese": "水泵必须在首次使用前加注，否则会损坏密封件。" * 40,
    "thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 40,
    "marks": "cafe\u0301 nai\u0308ve o\u0302\u0323 " * 80,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈❤️" * 40,
    "one word": "x" * 4000,
    "digits": "0123456789" * 100,
    "blanks between": ("a" + " " * 30) * 60,
}


@pytest.fixture(params=["nano", "qwen2"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_prompt").tokenizer


def tokens_of(tokenizer, text):
    return len(encode_text(tokenizer, text).ids)


def pieces(text, how, tokenizer):
    """(start, end) of each piece, checked against its text."""
    found = []
    for spans, parts in cut_parts([text], how, tokenizer):
        (span,), (part,) = spans, parts
        assert span.part == 0
        assert text[span.start : span.end] == part
        found.append((span.start, span.end))
    return found


@pytest.mark.parametrize("overlap", [0, 8, 16])
@pytest.mark.parametrize("name", TEXTS)
def test_pieces_keep_to_their_tokens_and_cover_the_text(name, overlap, tokenizer):
    text, how = TEXTS[name].strip(), Passages(tokens=32, overlap=overlap)
    found = pieces(text, how, tokenizer)
    assert len(found) > 3
    assert max(tokens_of(tokenizer, text[start:end]) for start, end in found) <= 32
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    for (_, end), (start, _) in itertools.pairwise(found):
        assert start <= end
        if not overlap:
            assert start == end
    assert [end for _, end in found] == sorted({end for _, end in found})
    # Not many more than it takes.
    assert len(found) <= 4 * tokens_of(tokenizer, text) / (32 - overlap)


@pytest.mark.parametrize("name", ["marks", "emoji", "thai", "chinese"])
def test_characters_as_readers_see_them_stay_whole(name, tokenizer):
    text = TEXTS[name]
    known = cluster_bounds(text)
    inside = set() if known is None else {place for place in range(len(text)) if known[0][place] != known[1][place]}
    assert bool(inside) == (name != "chinese")
    # A family of four takes many tokens.
    for start, end in pieces(text, Passages(tokens=128, overlap=16), tokenizer):
        assert not {start, end} & inside


def test_words_stay_whole_and_are_repeated(tokenizer):
    text = TEXTS["words"]
    found = pieces(text, Passages(tokens=32, overlap=16), tokenizer)
    for (_, end), (start, _) in itertools.pairwise(found):
        assert text[end - 1].isspace() or text[end].isspace()
        assert 4 < tokens_of(tokenizer, text[start:end]) <= 17


def test_a_text_that_fits_is_one_piece(tokenizer):
    text = LOREM.strip()
    count = tokens_of(tokenizer, text)
    assert pieces(text, Passages(tokens=count, overlap=0), tokenizer) == [(0, len(text))]
    assert len(pieces(text, Passages(tokens=count - 1, overlap=0), tokenizer)) == 2


@pytest.mark.parametrize("text", ["", " ", "\n\t ", " " * 500])
def test_what_is_blank_is_one_piece(text, tokenizer):
    for tokens in (1, 4):
        (piece,) = cut_parts([text], Passages(tokens=tokens, overlap=0), tokenizer)
        assert text.startswith(piece[1][0])


def test_pieces_of_blanks_alone_are_left_out(tokenizer):
    text = "begin" + "\n\t" * 400 + "end"
    cut = cut_parts([text], Passages(tokens=16, overlap=0), tokenizer)
    assert all(parts[0].strip() for _, parts in cut)
    assert "".join(parts[0].strip() for _, parts in cut) == "beginend"
    assert len(cut) == 2


@pytest.mark.parametrize("text", ["水", "𝄞", "👩‍👩‍👧‍👦", "e\u0301", "abc", "ก็ำ"])
def test_passages_of_one_token(text, tokenizer):
    found = pieces(text * 3, Passages(tokens=1, overlap=0), tokenizer)
    assert "".join((text * 3)[start:end] for start, end in found) == text * 3
    assert all(start < end for start, end in found)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \n\t.,1é水ßก็🏳️\u200d\u0301"), max_size=200),
    tokens=st.integers(1, 24),
    share=st.floats(0, 0.5),
)
def test_any_text(nano_prompt, text, tokens, share):
    how = Passages(tokens=tokens, overlap=int(tokens * share))
    done = 0
    for spans, parts in cut_parts([text], how, nano_prompt.tokenizer):
        (span,), (part,) = spans, parts
        assert text[span.start : span.end] == part
        assert not text[done : span.start].strip()  # only blanks are left out
        assert part or not text.strip()
        if tokens >= 8:
            assert tokens_of(nano_prompt.tokenizer, part) <= tokens
        done = max(done, span.end)
    assert not text[done:].strip()


def test_short_parts_share_a_passage_and_pictures_go_with_the_text_before(tokenizer):
    first, second, third = (prepare_picture(noise(28, 28, seed)) for seed in range(3))
    parts = [first, "short", "words", second, LOREM * 4, third, "the end"]
    cut = cut_parts(parts, Passages(tokens=40, overlap=0), tokenizer)
    held = [[part for part in some if not isinstance(part, str)] for _, some in cut]
    assert held[0] == [first, second]
    assert cut[0][1][:4] == [first, "short", "words", second]
    assert [span.part for span in cut[0][0]] == [1, 2, *([4] if len(cut[0][0]) > 2 else [])]
    last_of_long = max(number for number, (spans, _) in enumerate(cut) if any(span.part == 4 for span in spans))
    assert third in held[last_of_long]
    assert sum(map(len, held)) == 3
    assert cut[-1][1][-1] == "the end"
    assert cut_parts(parts, Passages(tokens=None), tokenizer) == [((), parts)]


def test_pictures_alone_are_one_passage(tokenizer):
    pictures = [prepare_picture(noise(28, 28, seed)) for seed in range(2)]
    assert cut_parts(pictures, Passages(), tokenizer) == [((), pictures)]


def test_combining():
    logits = [1.0, 3.0, 2.0, 3.0]
    assert Passages().combine(logits) == (3.0, 1)
    assert Passages(score="mean", best=2).combine(logits) == (3.0, 1)
    assert Passages(score="mean", best=3).combine(logits) == (pytest.approx(8 / 3), 1)
    assert Passages(score="mean", best=9).combine(logits) == (pytest.approx(9 / 4), 1)
    assert Passages(score="first").combine([-1.0]) == (-1.0, 0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 2.5}, "tokens is 2.5"),
        ({"tokens": True}, "tokens is True"),
        ({"tokens": 10, "overlap": 6}, "overlap is 6, but must be a whole number from 0 to half of tokens, 5."),
        ({"overlap": -1}, "overlap is -1"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"score": "sum"}, "score is 'sum', but must be one of max, first, mean."),
        ({"best": 0}, "best is 0"),
    ],
)
def test_fields_that_cannot_be_used(fields, sentence):
    with pytest.raises(InputError) as caught:
        Passages(**fields)
    assert str(caught.value).startswith(sentence)


def test_what_the_argument_may_be():
    assert (Passages().tokens, Passages().overlap, Passages(tokens=64).overlap, Passages(tokens=1).overlap) == (512, 64, 8, 0)
    assert Passages.of(None) == Passages.of("pages")
    assert Passages.of(None).tokens is None
    assert Passages.of(Passages(tokens=9, overlap=1)).tokens == 9
    for wrong in ("page", 512, {"tokens": 5}):
        with pytest.raises(InputError, match="must be Passages"):
            Passages.of(wrong)


def test_as_json():
    assert Passage(2, 3, (Span(0, 5, 9),)).to_json() == {
        "number": 2,
        "count": 3,
        "spans": [{"part": 0, "start": 5, "end": 9}],
        "page": None,
    }
