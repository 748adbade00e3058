"""Only the beginning of a long text is tokenized, and its tokens are those of the whole text; what is remembered is bounded."""

import copy
import gc
import json
import pickle
import random
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies
from tokenizers import Tokenizer

from m0.errors import InputError
from m0.inputs.prompt import Limits, PromptEncoder
from m0.inputs.truncation import MAX_CACHE_BYTES, MAX_ENTRY_BYTES, FirstTokensEncoder

WORDS = (
    "the quick Brown fox's don't we'll IT'S I've 've 're 'r e.g. U.S. 3.14 1,000,000 x_1 foo_bar == != <= a=b<c // § € ½ ² "
    "http://a.b/c?d=e&f=g İstanbul straße ǅ ﬁ 山里 天气 变化很快，请 带上。外套！ 「指南」 きのこ カタカナ ﾊﾝｶｸ 한국어 문서를 हिन्दी में "
    "क्षत्रिय สวัสดีครับ น้ำ ភាសាខ្មែរ မြန်မာ བོད་ཡིག་ مَرْحَبًا، שָׁלוֹם Ελλάδα;είναι “цитата”—да ¿qué? привет,мир é e\u0301 x\u0302 "
    "a\u0323\u0301 a\u0301\u0323 \u0301 \u0958 \u212b 👩‍👩‍👧 🇨🇭🇩🇪🇫 👍🏽 ❤️ 1️⃣ 😀😀😀 \u200b \ufeff \u00ad aaaaaaaaa ACGTACGT dGhpcyBpcw== \x00 \x1c \x85"
).split(" ")
GAPS = [
    "",
    "",
    " ",
    " ",
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\r\n",
    " \n ",
    "\t",
    "\u3000",
    "\u00a0",
    ". ",
    ", ",
    "\n\t  ",
    "\r",
    "!\n",
]


@strategies.composite
def texts(draw, most=120):
    """Words of many scripts and what stands between them, in one of Unicode's forms or none."""
    some = draw(strategies.lists(strategies.sampled_from(WORDS), min_size=1, max_size=6))
    gaps = draw(strategies.lists(strategies.sampled_from(GAPS), min_size=1, max_size=4))
    choose = random.Random(draw(strategies.integers(0, 2**32)))
    text = "".join(choose.choice(some) + choose.choice(gaps) for _ in range(choose.randint(1, most)))
    text += draw(strategies.text(max_size=8))
    form = draw(strategies.sampled_from(["", "NFC", "NFD"]))
    return unicodedata.normalize(form, text) if form else text


@pytest.fixture(scope="module", params=["nano_prompt", "qwen2_prompt"])
def prompt(request):
    return request.getfixturevalue(request.param)


def prompt_with(prompt, **changes):
    """The same, with another idea of what is long."""
    other = PromptEncoder(prompt.tokenizer, prompt.config)
    other._tokenize = FirstTokensEncoder(prompt.tokenizer, **changes)
    return other


@given(text=texts(), wanted=strategies.integers(0, 60))
@settings(max_examples=250, deadline=None)
def test_the_first_tokens_are_those_of_the_whole_text(prompt, text, wanted):
    whole = prompt.tokenizer.encode(text, add_special_tokens=False)
    found = FirstTokensEncoder(prompt.tokenizer, max_whole_characters=0)(text, wanted)
    assert found.encoded.ids == whole.ids[: found.count]
    assert found.encoded.offsets == whole.offsets[: found.count]
    assert found.count == len(whole) if found.is_complete else found.count > wanted


@given(text=texts(most=25))
@settings(max_examples=60, deadline=None)
def test_every_place_where_a_text_may_end_is_one(prompt, text):
    whole = prompt.tokenizer.encode(text, add_special_tokens=False).ids
    for match in prompt._tokenize.cut_points.finditer(text):
        first = prompt.tokenizer.encode(text[: match.start()], add_special_tokens=False).ids
        assert first == whole[: len(first)], (match.start(), text)


def encoded(prompt, query, document, limits):
    try:
        found = prompt.encode([query], document, limits)
    except InputError as error:
        return str(error)
    places = [(cut.side, cut.part, cut.kept, cut.characters) for cut in found.cut]
    return found.token_ids.tolist(), found.origins, found.parts, places


@given(
    query=texts(most=10),
    document=strategies.lists(texts(most=60), min_size=1, max_size=3),
    max_length=strategies.integers(10, 200),
    max_doc_length=strategies.one_of(strategies.none(), strategies.integers(1, 80)),
)
@settings(max_examples=150, deadline=None)
def test_prompts_are_those_of_whole_texts(prompt, query, document, max_length, max_doc_length):
    limits = Limits(max_length, 16, max_doc_length)
    early, whole = (prompt_with(prompt, max_whole_characters=size) for size in (0, sys.maxsize))
    assert encoded(early, query, document, limits) == encoded(whole, query, document, limits)


LONG = {
    "english": "the quick brown fox jumps over the lazy dog " * 450_000,
    "chinese": "山里的天气变化很快，请带上外套。" * 400_000,
    "japanese": "山の天気は変わりやすいので、上着を" * 400_000,
    "thai": "อากาศบนภูเขาเปลี่ยนเร็ว " * 300_000,
    "jamo": unicodedata.normalize("NFD", "한국어 문서를 ") * 500_000,
    "hindi": "हिन्दी में लिखा " * 500_000,
    "russian": "привет,мир," * 600_000,
    "arabic": "مرحبا بالعالم، كيف " * 400_000,
    "base64": "dGhpcyBpcyBhIHRlc3Q0MTIz" * 400_000,
    "json": '{"id":12,"name":"x","values":[1,2,3]},' * 300_000,
    "csv": "12;34;56;78\n" * 800_000,
    "code": "def f(x):\n\treturn x**2\n\n" * 400_000,
    "addresses": "http://example.com/a/b/c?x=y&z=1\n" * 300_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_is_not_tokenized_whole(prompt, kind, monkeypatch):
    """No more than a few thousand characters for 512 tokens."""
    limits, seen = Limits(max_length=512), []
    encode = Tokenizer.encode

    class Watched:
        def encode(self, text, add_special_tokens):
            seen.append(len(text))
            return encode(prompt.tokenizer, text, add_special_tokens=add_special_tokens)

    watched = PromptEncoder(prompt.tokenizer, prompt.config)
    watched.tokenizer = watched._tokenize.tokenizer = Watched()
    found = watched.encode(["needle"], [LONG[kind]], limits)
    assert max(seen) < 13_000
    assert sum(seen) < 40_000
    (cut,) = found.cut
    assert cut.characters == len(LONG[kind])
    assert cut.tokens is None
    assert str(cut) == f"document part 0: {cut.kept} of {len(LONG[kind])} characters kept"
    # A piece of it that is tokenized whole is cut at the same place.
    piece = prompt.encode(["needle"], [LONG[kind][:8000]], limits)
    assert piece.token_ids.equal(found.token_ids)
    assert piece.cut[0].kept == cut.kept
    assert piece.cut[0].tokens > 0


@pytest.mark.parametrize("run", ["a", "ACGT", " ", "\n", "天气", "😀", "a\u0301", "=", "क्"])
def test_a_run_without_any_place_to_stop_is_still_exact(prompt, run):
    text = run * (30_000 // len(run))
    found = prompt._tokenize(text, 50)
    whole = prompt.tokenizer.encode(text, add_special_tokens=False)
    assert found.encoded.ids == whole.ids[: found.count]
    # Behind the run it goes on as usual.
    assert not prompt._tokenize(f"{text} and so on, {'word ' * 30_000}", 50).is_complete


def test_an_unknown_tokenizer_reads_the_whole_text(nano_prompt):
    text = "word " * 5_000
    assert not nano_prompt._tokenize(text, 10).is_complete
    description = json.loads(nano_prompt.tokenizer.to_str())
    for change in ("pattern", "order", "normalizer", "blank", "nothing"):
        other = copy.deepcopy(description)
        splitter = other["pre_tokenizer"]["pretokenizers"]
        if change == "pattern":
            splitter[0]["pattern"]["Regex"] = r"\s*\S+"
        elif change == "order":
            splitter.reverse()
        elif change == "normalizer":
            other["normalizer"] = {"type": "NFKC"}
        elif change == "blank":
            splitter[1]["add_prefix_space"] = True
        else:
            other["pre_tokenizer"] = other["normalizer"] = None
        first = FirstTokensEncoder(Tokenizer.from_str(json.dumps(other)))
        assert first.cut_points is None, change
        assert first(text, 10).is_complete


def test_what_is_remembered_is_bounded_by_bytes(nano_prompt):
    first = FirstTokensEncoder(nano_prompt.tokenizer)
    for number in range(1500):
        first(f"{number} " + "some words " * 200, 500)
        assert first.cached_bytes <= MAX_CACHE_BYTES
    assert first.cached_bytes > 0.9 * MAX_CACHE_BYTES
    again = "1499 " + "some words " * 200
    assert first(again, 500).encoded is first(again, 5).encoded
    kept = len(first._cache)
    # Of a long text its beginning is remembered, and not the text.
    large = "x " * MAX_ENTRY_BYTES
    assert first(large, 5).encoded is first(large, 5).encoded
    assert max(map(len, first._cache)) < 3000
    # What is tokenized whole and large is not.
    runs = "x" * MAX_ENTRY_BYTES, "word " * 1600
    for run in runs:
        assert first(run, 5000).is_complete
        assert run not in first._cache
    assert len(first._cache) <= kept + 1
    first.cache_clear()
    assert first.cached_bytes == len(first._cache) == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's size")
def test_what_an_entry_costs_was_measured(nano_prompt):
    def memory():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for words, count in ((3, 12_000), (60, 2_000)):
        some = [f"{number} " + "needle points north " * (words // 3) for number in range(count)]
        first = FirstTokensEncoder(nano_prompt.tokenizer, cache_bytes=sys.maxsize)
        before = memory()
        for text in some:
            first(text, 1000)
        counted = first.cached_bytes - sum(map(sys.getsizeof, some))
        assert memory() - before < 1.5 * counted
        assert counted < 40 << 20


def test_many_threads_at_a_time(nano_prompt):
    first = FirstTokensEncoder(nano_prompt.tokenizer, cache_bytes=50_000)
    some = [f"{number} needle points north" for number in range(60)]
    expected = [nano_prompt.tokenizer.encode(text, add_special_tokens=False).ids for text in some]
    wrong = []

    def work(seed):
        draw = random.Random(seed)
        for _ in range(400):
            number = draw.randrange(len(some))
            if first(some[number], 5 + seed % 2).encoded.ids != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < first.cached_bytes <= 50_000
    alone = FirstTokensEncoder(nano_prompt.tokenizer)
    for text in first._cache:
        alone(text, 5)
    assert first.cached_bytes == alone.cached_bytes


def test_copies_begin_anew(nano_prompt):
    first = FirstTokensEncoder(nano_prompt.tokenizer, max_whole_characters=7, cache_bytes=999_999)
    first("some words", 5)
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert (other.max_whole_characters, other.cache_bytes, other.cached_bytes) == (7, 999_999, 0)
        assert other("some words", 5).encoded.ids == first("some words", 5).encoded.ids


def test_how_many_tokens_are_cut_does_not_depend_on_what_was_asked_before(nano_prompt):
    text = "word " * 3000
    cuts = []
    for limits in ((Limits(max_length=100), Limits()), (Limits(), Limits(max_length=100))):
        fresh = PromptEncoder(nano_prompt.tokenizer, nano_prompt.config)
        cuts.append({one.max_length: fresh.encode(["q"], [text], one).cut for one in limits})
    assert cuts[0] == cuts[1]
    assert cuts[0][100][0].tokens is None


def test_a_tokenizer_that_gives_up_is_a_sentence(monkeypatch):
    """What the library raises then is no Exception, and would end a ranking whatever is to be skipped."""
    from m0.errors import InputError
    from m0.inputs.truncation import encode_text

    class PanicException(BaseException):
        pass

    class GivesUp:
        def encode(self, text, add_special_tokens):
            raise PanicException("retry-limit-in-match over")

    with pytest.raises(InputError, match="a text of 3 characters cannot be tokenized"):
        encode_text(GivesUp(), "   ")

    class Interrupted:
        def encode(self, text, add_special_tokens):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_text(Interrupted(), "   ")
