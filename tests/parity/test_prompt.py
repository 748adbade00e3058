"""Token ids against transformers' tokenizer pipeline, in 31 languages, with and without pictures."""

from __future__ import annotations

import pytest

from m0 import RerankerConfig
from m0.inputs.images import ImageSettings
from m0.inputs.prompt import Limits, PromptEncoder, load_tokenizer
from m0.inputs.reading import read_parts
from tests.conftest import noise

transformers = pytest.importorskip("transformers", reason="needs the extra 'parity'")

# (query, document): "Where can I read about the weather in the mountains?" and some prose, as speakers might write it.
PROMPTS = {
    "ar": ("أين أقرأ عن طقس الجبال؟", "في الجبال يتغير الطقس بسرعة، لذلك احمل معك معطفًا."),
    "bg": ("Къде пише за времето в планината?", "В планината времето се мени бързо — вземете яке."),
    "bn": ("পাহাড়ের আবহাওয়া কেমন?", "পাহাড়ে আবহাওয়া দ্রুত বদলায়।"),
    "ca": ("Quin temps fa a la muntanya?", "A la muntanya el temps canvia de pressa; l'abric és necessari."),
    "cs": ("Jaké je počasí v horách?", "Na horách se počasí rychle mění, vezměte si bundu."),
    "da": ("Hvordan er vejret i bjergene?", "I bjergene skifter vejret hurtigt, så tag en jakke på."),
    "de": (
        "Wie wird das Wetter in den Alpen?",
        "In den Bergen schlägt das Wetter schnell um.\n\nEine Jacke gehört in den Rucksack!",
    ),
    "el": ("Τι καιρό κάνει στα βουνά;", "Στα βουνά ο καιρός αλλάζει γρήγορα."),
    "en": (
        "what's the weather like in the Alps?",
        "Weather changes quickly in the mountains; we'd pack 2 jackets (at 1,800 m).",
    ),
    "es": ("¿Qué tiempo hace en la montaña?", "En la montaña el tiempo cambia rápido. ¡Lleva chaqueta!"),
    "fa": ("هوای کوهستان چگونه است؟", "هوا در کوهستان زود عوض می‌شود."),
    "fi": ("Millainen sää vuorilla on?", "Vuorilla sää muuttuu nopeasti."),
    "fr": ("Quel temps fait-il à la montagne ?", "En montagne, le temps change vite : prenez une veste."),
    "he": ("מה מזג האוויר בהרים?", "בהרים מזג האוויר משתנה מהר."),
    "hi": ("पहाड़ों में मौसम कैसा है?", "पहाड़ों में मौसम जल्दी बदलता है।"),
    "hu": ("Milyen idő van a hegyekben?", "A hegyekben gyorsan változik az idő."),
    "id": ("Bagaimana cuaca di gunung?", "Di gunung cuaca cepat berubah."),
    "it": ("Che tempo fa in montagna?", "In montagna il tempo cambia in fretta: porta una giacca."),
    "ja": ("山の天気はどうですか？", "山の天気は変わりやすいので、上着を持って行きましょう。"),
    "ko": ("산의 날씨는 어때요?", "산에서는 날씨가 빨리 변합니다."),
    "nl": ("Hoe is het weer in de bergen?", "In de bergen slaat het weer snel om."),
    "pl": ("Jaka jest pogoda w górach?", "W górach pogoda szybko się zmienia — weź kurtkę."),
    "pt": ("Como está o tempo na serra?", "Na serra o tempo muda depressa."),
    "ro": ("Cum e vremea la munte?", "La munte vremea se schimbă repede."),
    "ru": ("Какая погода в горах?", "В горах погода быстро меняется, возьмите куртку."),
    "sv": ("Hur är vädret i fjällen?", "I fjällen slår vädret snabbt om."),
    "ta": ("மலையில் வானிலை எப்படி?", "மலைகளில் வானிலை விரைவாக மாறும்."),
    "th": ("อากาศบนภูเขาเป็นอย่างไร", "บนภูเขาอากาศเปลี่ยนเร็ว"),
    "tr": ("Dağlarda hava nasıl?", "Dağlarda hava çabuk değişir."),
    "uk": ("Яка погода в горах?", "У горах погода швидко змінюється."),
    "vi": ("Thời tiết trên núi thế nào?", "Trên núi thời tiết thay đổi rất nhanh."),
    "zh": ("山里天气怎么样？", "山里的天气变化很快，请带上外套。"),
    "code": ("def f(x):", "def f(x):\n\treturn x  ** 2\r\n\r\n# done  \n"),
    "odd": ("  \u00a0e\u0301 ", "\n\n  leading and trailing blanks \n\n👩‍👩‍👧‍👦 🇨🇭 ﬁ Å\u0000\t"),
    "empty document": ("?", ""),
}


@pytest.fixture(scope="module")
def reference(qwen2_tokenizer_file):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(qwen2_tokenizer_file))
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151655
    return tokenizer


@pytest.fixture(scope="module")
def prompt(qwen2_tokenizer_file):
    return PromptEncoder(load_tokenizer(qwen2_tokenizer_file), RerankerConfig())


def written(query: str, document: str) -> str:
    return f"**Document**:\n{document}\n**Query**:\n{query}"


@pytest.mark.parametrize("language", PROMPTS)
def test_text_pairs(prompt, reference, language):
    query, document = PROMPTS[language]
    ours = prompt.encode([query], [document])
    assert ours.token_ids.tolist() == [*reference(written(query, document))["input_ids"], 100]


@pytest.mark.parametrize("language", PROMPTS)
def test_pictures_on_either_side(prompt, reference, language):
    """A picture stands as its frame and one pad token a visual token, as the reference's processor writes it."""
    query, document = PROMPTS[language]
    settings = ImageSettings()
    parts = read_parts({"image": noise(130, 90)}, "document", settings)
    pads = "<|vision_start|>" + "<|image_pad|>" * parts[0].num_tokens + "<|vision_end|>"
    for ours, theirs in (
        (prompt.encode([query], parts), written(query, pads)),
        (prompt.encode(parts, [document]), written(pads, document)),
        (prompt.encode(parts, [document, *parts, document]), written(pads, document + pads + document)),
    ):
        assert ours.token_ids.tolist() == [*reference(theirs)["input_ids"], 100]


def test_long_documents_are_cut_where_the_vendor_cuts_them(prompt, reference):
    """The vendor keeps the first max_length - max_query_length tokens of a text document, decoded and written out."""
    document = " ".join(f"{query} {text}" for query, text in list(PROMPTS.values())[:8]) * 4
    limits = Limits(max_length=300, max_query_length=60)
    ids = reference(document, truncation=True, max_length=240)["input_ids"]
    assert len(ids) == 240
    kept = reference.decode(ids)
    assert "�" not in kept
    ours = prompt.encode(["short query"], [document], limits)
    assert ours.token_ids.tolist() == [*reference(written("short query", kept))["input_ids"], 100]
    assert ours.cut[0].kept == len(kept)


def test_typed_special_tokens_stay_text_where_the_reference_reads_a_picture(prompt, reference):
    typed = "what does <|image_pad|> mean"
    assert 151655 in reference(written(typed, "x"))["input_ids"]
    ours = prompt.encode([typed], ["x"])
    assert 151655 not in ours.token_ids.tolist()
    assert prompt.tokenizer.decode(ours.token_ids.tolist()[:-1]) == written(typed, "x")
