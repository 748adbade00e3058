"""Words and selectors on text in every form of Unicode: composed, decomposed, in scripts with and without blanks."""

import unicodedata

import pytest
import torch

from m0.errors import InputError
from m0.inputs.graphemes import edges
from m0.interp.positions import document
from m0.interp.words import assign_tokens_to_spans, find_sentences, find_words

TEXTS = {
    "ko": "한국어 문서를 찾습니다.",
    "ja": "バスで東京タワーへ。ガラスのペンギン!",
    "vi": "Tiếng Việt có nhiều dấu thanh",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "el": "Ή άλλη ΐδια ᾧ",
    "ru": "Ёжик й Їжак",
    "hi": "क़लम हिन्दी में लिखा, क्षत्रिय।",
    "bn": "পাহাড়ের আবহাওয়া কেমন? ো",
    "ta": "மலையில் வானிலை எப்படி? கொடி",
    "si": "සිංහල ෝ",
    "my": "ဦးမြန်မာစာ",
    "th": "น้ำที่นี่",
    "km": "ភាសាខ្មែរ",
    "bo": "བོད་ཡིག་ སྐྱེ།",
    "he": "שָׁלוֹם לָעוֹלָם",
    "ar": "مَرْحَبًا بالعالم، أين؟",
    "han": "豈更葛\U000e0100 \U0002f800二",
    "emoji": "❤️ 👩‍👩‍👧👍🏽 🇨🇭🇩🇪 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "signs": "≠ a\u0338b … \u0301x \u200bz co\u00adop می‌خواهم",
    "lines": "One.\r\nTwo\r\n\r\nThree!\u0301 \u0301 four",
}


def shown(spans, side="document"):
    return [unicodedata.normalize("NFC", span.text) for span in spans if span.side == side]


@pytest.mark.parametrize("language", TEXTS)
def test_words_and_sentences_are_the_same_in_every_form(tiny, language):
    forms = [unicodedata.normalize(form, TEXTS[language]) for form in ("NFC", "NFD")]
    encodings = [tiny.encode("q", form) for form in forms]
    assert encodings[0].token_ids.equal(encodings[1].token_ids)
    for find in (find_words, find_sentences):
        composed, decomposed = (find(encoding) for encoding in encodings)
        assert shown(composed) == shown(decomposed)
        for text, spans in zip(forms, (composed, decomposed), strict=True):
            spans = [span for span in spans if span.side == "document"]
            known = edges(text)
            for span in spans:
                assert text[span.start : span.end] == span.text
                assert known is None or (known[0][span.start], known[1][span.end]) == (span.start, span.end)
            covered = [place for span in spans for place in range(span.start, span.end)]
            assert len(covered) == len(set(covered))
            assert all(text[place].isspace() for place in set(range(len(text))) - set(covered))


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_no_token_belongs_to_two_words(tiny, language, form):
    encoding = tiny.encode("q", unicodedata.normalize(form, TEXTS[language]))
    spans = find_words(encoding)
    for origin, owner in zip(encoding.origins, assign_tokens_to_spans(encoding, spans), strict=True):
        if origin.kind == "text":
            word = spans[owner]
            others = [s for s in spans if s.side == origin.side and s.start < origin.end and s.end > origin.start and s != word]
            # A token of m0-nano may begin with the line end before its word.
            assert not others or encoding.parts[origin.side][0][origin.start] == "\n"


def test_words_of_decomposed_kana():
    """The mark of voiced sounds is in the block of hiragana, whatever it stands on."""
    from m0.interp.words import _split_into_words

    text = unicodedata.normalize("NFD", "ガラスばかりペンギン")
    assert [unicodedata.normalize("NFC", text[a:b]) for a, b, _ in _split_into_words(text)] == ["ガラス", "ばかり", "ペンギン"]
    assert [kind for _, _, kind in _split_into_words(text)] == ["katakana", "hiragana", "katakana"]


@pytest.mark.parametrize(
    ("language", "word"), [("ko", "문서를"), ("vi", "Việt"), ("cs", "kůň"), ("hi", "क़लम"), ("he", "שָׁלוֹם"), ("ja", "バス")]
)
def test_a_word_is_found_in_whatever_form_it_is_written(tiny, language, word):
    found = set()
    for written in ("NFC", "NFD"):
        encoding = tiny.encode("q", unicodedata.normalize(written, TEXTS[language]))
        for asked in ("NFC", "NFD"):
            found.add(tuple(document.words(unicodedata.normalize(asked, word))(encoding)))
    assert len(found) == 1
    assert found.pop()


def test_no_word_ends_before_its_marks(tiny):
    for text, part in (("café", "cafe"), ("हिन्दी", "हि"), ("שָׁלוֹם", "שלו"), ("क्षत्रिय", "क")):
        encoding = tiny.encode("q", unicodedata.normalize("NFD", f"one {text} two"))
        with pytest.raises(InputError, match="does not hold"):
            document.words(part)(encoding)


def test_explanations_of_both_forms_are_the_same(tiny):
    text = "한국어 문서를 찾습니다, Příliš žluťoučký kůň, バス"
    composed, decomposed = (
        tiny.explain("kůň", unicodedata.normalize(form, text), method="gradient_input") for form in ("NFC", "NFD")
    )
    assert torch.equal(composed.tokens, decomposed.tokens)
    for one, other in zip(composed.words, decomposed.words, strict=True):
        assert one.relevance == other.relevance
        assert one.span.text == unicodedata.normalize("NFC", other.span.text)
    for explanation in (composed, decomposed):
        assert explanation.to_html()
        assert len(explanation.to_json()["tokens"]) == len(explanation.encoding)
