"""scripts/nano/evaluate.py: what its questions promise of their candidates, and that scores and verdicts are those of the questions."""

import json
import random
import sys
from pathlib import Path

import matplotlib
import pytest

from m0 import Reranker
from tests.conftest import NANO

SCRIPTS = Path(__file__).parents[2] / "scripts"
TYPE = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SYLLABLES = "ka lo mi ru te so ban dor fel gim hut jas".split()


@pytest.fixture(scope="module")
def nano_scripts():
    sys.path.insert(0, str(SCRIPTS))
    from nano import measuring, tables, tasks_pages, tasks_texts

    yield {"measuring": measuring, "tables": tables, "pages": tasks_pages, "texts": tasks_texts}
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 held-out sections in two languages, of invented words, and two typefaces."""
    folder, rng = tmp_path_factory.mktemp("nano-data"), random.Random(3)
    rows = []
    for language in ("en", "de"):
        for number in range(24):
            words = ["".join(rng.choices(SYLLABLES, k=3)) for _ in range(60)]
            text = f"{' '.join(words)} Version {number}.{rng.randint(10, 99)} of Tool{number}."
            heading = f"{language} {words[0]} {words[1]}"
            rows.append({"id": f"s{number}", "language": language, "heading": heading, "text": text, "held_out": True})
    (folder / "sections.jsonl").write_text("\n".join(map(json.dumps, rows)))
    faces = [("DejaVuSans.ttf", "Sans", False), ("DejaVuSerif.ttf", "Serif", False), ("DejaVuSansMono.ttf", "Mono", True)]
    scripts = ["latin", "cyrillic", "greek"]
    fonts = [
        {"file": str(TYPE / file), "index": 0, "family": family, "scripts": scripts, "held_out": held}
        for file, family, held in faces
    ]
    (folder / "fonts.jsonl").write_text("\n".join(map(json.dumps, fonts)))
    return folder


def test_two_words_stand_in_the_body_of_the_right_page_only(nano_scripts, data):
    (task,) = nano_scripts["pages"].typefaces(data, random.Random(1))
    assert len(task.questions) == 150  # of two languages; the others have no sections of their script
    for question in task.questions:
        assert len(question.candidates) == 20
        right = question.candidates[question.right]
        assert right.style.face.family == right.style.heading_face.family == "Mono"
        assert 16 <= right.style.body <= 24
        for word in question.query.split():
            assert [word in page.words for page in question.candidates].count(True) == 1
            assert word in right.body
            assert len(word) >= 5


def test_the_same_questions_at_every_height(nano_scripts, data):
    (task,) = nano_scripts["pages"].heights(data, random.Random(1))
    asked = {}
    for question in task.questions:
        right = question.candidates[question.right]
        assert str(right.style.body) == question.group
        assert all(word in right.body for word in question.query.split())
        asked.setdefault(question.group, []).append((question.query, right.row["id"]))
    assert set(asked) == {"12", "14", "16", "20", "24", "28"}
    assert all(some == asked["12"] for some in asked.values())


def test_a_page_as_query_is_set_differently(nano_scripts, data):
    (task,) = nano_scripts["pages"].other_layouts(data, random.Random(1))
    for question in task.questions:
        right = question.candidates[question.right]
        assert question.query.row is right.row
        assert question.query.style.layout != right.style.layout
        assert question.query.style.face.family != right.style.face.family


def test_headings_and_their_translations_share_pages(nano_scripts, data):
    own, translated = (
        make(data, random.Random(1))[0] for make in (nano_scripts["pages"].headings, nano_scripts["pages"].translated_headings)
    )
    pages = {id(page) for question in own.questions for page in question.candidates}
    assert {id(page) for question in translated.questions for page in question.candidates} <= pages
    for question in translated.questions:
        right = question.candidates[question.right]
        assert question.query[:2] != right.row["heading"][:2]
        assert {question.query[:2], right.row["heading"][:2]} == {"en", "de"}
        assert [page.row["id"] for page in question.candidates].count(right.row["id"]) == 1


def test_pages_are_drawn_alike_each_time(nano_scripts, data):
    (task,) = nano_scripts["pages"].pointing(data, random.Random(1))
    page = task.questions[0].candidates[0]
    (first, drawn), (second, _) = page.draw(), page.draw()
    assert first.tobytes() == second.tobytes()
    assert drawn.words == page.words


def test_what_is_rare_stands_in_the_right_text_only(nano_scripts, data):
    texts = nano_scripts["texts"]
    (task,) = texts.rare_words(data, random.Random(1))
    kinds = {}
    for question in task.questions:
        kinds.setdefault(question.group, []).append(question)
        right = question.candidates[question.right]
        others = [text for place, text in enumerate(question.candidates) if place != question.right]
        if question.group == "typo":
            # One of the words is in no text, for it has the typo; the other stands in the right one.
            known = [word in texts.long_words(right) for word in question.query.split()]
            wrong = [word for word, found in zip(question.query.split(), known, strict=True) if not found]
            assert len(wrong) == 1
            assert not any(wrong[0] in texts.long_words(text) for text in others)
        else:
            assert question.query in right
            assert not any(question.query in text for text in others)
    assert set(kinds) == {"typo", "number", "rare name"}


@pytest.mark.parametrize("seed", range(20))
def test_a_typo_is_one_change(nano_scripts, seed):
    wrong = nano_scripts["texts"].mistype("Schrift", "xyz", random.Random(seed))
    assert wrong[0] == "S"
    assert wrong != "Schrift"
    if len(wrong) == 7:
        changed = [i for i, (a, b) in enumerate(zip(wrong, "Schrift", strict=True)) if a != b]
        assert len(changed) <= 2
        assert len(changed) == 1 or sorted(wrong) == sorted("Schrift")
    else:
        shorter, longer = sorted((wrong, "Schrift"), key=len)
        assert any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))


def test_scores_are_those_of_single_calls(nano_scripts, data):
    measuring = nano_scripts["measuring"]
    (task,) = nano_scripts["pages"].headings(data, random.Random(1))
    page = task.questions[0].candidates[0]
    questions = [
        measuring.Question("red heart", ["a red heart", "ein Haus", page], 0, "a", pool="x"),
        measuring.Question(page, [page, "ein Haus"], 0, "b", pool="x"),
        measuring.Question("Haus", ["ein Haus", "a red heart"], 0, "a", pool="y"),
    ]
    reranker = Reranker.from_pretrained(NANO, dtype="float32")
    found = measuring.model_scores(reranker, measuring.Task("t", "Success@1", "", questions))
    for question, scores in zip(questions, found, strict=True):
        query = {"text": question.query} if isinstance(question.query, str) else question.query.picture()
        shown = [c if isinstance(c, str) else c.picture() for c in question.candidates]
        assert scores == pytest.approx(reranker.logits([(query, document) for document in shown]), abs=1e-3)


def test_a_cell_lies_on_a_word_from_a_quarter_of_the_smaller_on(nano_scripts):
    measuring = nano_scripts["measuring"]
    assert measuring.overlaps((0, 0, 28, 28), (14, 14, 42, 42))  # a quarter of both
    assert not measuring.overlaps((0, 0, 28, 28), (15, 14, 43, 42))
    assert measuring.overlaps((0, 0, 28, 28), (20, 10, 30, 20))  # most of a short word
    assert not measuring.overlaps((0, 0, 28, 28), (20, 10, 200, 20))
    assert not measuring.overlaps((0, 0, 28, 28), (28, 0, 56, 28))


def test_a_language_below_bm25_is_named(nano_scripts):
    measuring, tables = nano_scripts["measuring"], nano_scripts["tables"]
    questions, scores = [], []
    for number in range(120):
        right_first, wrong_first = [1.0, 0.0], [0.0, 1.0]
        language = "en" if number % 2 else "de"
        # In English the model is right and BM25 is not, in German the other way round, except for some of both.
        model_right = (language == "en") != (number % 10 < 2)
        questions.append(measuring.Question("q", ["a", "b"], 0, language, wrong_first if model_right else right_first))
        scores.append(right_first if model_right else wrong_first)
    task = measuring.Task("same", "nDCG@10", "", questions, key="same", words=True)
    text, figures = tables.report([tables.Result(task, scores, [0.5])], {})
    assert figures["same"]["significantly below BM25"] == ["de"]
    assert "Significantly below BM25 in de of those with at least 50 queries" in text
    assert figures["same"]["groups"]["en"]["difference to BM25"]["low"] > 0


def test_a_tenth_comes_from_few_pools(nano_scripts):
    measuring = nano_scripts["measuring"]
    questions = [measuring.Question("q", ["a"], 0, "g", pool=str(number // 10)) for number in range(100)]
    tenth = measuring.a_tenth(measuring.Task("t", "Success@1", "", questions))
    assert len(tenth) == 10
    assert len({questions[number].pool for number in tenth}) == 1
