"""Origins, truncation and input forms, and a property test over random pairs."""

import base64
import io
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from PIL import Image

from m0.errors import CheckpointError, ImageError, InputError, TooLongError
from m0.inputs.graphemes import cluster_bounds
from m0.inputs.images import ImageSettings, Picture
from m0.inputs.prompt import Limits, PromptEncoder, load_tokenizer
from m0.inputs.reading import read_parts
from m0.model.config import RerankerConfig
from tests.conftest import NANO, noise

SETTINGS = ImageSettings()


def parts(value, side="document"):
    return read_parts(value, side, SETTINGS)


def encode(prompt, query, document, **limits):
    return prompt.encode(parts(query, "query"), parts(document), Limits(**limits))


def picture_bytes(kind="PNG"):
    buffer = io.BytesIO()
    noise(80, 60).save(buffer, kind)
    return buffer.getvalue()


def test_the_prompt_is_template_document_query_score(qwen2_prompt):
    encoding = encode(qwen2_prompt, "zwei Hunde", "ein roter Ball.")
    ids = encoding.token_ids.tolist()
    assert ids[-1] == qwen2_prompt.config.score_token_id == 100
    assert qwen2_prompt.tokenizer.decode(ids[:-1]) == "**Document**:\nein roter Ball.\n**Query**:\nzwei Hunde"
    assert encoding.counts["total"] == len(ids) == len(encoding) == encoding.positions.shape[1]
    assert sum(encoding.counts[side] for side in ("document", "query", "template")) == len(ids)


@pytest.mark.parametrize("tokenizer", ["nano_prompt", "qwen2_prompt"])
def test_every_character_is_some_tokens_origin(tokenizer, request):
    prompt = request.getfixturevalue(tokenizer)
    texts = {"query": "naïve 猫 ¿qué?", "document": ["Erstens.\n", "第二，é\u0301 👩‍👩‍👧", "third"]}
    encoding = encode(prompt, texts["query"], texts["document"])
    for side, given_texts in (("query", [texts["query"]]), ("document", texts["document"])):
        for part, text in enumerate(given_texts):
            covered = set()
            for origin in encoding.origins:
                if (origin.side, origin.part) == (side, part):
                    assert 0 <= origin.start <= origin.end <= len(text)
                    covered |= set(range(origin.start, origin.end))
            assert covered == set(range(len(text)))


def test_the_old_name_of_the_number_of_prefix_tokens_works(nano_prompt):
    encoding = nano_prompt.encode(["red"], ["a heart"])
    assert [origin.side for origin in encoding.origins].index("query") == encoding.num_prefix_tokens
    with pytest.warns(DeprecationWarning, match="document_tokens is now num_prefix_tokens") as caught:
        assert encoding.document_tokens == encoding.num_prefix_tokens
    assert caught[0].filename == __file__


def test_every_visual_token_knows_its_cell(nano_prompt):
    encoding = encode(nano_prompt, noise(60, 120), ["before", noise(100, 60), noise(60, 60), "after"])
    image = nano_prompt.config.image_token_id
    cells = [o for i, o in zip(encoding.token_ids.tolist(), encoding.origins, strict=True) if i == image]
    expected = []
    for side, part, picture in (("document", 1, 0), ("document", 2, 1), ("query", 0, 2)):
        rows, columns = encoding.pictures[picture].token_grid
        expected += [(side, part, None, None, row, column) for row in range(rows) for column in range(columns)]
    assert [tuple(cell) for cell in cells] == expected
    assert {origin.kind for origin in encoding.origins} == {"template", "text", "image"}


def test_all_forms_of_a_picture_are_the_same_picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(picture_bytes())
    text = base64.b64encode(picture_bytes()).decode()
    image = Image.open(path)
    forms = [
        path, {"image": str(path)}, {"image": path}, {"image": text}, {"image": f"data:image/png;base64,{text}"},
        picture_bytes(), bytearray(picture_bytes()), image, np.asarray(image), {"image": image}, [image],
        {"image": "\n".join(text[i : i + 76] for i in range(0, len(text), 76))},
    ]  # fmt: skip
    for form in forms:
        (picture,) = parts(form)
        assert isinstance(picture, Picture)
        assert np.array_equal(picture.pixels, parts(path)[0].pixels)


def test_mixtures_keep_their_order():
    kinds = [
        type(part) for part in parts(["a", {"image": noise(60, 60)}, {"text": "b"}, {"text": "c", "image": noise(60, 60)}])
    ]
    assert kinds == [str, Picture, str, str, Picture]


@pytest.mark.parametrize(
    ("side", "value", "message"),
    [
        ("query", "", "the query is empty"),
        ("query", " \n ", "the query is empty"),
        ("query", None, "holds None"),
        ("query", [], "empty list"),
        ("document", None, "holds None"),
        ("document", 3, "holds int"),
        ("document", ["a", None], "holds None"),
        ("document", ["a", 2.5], "holds float"),
        ("document", [], "empty list"),
        ("document", {}, 'must have "text", "image" or both'),
        ("document", {"picture": "x"}, "['picture']"),
        ("document", {"text": 3}, "is int, but must be a string"),
        ("document", {"text": None}, "is NoneType"),
        ("document", "bad \ud800 surrogate", "lone surrogate"),
    ],
)
def test_what_is_no_document_is_refused_in_one_sentence(side, value, message):
    with pytest.raises(InputError) as caught:
        parts(value, side)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_typed_special_tokens_are_text(nano_prompt):
    typed = "<|image_pad|><|vision_start|> <|endoftext|> §"
    encoding = encode(nano_prompt, typed, typed)
    config = nano_prompt.config
    special = {config.image_token_id, config.vision_start_token_id, config.vision_end_token_id}
    assert not special & set(encoding.token_ids.tolist())
    assert nano_prompt.tokenizer.decode(encoding.token_ids.tolist()[:-1]).count(typed) == 2


def test_each_side_is_cut_on_its_own_and_said(nano_prompt):
    encoding = encode(nano_prompt, "query words " * 100, "document words " * 500, max_length=120, max_query_length=30)
    assert len(encoding) <= 120
    assert encoding.counts["query"] <= 30
    by_side = {cut.side: cut for cut in encoding.cut}
    assert set(by_side) == {"query", "document"}
    for side, text in (("query", "query words " * 100), ("document", "document words " * 500)):
        ends = [origin.end for origin in encoding.origins if origin.side == side]
        assert max(ends) == by_side[side].kept < by_side[side].characters == len(text)
    assert not encode(nano_prompt, "short", "short").cut


def test_the_query_survives_a_long_document(qwen2_prompt):
    encoding = encode(qwen2_prompt, "where is it", "long " * 20000)
    assert len(encoding) <= 10240
    assert qwen2_prompt.tokenizer.decode(encoding.token_ids.tolist()[:-1]).endswith("**Query**:\nwhere is it")


def test_text_gives_way_and_pictures_stay_whole(nano_prompt):
    document = ["words " * 300, noise(280, 280), "more " * 300]
    encoding = encode(nano_prompt, "q", document, max_length=200)
    assert len(encoding) <= 200
    assert encoding.pictures[0].num_tokens == 100
    assert [cut.part for cut in encoding.cut] == [0, 2]
    with pytest.raises(TooLongError, match="raise max_length or lower max_pixels"):
        encode(nano_prompt, "q", document, max_length=110)


@pytest.mark.parametrize("max_length", [1, 5, 8])  # the template and the score token alone are 8
def test_a_limit_without_room_is_refused(nano_prompt, max_length):
    with pytest.raises(TooLongError, match=f"max_length is {max_length}"):
        encode(nano_prompt, "a query", "a document", max_length=max_length)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "10"])
def test_limits_are_whole_numbers(value):
    with pytest.raises(InputError, match="max_length is"):
        Limits(max_length=value)


def test_more_than_the_models_positions_is_refused(nano_prompt):
    with pytest.raises(InputError, match="the model has 32768 positions"):
        encode(nano_prompt, "q", "d", max_length=40000)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": 3}'])
def test_a_broken_tokenizer_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tokenizer(tmp_path / "none.json")
    assert load_tokenizer(NANO / "tokenizer.json").get_vocab_size() > 1000


text = strategies.text(max_size=60)
pictures = strategies.tuples(strategies.integers(1, 200), strategies.integers(1, 200)).filter(lambda s: max(s) <= 200 * min(s))
content = strategies.lists(strategies.one_of(text, pictures), min_size=1, max_size=4)


@given(query=content, document=content, max_length=strategies.integers(1, 200), max_query_length=strategies.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_any_pair_is_encoded_whole_cut_or_refused(nano_prompt, query, document, max_length, max_query_length):
    """Never a crash; the score token last; the limits kept; pictures whole; what is not said to be cut is all there."""
    sides = {
        side: [Image.new("RGB", part) if isinstance(part, tuple) else part for part in given_parts]
        for side, given_parts in (("query", query), ("document", document))
    }
    try:
        encoding = encode(
            nano_prompt, sides["query"], sides["document"], max_length=max_length, max_query_length=max_query_length
        )
    except InputError as error:
        assert "\n" not in str(error)
        return
    ids = encoding.token_ids.tolist()
    assert ids[-1] == 100
    assert len(ids) <= max_length
    assert ids.count(nano_prompt.config.image_token_id) == sum(picture.num_tokens for picture in encoding.pictures)
    assert len(encoding.pictures) == sum(isinstance(part, tuple) for part in [*query, *document])
    assert encoding.positions.shape == (3, len(ids))
    cut = {(c.side, c.part): c.kept for c in encoding.cut}
    for side, given_parts in (("query", query), ("document", document)):
        for number, part in enumerate(given_parts):
            if isinstance(part, str):
                kept = cut.get((side, number), len(part))
                seen = [o for o in encoding.origins if (o.side, o.part, o.kind) == (side, number, "text")]
                covered = {place for origin in seen for place in range(origin.start, origin.end)}
                assert covered == set(range(kept))


def test_picture_errors_name_the_side_of_the_problem():
    with pytest.raises(ImageError, match="does not exist"):
        parts({"image": "nowhere.png"})


@pytest.mark.parametrize("character", ["\U0001f9ed", "\U0001fab2"])
def test_a_side_is_never_cut_to_nothing(qwen2_prompt, character):
    """A character of several tokens that does not fit would leave an empty query, and all such queries one score."""
    rare = "\U000e0041"  # four tokens, whatever the tokenizer
    with pytest.raises(TooLongError, match="no room for a character of the query's text"):
        encode(qwen2_prompt, rare, "it points north", max_query_length=1)
    with pytest.raises(TooLongError, match="no room for a character of the document's text"):
        encode(qwen2_prompt, character, rare, max_doc_length=1)


def test_whole_numbers_of_numpy_are_limits_too(nano_prompt):
    assert len(encode(nano_prompt, "q", "words " * 100, max_length=np.int64(40))) <= 40


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    config = RerankerConfig.load(NANO)
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    with pytest.raises(CheckpointError, match="makes no tokens of the prompt's own words"):
        PromptEncoder(load_tokenizer(path), config).check_tokenizer(path)
    ordinary = PromptEncoder(load_tokenizer(NANO / "tokenizer.json"), config.replace(image_token_id=300))
    with pytest.raises(CheckpointError, match="image_token_id is 300, which is the text"):
        ordinary.check_tokenizer(path)


FORMS = [
    "한국어 문서를 찾습니다", "Zażółć gęślą jaźń, příliš žluťoučký kůň", "Tiếng Việt có nhiều dấu thanh", "ガギグゲゴ ぱぴぷぺぽ バス",
    "ё й Ї ґ", "ά έ ή ΐ ᾧ", "क़ ख़ ग़ ज़ हिन्दी क्षत्रिय", "ড় ঢ় য় ো ৌ", "ொ ோ ௌ தமிழ்", "ೊ ೋ ಕನ್ನಡ", "ൊ ോ മലയാളം", "ෝ ෞ සිංහල", "ྲྀ བོད་", "ဦး မြန်မာ",
    "שָׁלוֹם שּׁ", "أ إ آ ؤ ئ مَرْحَبًا", "Å \u212b \u1e9b\u0323 \u0344", "\U0001d15e \U0001d160 𝄞", "豈 更 \U0002f800", "👩‍👩‍👧 👍🏽 🇨🇭🇩🇪", "≠ ≮ ⫝̸",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("tokenizer", ["nano_prompt", "qwen2_prompt"])
def test_composed_and_decomposed_texts_are_cut_alike(tokenizer, text, request):
    """At every limit the same tokens, whole characters, and each of them in some token."""
    prompt = request.getfixturevalue(tokenizer)
    forms = [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]
    known = [cluster_bounds(form) for form in forms]
    for limit in range(1, 60):
        found = []
        for form, edge in zip(forms, known, strict=True):
            try:
                encoding = encode(prompt, form, form, max_query_length=limit, max_doc_length=limit)
            except TooLongError:
                found.append(None)
                continue
            found.append(encoding.token_ids.tolist())
            for side in ("query", "document"):
                (kept,) = encoding.parts[side]
                assert edge is None or edge[0][len(kept)] == len(kept)
                assert form.startswith(kept)
                places = [(origin.start, origin.end) for origin in encoding.origins if origin.side == side]
                assert {place for a, b in places for place in range(a, b)} == set(range(len(kept)))
                assert edge is None or all(edge[0][a] == a and edge[1][b] == b for a, b in places)
        assert found[0] == found[1] == found[2]
    assert found[0] is not None


@pytest.mark.parametrize("tokenizer", ["nano_prompt", "qwen2_prompt"])
def test_a_character_of_many_code_points_is_kept_whole_or_not_at_all(tokenizer, request):
    prompt = request.getfixturevalue(tokenizer)
    family = "👨‍👩‍👧‍👦"
    tokens = len(prompt.tokenizer.encode(family, add_special_tokens=False))
    with pytest.raises(TooLongError, match="no room for a character of the document's text"):
        encode(prompt, "q", family, max_doc_length=tokens - 1)
    assert encode(prompt, "q", f"{family}{family}", max_doc_length=2 * tokens - 1).parts["document"] == [family]
    word = len(prompt.tokenizer.encode("the", add_special_tokens=False))
    assert encode(prompt, "q", f"the{family}", max_doc_length=word + tokens - 1).parts["document"] == ["the"]


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301" * 500,
        "x" + "\u0323\u0301\u0334" * 200,
        "\u1100" * 300,
        "\u200d".join("👩" * 90),
        "क्" * 300,
        "\u0301" * 300,
    ],
)
@pytest.mark.parametrize("tokenizer", ["nano_prompt", "qwen2_prompt"])
def test_what_looks_like_one_endless_character_is_cut_all_the_same(tokenizer, text, request):
    prompt = request.getfixturevalue(tokenizer)
    for limit in (6, 20, 64, 200):
        encoding = encode(prompt, "q", text, max_doc_length=limit)
        (kept,) = encoding.parts["document"]
        assert 0 < len(kept) < len(text)
        # Marks in the wrong order are others when they are cut and put in order, and the prompt's line end may cost a token.
        assert 0.6 * limit < encoding.counts["document"] <= limit + 1
        places = {place for o in encoding.origins if o.side == "document" for place in range(o.start, o.end)}
        assert places == set(range(len(kept)))


def test_marks_do_not_reach_across_parts(nano_prompt, qwen2_prompt):
    """A part that begins with a mark, or with what ends a line: each token stays with its own part."""
    for prompt in (nano_prompt, qwen2_prompt):
        document = ["\u0301abc\r", "\n\u0338=", "\u1161\u11a8 가", "\u200d👩", noise(60, 60), "\u0327c"]
        encoding = encode(prompt, "\u0301?", document)
        for number, part in enumerate(document):
            if isinstance(part, str):
                places = {
                    p for o in encoding.origins if (o.side, o.part) == ("document", number) for p in range(o.start, o.end)
                }
                assert places == set(range(len(part)))
        assert encoding.counts["query"] >= 2


@pytest.mark.parametrize("tokenizer", ["nano_prompt", "qwen2_prompt"])
@pytest.mark.parametrize("part", ["word", "a few words here", "Ende."])
def test_many_small_parts_fill_the_room_there_is(tokenizer, part, request):
    """Each that is kept comes with a separator; those that are not leave none."""
    prompt = request.getfixturevalue(tokenizer)
    encoding = encode(prompt, "q", [part] * 3000, max_length=400, max_query_length=10)
    assert 397 <= len(encoding) <= 400
    kept = [text for text in encoding.parts["document"] if text]
    ids = encoding.token_ids.tolist()
    written = "**Document**:\n" + "\n".join(kept) + "\n**Query**:\nq"
    assert prompt.tokenizer.encode(written, add_special_tokens=False).ids == ids[:-1]
    assert len(kept) + len(encoding.cut) - (kept[-1] != part) == 3000
    assert encoding.cut[-1].kept == 0
    assert encoding.cut[-1].tokens is None
    # A picture behind them is there, and the empty text behind it brings no separator.
    encoding = encode(prompt, "q", [*[part] * 3000, noise(60, 60), "", "more"], max_length=400)
    assert len(encoding.pictures) == 1
    assert len(encoding) <= 400


def test_only_as_much_is_tokenized_as_the_limits_allow(nano_prompt):
    """Parts beyond the limit are not looked at, and a limit above the prompt's does not matter."""
    first = ["words and words " * 40] * 3
    seen = []
    prompt = PromptEncoder(nano_prompt.tokenizer, nano_prompt.config)
    ask = prompt._tokenize
    prompt._tokenize = lambda text, wanted: seen.append((len(text), wanted)) or ask(text, wanted)
    encoding = encode(prompt, "q", first, max_length=100, max_doc_length=10_000)
    assert seen == [(1, 100), (640, 100)]
    assert [(cut.part, cut.kept > 0, cut.tokens is None) for cut in encoding.cut] == [
        (0, True, False),
        (1, False, True),
        (2, False, True),
    ]
    assert "0 of 640 characters kept" in str(encoding.cut[1])
