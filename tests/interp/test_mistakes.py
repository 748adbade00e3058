"""What a researcher mistypes gets one sentence, and nothing is silently looked at, changed or left out."""

import pytest
import torch

from m0.errors import InputError
from m0.interp import (
    activation_patching,
    attention_knockout,
    document,
    forward,
    head_ablation,
    image,
    path_patching,
    query,
    score_lens,
    zero,
)
from m0.interp.edits import add, mean, replace, resample, scale
from m0.interp.words import find_words
from tests.conftest import noise

PAIR = ("two dogs", "the category of a dog and a cat")
Z, RESIDUAL = "decoder.layers.1.attention.z", "decoder.layers.1.residual.after"
PATTERN = "decoder.layers.1.attention.pattern"


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda r, c: c[RESIDUAL].at("dogs"), "where is 'dogs', but must be a selector"),
        (lambda r, c: c[RESIDUAL].at(query, to=document), "`to` chooses keys"),
        (lambda r, c: c[PATTERN].at(query, to=image), "image finds no token"),
        (lambda r, c: c[RESIDUAL].at(query, pair=3), "pair 3 is asked for, but 1"),
        (lambda r, c: c[RESIDUAL].at(query.all & document.all), "query.all & document.all finds no token"),
        (lambda r, c: query.all | "x", "what is joined is 'x'"),
        (lambda r, c: image.box(5, 5, 5, 5), "left below right"),
        (lambda r, c: image.box("0", 0, 5, 5), "must be numbers"),
        (lambda r, c: image.cell(0.5, 0), "row is 0.5"),
        (lambda r, c: document.words("cat", occurrence=-2), "occurrence is -2"),
        (lambda r, c: document.words("dogs")(c.encodings[0]), "does not hold 'dogs'"),
        (lambda r, c: r.record(RESIDUAL, at="dogs"), "at is 'dogs'"),
        (lambda r, c: r.edit({}), "not an empty one"),
        (lambda r, c: r.edit({Z: zero}, at=[1, 2]), r"at is \[1, 2\]"),
        (lambda r, c: scale("2"), "factor is '2'"),
        (lambda r, c: add(1.0), "given float, but must be given a tensor"),
        (lambda r, c: replace(0.0), "given float"),
        (lambda r, c: mean(torch.zeros(0, 4)), "has no rows"),
        (lambda r, c: resample(torch.zeros(0, 4)), "has no rows"),
        (lambda r, c: attention_knockout(r, [("a", noise(40, 40)), ("b", "c")]), "is it two pairs"),
        (lambda r, c: attention_knockout(r, PAIR, cuts={}), "no cut"),
        (lambda r, c: attention_knockout(r, PAIR, cuts={"x": (query.all, image.all)}), "image.all finds no token"),
        (lambda r, c: score_lens(r, PAIR, where=image.all), "image.all finds no token"),
        (lambda r, c: activation_patching(r, PAIR, ("two cats", PAIR[1]), positions={}), "not an empty one"),
        (lambda r, c: activation_patching(r, PAIR, ("two cats", PAIR[1]), positions=query.all), "must be a mapping"),
        (lambda r, c: activation_patching(r, PAIR, ("two cats", PAIR[1]), positions={"x": image.all}), "finds no token"),
        (lambda r, c: path_patching(r, PAIR, ("two cats", PAIR[1]), senders=[]), "senders is empty"),
        (lambda r, c: path_patching(r, PAIR, ("two cats", PAIR[1]), receivers=(1, 0, "query")), "the receiver 1"),
        (lambda r, c: head_ablation(r, [PAIR], "mean", reference=[]), "reference pairs is empty"),
        (lambda r, c: forward(r, [PAIR]), "must be what encode"),
    ],
)
def test_a_sentence_for_each(tiny, do, message):
    with tiny.record(RESIDUAL, PATTERN, every_token=True) as cache:
        tiny.score([PAIR])
    with pytest.raises(InputError, match=message):
        do(tiny, cache)
    assert not tiny.sessions


@pytest.mark.parametrize(
    "session",
    [
        lambda r: r.edit({Z: zero}, at=query.all & image.all),
        lambda r: r.edit({"vision.merger.out": zero}, at=query.all),
        lambda r: r.record("vision.merger.out", at=query.all),
        lambda r: r.record(Z, at=document.all & query.all),
    ],
)
def test_a_session_that_would_touch_nothing_says_so(tiny, session):
    before = tiny.logits([("two dogs", noise(60, 60))])
    with pytest.raises(InputError, match="finds no"), session(tiny):
        tiny.score([("two dogs", noise(60, 60))])
    assert tiny.logits([("two dogs", noise(60, 60))]) == before


def test_an_edit_of_the_last_layers_missing_rows_is_no_mistake(tiny):
    with tiny.edit({"decoder.layers.*.attention.z": zero}, at=document.all):
        assert tiny.logits([PAIR]) != tiny.logits([("other", "words")])


@pytest.mark.parametrize("name", ["missing/x.png", "x.xyz", "."])
def test_a_plot_that_cannot_be_written(tiny, tmp_path, name):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="cannot be written"):
        score_lens(tiny, PAIR).plot(tmp_path / name)


def test_whole_words_only_where_words_have_blanks(tiny):
    encoding = tiny.encode("q", "the category: 東京タワー")
    with pytest.raises(InputError, match="does not hold 'cat'"):
        document.words("cat")(encoding)
    assert document.words("京")(encoding)
    assert document.words("gory:")
    with pytest.raises(InputError, match="does not hold 'gory:'"):
        document.words("gory:")(encoding)


@pytest.mark.parametrize("text", ["ที่นี่คือกรุงเทพ", "เข็มทิศชี้ไปทางเหนือ", "မြန်မာစာ", "ភាសាខ្មែរ"])
def test_vowels_and_marks_stay_with_their_consonants(tiny, text):
    spans = [span for span in find_words(tiny.encode("q", text)) if span.side == "document"]
    assert "".join(span.text for span in spans) == text
    for span in spans:
        assert span.text[0] not in "\u0e30\u0e31\u0e32\u0e33\u0e34\u0e35\u0e48\u102c\u103a\u17b6"
        assert span.text[-1] not in "\u0e40\u0e41\u0e42\u0e43\u0e44\u1039\u17d2"
